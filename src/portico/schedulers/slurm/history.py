"""What became of jobs: accounting's records, and the controller's own for the minutes that it keeps them. Pure."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from portico.errors import NotFound
from portico.schedulers.protocol import Job, JobDetails, JobState
from portico.schedulers.slurm.command import ENVIRONMENT, Command, Result
from portico.schedulers.slurm.control import check_id
from portico.schedulers.slurm.queue import make_mark, parse_key
from portico.schedulers.slurm.refusals import translate
from portico.schedulers.slurm.states import explain_end, parse_state
from portico.schedulers.slurm.text import (
    clean,
    decode,
    expand_nodes,
    make_printable,
    parse_duration,
    parse_int,
    parse_minutes,
    parse_size,
    parse_time,
    parse_tres,
)

log = logging.getLogger(__name__)

FIELDS: Final = (
    ("id", "JobIDRaw"),
    ("shown_id", "JobID"),
    ("word", "State"),
    ("exit_code", "ExitCode"),
    ("reason", "Reason"),
    ("user", "User"),
    ("account", "Account"),
    ("partition", "Partition"),
    ("qos", "QOS"),
    ("submitted", "Submit"),
    ("started", "Start"),
    ("ended", "End"),
    ("used", "ElapsedRaw"),
    ("limit", "TimelimitRaw"),
    ("nodes", "NNodes"),
    ("cores", "NCPUS"),
    ("memory", "ReqMem"),
    ("tres", "AllocTRES"),
    ("names", "NodeList"),
    ("priority", "Priority"),
    # free text, which may hold anything, from here
    ("comment", "Comment"),
    ("line", "SubmitLine"),
    ("name", "JobName"),
)
"""What sacct is asked for, ours and its name (sacct(1)). SubmitLine is there from 21.08 on; older ones go without."""

USAGE: Final = (("id", "JobIDRaw"), ("memory", "MaxRSS"), ("cpu", "TotalCPU"), ("folder", "WorkDir"))
_USAGE_LIVE: Final = (("id", "JobID"), ("memory", "MaxRSS"), ("cpu", "AveCPU"), ("tasks", "NTasks"))


@dataclass(frozen=True)
class Ended:
    """The end of a job as the scheduler tells it."""

    job_id: str
    word: str
    exit_code: str
    submitted: datetime | None = None
    started: datetime | None = None
    ended: datetime | None = None
    reason: str = ""

    @property
    def is_final(self) -> bool:
        """Whether it really is one: accounting lags, and says RUNNING of a job that has just ended."""
        return parse_state(self.word) is JobState.ENDED


def find_ends(job_ids: Iterable[str]) -> Command[list[Ended]]:
    """Ask accounting about jobs by their ids, all in one. Asks for no free text, so nothing can be forged in it.

    An id may come several times: of an array with each task, and with other times of submission where the id was given
    twice or the job ran again.
    """
    ids = ",".join(check_id(job_id) for job_id in job_ids)
    names = ("JobIDRaw", "JobID", "State", "ExitCode", "Submit", "Start", "End", "Reason")

    def parse(result: Result) -> list[Ended]:
        found = []
        for line in _read(result, "Asking for the job's history"):
            values = line.split("|")
            if len(values) == len(names) and values[0].isdecimal():
                raw, shown, word, code, submitted, started, ended, reason = values
                job_id = shown.partition("_")[0] if "_" in shown else raw  # a task's record is one of its array's
                times = (parse_time(submitted), parse_time(started), parse_time(ended))
                found.append(Ended(job_id, word, code, *times, clean(reason)))
        return found

    argv = ("sacct", "--allusers", "--allocations", "--noheader", "--parsable2", "--duplicates")
    return Command((*argv, f"--jobs={ids}", f"--format={','.join(names)}"), parse)


def find_exit_code(job_id: str) -> Command[Ended]:
    """Ask the controller how a job ended, where accounting does not tell. It knows for MinJobAge only.

    A job's user can put what looks like other values into its name or comment, and so lie about this very job only.
    """
    check_id(job_id)

    def parse(result: Result) -> Ended:
        values = _read_one(result, job_id)
        return Ended(
            job_id,
            values.get("JobState", ""),
            values.get("ExitCode", ""),
            parse_time(values.get("SubmitTime", "")),
            parse_time(values.get("StartTime", "")),
            parse_time(values.get("EndTime", "")),
            clean(values.get("Reason", "")),
        )

    return Command(("scontrol", "--oneliner", "show", "job", job_id), parse)


def describe(job_id: str) -> Command[JobDetails]:
    """Ask the controller for more of one job."""
    check_id(job_id)

    def parse(result: Result) -> JobDetails:
        values = _read_one(result, job_id)
        return JobDetails(
            folder=_take_path(values, "WorkDir"),
            output=_take_path(values, "StdOut"),
            error=_take_path(values, "StdErr"),
            restarts=parse_int(values.get("Restarts", "")),
        )

    return Command(("scontrol", "--oneliner", "show", "job", job_id), parse)


def read_script(job_id: str) -> Command[bytes]:
    """Ask the controller for a job's script; only its own user or an operator may."""
    check_id(job_id)

    def parse(result: Result) -> bytes:
        if result.status or result.timed_out or (result.stderr.strip() and not result.stdout):  # errors have status 0
            raise translate(result, "Asking for the job's script")
        return result.stdout

    return Command(("scontrol", "write", "batch_script", job_id, "-"), parse)


