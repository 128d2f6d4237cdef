"""A Slurm that is not there: what its commands would say, with the vices of a real one, each switched on by name."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from portico.errors import NotFound
from portico.schedulers.slurm.command import Command, Result
from portico.schedulers.slurm.queue import FIELDS

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@dataclass
class FakeJob:
    """A job in it."""

    id: str
    user: str
    name: str
    comment: str
    submitted: float
    word: str = "PENDING"
    reason: str = "None"
    exit_code: str = "0:0"
    restarts: int = 0
    started: float = 0
    ended: float = 0
    in_queue: bool = True
    in_history: bool = True
    array: str = ""
    script: bytes = b""


@dataclass
class FakeSlurm:
    """A cluster whose time stands still unless told otherwise; a schedulers.slurm.command.Runner."""

    now: float = START.timestamp()
    jobs: list[FakeJob] = field(default_factory=list)
    asked: list[tuple[str | None, str]] = field(default_factory=list)
    next_id: int = 100
    # vices
    down: bool = False
    hung: bool = False  # does not answer, and takes what it was given later
    accepts_late_s: float = 0  # after it was hung: how long until that shows
    accounting_down: bool = False
    accounting_lags: bool = False
    hides_jobs: bool = False  # PrivateData=jobs
    refuses: str = ""
    slow_s: float = 0
    vanished: bool = False  # the user's account
    waiting: list[tuple[float, FakeJob]] = field(default_factory=list)
    on_sbatch: Callable[[], None] = lambda: None

    def clock(self) -> datetime:
        """Its time."""
        return datetime.fromtimestamp(self.now, UTC)

    def timer(self) -> float:
        """Its seconds."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds

    def wake(self) -> None:
        """Let it answer again."""
        self.hung = False
        self.waiting = [(self.now + self.accepts_late_s, job) for _, job in self.waiting]

    def get(self, key: str) -> list[FakeJob]:
        """Return the jobs that were ever taken with a key."""
        return [job for job in self.jobs if job.comment == f"portico:{key}"]

    def start(self, key: str) -> FakeJob:
        """Let a job run."""
        (job,) = self.get(key)
        job.word, job.started = "RUNNING", self.now
        return job

    def end(self, key: str, word: str = "COMPLETED", exit_code: str = "0:0", reason: str = "None") -> FakeJob:
        """Let a job end."""
        job = self.get(key)[-1]
        job.word, job.exit_code, job.reason, job.ended = word, exit_code, reason, self.now
        return job

    def count(self, program: str) -> int:
        """Return how often a program was run."""
        return sum(found == program for _, found in self.asked)

    async def run(self, user_name: str | None, command: Command[Any]) -> Result:
        """Do as a Runner does."""
        program = command.argv[0]
        self.asked.append((user_name, program))
        await asyncio.sleep(self.slow_s)
        if self.vanished and user_name:
            raise NotFound(f"There is no POSIX account {user_name}.")
        for at, job in list(self.waiting):
            if not self.hung and not self.down and self.now >= at:
                self.waiting.remove((at, job))
                self.jobs.append(job)
        answer: Result = getattr(self, f"_{program}")(user_name, command)
        return answer

    def _away(self, what: str) -> Result | None:
        if self.down:
            return Result(1, b"", f"{what}: Unable to contact slurm controller (connect failure)\n".encode())
        if self.hung:
            return Result(1, b"", f"{what}: Socket timed out on send/recv operation\n".encode())
        return None

    def _sbatch(self, user: str | None, command: Command[Any]) -> Result:
        self.on_sbatch()
        assert user
        options = dict(part[2:].partition("=")[::2] for part in command.argv if part.startswith("--"))
        if self.down:
            return Result(1, b"", b"sbatch: error: Batch job submission failed: Unable to contact slurm controller\n")
        if self.refuses:
            return Result(1, b"", f"sbatch: error: Batch job submission failed: {self.refuses}\n".encode())
        job = FakeJob(str(self.next_id), user, options["job-name"], options["comment"], self.now, script=command.stdin)
        if "array" in options:
            job.array = options["array"]
        self.next_id += 1
        if self.hung:
            self.waiting.append((float("inf"), job))
            return Result(1, b"", b"sbatch: error: Batch job submission failed: Socket timed out on send/recv\n")
        self.jobs.append(job)
        return Result(0, f"{job.id}\n".encode())

    def _squeue(self, user: str | None, command: Command[Any]) -> Result:
        if away := self._away("slurm_load_jobs error"):
            return away
        form = dict(command.env)["SQUEUE_FORMAT"]
        wanted = next((part.partition("=")[2] for part in command.argv if part.startswith("--user=")), None)
        lines = []
        for job in self.jobs:
            if job.in_queue and wanted in (None, job.user) and not (self.hides_jobs and user is None):
                line = form
                values = self._render(job)
                for name, code in FIELDS:
                    line = line.replace(code, values.get(name, ""))
                lines.append(line + "\n")
        return Result(0, "".join(lines).encode())

    def _render(self, job: FakeJob) -> dict[str, str]:
        def time(value: float) -> str:
            return str(int(value)) if value else "N/A"

        return {
            "id": job.id, "array": job.id, "tasks": job.array or "N/A", "word": job.word, "reason": job.reason,
            "user": job.user, "partition": "batch", "submitted": time(job.submitted), "started": time(job.started),
            "ends": time(job.ended or (job.started and job.started + 3600)), "limit": "1:00:00", "used": "0:01",
            "nodes": "1", "cores": "1", "memory": "1M", "names": "n1" if job.started else "", "priority": "1",
            "comment": job.comment, "name": job.name,
        }  # fmt: skip

    def _sacct(self, user: str | None, command: Command[Any]) -> Result:
        if self.accounting_down:
            return Result(1, b"", b"sacct: error: slurm_persist_conn_open: failed to connect to slurmdbd\n")
        if "--batch-script" in command.argv:
            job_id = command.argv[-1].partition("=")[2]
            stored = next((job.script for job in self.jobs if job.id == job_id and job.in_history), b"NONE\n")
            return Result(0, f"Batch Script for {job_id}\n{'-' * 80}\n".encode() + stored + b"\n")
        names = next(part.partition("=")[2] for part in command.argv if part.startswith("--format=")).split(",")
        mark = next((p.partition("=")[2] for p in command.argv if p.startswith("--delimiter=")), "|")
        ids = next((p.partition("=")[2].split(",") for p in command.argv if p.startswith("--jobs=")), None)
        lines = []
        for job in self.jobs:
            if job.in_history and (ids is None or job.id in ids):
                word = "RUNNING" if self.accounting_lags else job.word
                values = {
                    "JobIDRaw": job.id, "JobID": job.id, "State": word, "ExitCode": job.exit_code, "User": job.user,
                    "Submit": str(int(job.submitted)), "Start": str(int(job.started)), "End": str(int(job.ended)),
                    "Comment": job.comment, "JobName": job.name, "Reason": "None",
                }  # fmt: skip
                lines.append(mark.join(values.get(name, "") for name in names) + "\n")
        return Result(0, "".join(lines).encode())

    def _scontrol(self, user: str | None, command: Command[Any]) -> Result:
        if away := self._away("scontrol"):
            return away
        job = next((job for job in self.jobs if job.id == command.argv[-1] and job.in_queue), None)
        if "update" in command.argv:
            return Result(0) if user is None else Result(1, b"", b"Access/permission denied for job 1\n")
        if "batch_script" in command.argv:
            job = next((job for job in self.jobs if job.id == command.argv[3] and job.in_queue), None)
            mine = job is not None and job.user == user
            error = (
                b"" if mine else b"job script retrieval failed: Invalid " + (b"user id" if job else b"job id specified")
            )
            return Result(0, job.script if job and mine else b"", error)
        if job is None:
            return Result(1, b"", b"slurm_load_jobs error: Invalid job id specified\n")
        if "show" in command.argv:
            text = (
                f"JobId={job.id} JobName={job.name} JobState={job.word} ExitCode={job.exit_code} Reason={job.reason} "
                f"Restarts={job.restarts} WorkDir=/home/{job.user} StdErr=/home/{job.user}/out StdOut=/home/{job.user}/out\n"
            )
            return Result(0, text.encode())
        job.reason = {"hold": "JobHeldUser", "release": "None"}.get(command.argv[1], job.reason)
        return Result(0)

    def _sstat(self, user: str | None, command: Command[Any]) -> Result:
        return Result(0, b"1.batch|1M|00:01:00|1\n")

    def _scancel(self, user: str | None, command: Command[Any]) -> Result:
        if away := self._away("scancel: error: Kill job error on job id 1"):
            return away
        for job in self.jobs:
            if job.id == command.argv[-1] and job.word in ("PENDING", "RUNNING"):
                job.word, job.ended = "CANCELLED", self.now
        return Result(0)


KEYS = (f"k{number:011d}" for number in itertools.count())
HOUR = timedelta(hours=1)