def read_stored_script(job_id: str) -> Command[bytes]:
    """Ask accounting for a job's script, from 21.08 on, where AccountingStoreFlags has job_script; as its own user.

    Bytes that are no text in the database's character set come back as question marks.
    """
    check_id(job_id)

    def parse(result: Result) -> bytes:
        if result.timed_out:
            raise translate(result, "Asking for the job's script")
        _, line, script = result.stdout.partition(b"-" * 80 + b"\n")
        if result.status or not line or script.strip() == b"NONE":
            raise NotFound("Slurm no longer has the script of this job.", hint="Submit it from its file again.")
        return script.removesuffix(b"\n")

    return Command(("sacct", "--batch-script", f"--jobs={job_id}"), parse)


def measure_live(job_id: str) -> Command[JobDetails]:
    """Ask what a running job uses; only its own user or an operator may (sstat(1))."""
    argv = ("sstat", "--allsteps", "--noheader", "--parsable2", f"--jobs={check_id(job_id)}")
    return Command((*argv, _render_format(_USAGE_LIVE)), lambda result: _parse_usage(result, _USAGE_LIVE))


def measure_ended(job_id: str) -> Command[JobDetails]:
    """Ask accounting what a job has used."""
    argv = ("sacct", "--allusers", "--noheader", "--parsable2", f"--jobs={check_id(job_id)}")
    return Command((*argv, _render_format(USAGE)), lambda result: _parse_usage(result, USAGE))


def _parse_usage(result: Result, fields: tuple[tuple[str, str], ...]) -> JobDetails:
    memory, cpu, folder = 0, 0.0, None
    for line in _read(result, "Asking what the job uses"):
        values = dict(zip((name for name, _ in fields), line.split("|", len(fields) - 1), strict=False))
        folder = folder or _take_path(values, "folder")
        memory = max(memory, parse_size(values.get("memory", ""), unit="") or 0)
        seconds = parse_duration(values.get("cpu", "")) or 0
        # Of a running job each step's mean of its tasks; of an ended one the first record has the sum.
        cpu = cpu + seconds * parse_int(values["tasks"]) if "tasks" in values else max(cpu, seconds)
    return JobDetails(folder=folder, memory_used_bytes=memory or None, cpu_used_s=cpu or None)


def list_history(user_name: str | None, since: datetime, mark: str | None = None) -> Command[list[Job]]:
    """Ask accounting for the jobs that ended since then, newest first."""

    def choose(jobs: list[Job]) -> list[Job]:
        ended = [job for job in jobs if job.state is JobState.ENDED]
        return sorted(ended, key=lambda job: job.ends.timestamp() if job.ends else 0, reverse=True)

    return _ask_jobs(user_name, since, mark or make_mark(), choose)


def find_record(job_id: str, mark: str | None = None) -> Command[Job | None]:
    """Ask accounting for the record of one job, whosever it is; None where there is none.

    Of an id that was given to several jobs, or to one that ran again, the record that was made last.
    """
    check_id(job_id)

    def choose(jobs: list[Job]) -> Job | None:
        return next((job for job in reversed(jobs) if job_id in (job.id, job.shown_id)), None)

    delimiter = f"|{mark or make_mark()}|"
    argv = ("sacct", "--allusers", "--allocations", "--noheader", "--parsable2", f"--delimiter={delimiter}")
    return Command(
        (*argv, f"--jobs={job_id}", _render_format(FIELDS)),
        lambda result: choose(_parse_jobs(result, delimiter)),
        env=ENVIRONMENT,
    )


def find_key(key: str, user_name: str, since: datetime, mark: str | None = None) -> Command[list[Job]]:
    """Ask accounting for the jobs of a user that carry a key, those that ended first."""

    def choose(jobs: list[Job]) -> list[Job]:
        found = [job for job in jobs if job.key == key and job.user_name == user_name]
        return sorted(found, key=lambda job: job.state is not JobState.ENDED)

    return _ask_jobs(user_name, since, mark or make_mark(), choose)


def _ask_jobs(
    user_name: str | None, since: datetime, mark: str, choose: Callable[[list[Job]], list[Job]]
) -> Command[list[Job]]:
    """Ask for records with free text in them, with a delimiter that nobody can have put into a job's name."""
    delimiter = f"|{mark}|"
    whose = f"--user={user_name}" if user_name else "--allusers"
    argv = ("sacct", whose, "--allocations", "--noheader", "--parsable2", f"--delimiter={delimiter}")
    when = (f"--starttime={since.astimezone(UTC).strftime('%Y-%m-%dT%H:%M:%S')}", "--endtime=now")
    return Command(
        (*argv, *when, _render_format(FIELDS)),
        lambda result: choose(_parse_jobs(result, delimiter)),
        env=ENVIRONMENT,
        timeout_s=60,
    )


def _parse_jobs(result: Result, mark: str) -> list[Job]:
    jobs, unreadable, count = [], 0, len(FIELDS)
    record = ""
    for line in _read(result, "Asking for the history"):
        # A line break in a name cuts a record; what follows up to the next whole one belongs to it.
        if line.count(mark) == count - 1:
            record = line
        elif line.count(mark) + record.count(mark) == count - 1 and record:
            record += line
        else:
            record = line if line.count(mark) else ""
            unreadable += not line.count(mark)
            continue
        values = dict(zip((name for name, _ in FIELDS), record.split(mark), strict=True))
        record = ""
        if values["id"].isdecimal():
            jobs.append(_make_job(values))
        else:
            unreadable += 1
    if unreadable:
        log.info("Slurm's accounting has %d lines that are no record", unreadable)
    return jobs


def _make_job(values: Mapping[str, str]) -> Job:
    state = parse_state(values["word"])
    array_id, _, _ = values["shown_id"].partition("_")
    match = re.search(r"--comment=(portico:\S+)", values["line"])
    job = Job(
        id=values["id"],
        user_name=make_printable(values["user"]),
        state=state,
        word=values["word"],
        name=make_printable(values["name"]),
        key=parse_key(values["comment"] or (match[1] if match else ""), values["name"]),
        shown_id=make_printable(values["shown_id"]),
        array_id=array_id if "_" in values["shown_id"] else "",
        account=clean(values["account"]),
        partition=clean(values["partition"]),
        qos=clean(values["qos"]),
        submitted=parse_time(values["submitted"]),
        started=parse_time(values["started"]),
        ends=parse_time(values["ended"]),
        limit_s=parse_minutes(values["limit"]),
        used_s=float(parse_int(values["used"])),
        cores=parse_int(values["cores"]),
        nodes=parse_int(values["nodes"]),
        memory_bytes=parse_size(values["memory"]) or 0,
        gres=",".join(f"{k}={v}" for k, v in parse_tres(values["tres"]).items() if k.startswith("gres/")),
        node_names=expand_nodes(values["names"]),
        priority=parse_int(values["priority"]),
    )
    if state is not JobState.ENDED:
        return job
    why, detail = explain_end(values["word"], clean(values["reason"]), values["exit_code"])
    return replace(job, reason=why, detail=detail)


def parse_pairs(line: str) -> dict[str, str]:
    """Return the ``Key=value`` pairs of a line of ``scontrol -o``; of a key that comes twice, the last.

    Values hold blanks and anything else: a pair ends where `` Name=`` begins the next.
    """
    parts = re.split(r"(?:^| )([A-Za-z][A-Za-z0-9/:_]*)=", line)
    return {key: value.strip() for key, value in zip(parts[1::2], parts[2::2], strict=True)}


def _take_path(values: Mapping[str, str], name: str) -> str | None:
    path = values.get(name, "")
    return path if path.startswith("/") and path.isprintable() else None


def _render_format(fields: Iterable[tuple[str, str]]) -> str:
    return f"--format={','.join(code for _, code in fields)}"


def _read(result: Result, doing: str) -> list[str]:
    if result.status or result.timed_out:
        raise translate(result, doing)
    return decode(result).split("\n")[:-1] if result.stdout else []


def _read_one(result: Result, job_id: str) -> dict[str, str]:
    if result.status or result.timed_out:
        raise translate(result, "Asking for the job")
    records = re.split(r"^(?=JobId=\d+ )", decode(result), flags=re.MULTILINE)[1:]  # of an array there are several
    record = next((r for r in records if r.startswith(f"JobId={job_id} ")), None)
    if record is None:
        raise NotFound("Slurm knows no such job any more.")
    return parse_pairs(record.replace("\n", " "))
