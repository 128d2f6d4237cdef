"""What Slurm says, understood: recorded answers of a real one, nasty ones among them, and texts made up by hypothesis."""

from __future__ import annotations

import dataclasses
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from slurm_fixtures import FOLDER, MARK, SINCE, load

from portico.errors import BY_CODE, Conflict, Forbidden, Invalid, NotFound, PorticoError, Unavailable
from portico.model import Reason
from portico.schedulers.protocol import Action, Job, JobDetails, JobOptions, JobState
from portico.schedulers.slurm import control, history, queue, site, submit, text
from portico.schedulers.slurm.command import Result
from portico.schedulers.slurm.refusals import TABLE, translate
from portico.schedulers.slurm.states import STATES, WAITS, describe_wait, explain_end, is_held, parse_state


@pytest.fixture(scope="module")
def jobs() -> list[Job]:
    return queue.list_queue(MARK).parse(load("squeue"))


def get(jobs: list[Job], **wanted: object) -> Job:
    (job,) = [job for job in jobs if all(getattr(job, name) == value for name, value in wanted.items())]
    return job


# the queue


def test_the_first_line_of_each_fixture_has_the_version() -> None:
    for path in FOLDER.iterdir():
        assert json.loads(path.read_bytes().partition(b"\n")[0])["version"] == "22.05.8", path


def test_a_running_job_with_its_key(jobs: list[Job]) -> None:
    job = get(jobs, key="kabcdefghijk", word="RUNNING")
    assert job.state is JobState.RUNNING and job.user_name == "alice" and job.name == "portico-kabcdefghijk"
    assert (job.account, job.partition, job.qos, job.cores, job.nodes) == ("proj1", "batch", "normal", 1, 1)
    assert job.memory_bytes == 500 << 20 and job.limit_s == 3600 and len(job.node_names) == 1
    assert job.started and job.ends and (job.ends - job.started).total_seconds() == 3600
    assert job.core_hours_at_limit == 1.0 and job.reason is None and job.position == 0


def test_separators_line_breaks_and_bytes_in_names_disturb_nobody(jobs: list[Job]) -> None:
    breaks = get(jobs, name="new?line|x?1|1")
    assert breaks.key == "" and breaks.held and breaks.waiting_for == WAITS["JobHeldUser"]
    assert get(jobs, name="café ??".replace("?", "�")).state is JobState.QUEUED
    assert get(jobs, name="tab?cr?x?[31mred", state=JobState.QUEUED)
    raw = load("squeue").stdout
    assert len(jobs) == raw.count(MARK.encode()) // 3


def test_arrays_dependencies_and_reasons(jobs: list[Job]) -> None:
    array = get(jobs, state=JobState.QUEUED, limit_s=86400.0)
    assert array.shown_id == f"{array.id}_[7-1000:3%2]" and array.task_count == 332 and array.array_id == array.id
    assert [job.shown_id for job in jobs if job.array_id == array.id and job.state is JobState.RUNNING] == [
        f"{array.id}_1", f"{array.id}_4",
    ]  # fmt: skip
    waits = {job.waiting_for for job in jobs if job.state is JobState.QUEUED}
    assert {WAITS["Dependency"], WAITS["DependencyNeverSatisfied"], WAITS["BeginTime"], WAITS["PartitionDown"]} <= waits
    assert any("jobs running at once" in wait and "you have" in wait for wait in waits), waits
    large = get(jobs, name="large")
    assert large.started and large.started > (large.submitted or large.started)  # expected
    assert large.position > 0 and large.waiting_for == WAITS["Resources"]


def test_those_that_ended_are_there_with_a_reason(jobs: list[Job]) -> None:
    assert get(jobs, name="gone").reason is Reason.CANCELLED
    assert all((job.reason is not None) is (job.state is JobState.ENDED) for job in jobs)


def test_an_empty_queue_is_no_trouble() -> None:
    assert queue.list_queue(MARK).parse(load("squeue-nothing")) == []


def test_one_bad_record_does_not_lose_the_queue(jobs: list[Job]) -> None:
    good = load("squeue").stdout
    bad = f"{MARK}what|is|this{MARK}x{MARK}y\n".encode()
    found = queue.list_queue(MARK).parse(Result(0, bad + good + b"\nrubbish\n"))
    assert len(found) == len(jobs)


def test_a_cut_answer_loses_its_last_record_only(jobs: list[Job]) -> None:
    raw = load("squeue").stdout
    found = queue.list_queue(MARK).parse(Result(0, raw[: len(raw) // 2], cut=True))
    assert [job.id for job in found] == [job.id for job in jobs][: len(found)] and len(found) > 5


def test_an_unknown_state_degrades(caplog: pytest.LogCaptureFixture) -> None:
    raw = load("squeue").stdout.replace(b"|RUNNING|", b"|LEVITATING|")
    found = queue.list_queue(MARK).parse(Result(0, raw))
    assert any(job.word == "LEVITATING" and job.state is JobState.RUNNING for job in found)
    assert "LEVITATING" in caplog.text


@given(st.text(max_size=60), st.text(max_size=60))
def test_nobody_can_forge_a_record(name: str, comment: str) -> None:
    plain = "12|12|N/A|PENDING|None|bob|a|p|q|1795225394|N/A|N/A|1:00|0:00|1|1|1M|N/A||1|(null)"
    other = plain.replace("12|12", "13|13").replace("bob", "alice")
    evil = f"{name}\n{other}\n|{comment}"
    raw = "".join(f"{MARK}{line}{MARK}{c}{MARK}{n}\n" for line, c, n in [(plain, evil, evil), (other, "", "mine")])
    found = queue.list_queue(MARK).parse(Result(0, raw.encode("utf-8", "surrogatepass")))
    assert [(job.id, job.user_name) for job in found] == [("12", "bob"), ("13", "alice")]
    assert found[0].name.isprintable()


def test_the_mark_is_not_seen_by_others_and_never_the_same() -> None:
    first, second = queue.list_queue(), queue.list_queue()
    assert dict(first.env)["SQUEUE_FORMAT"] != dict(second.env)["SQUEUE_FORMAT"]
    assert first.argv == second.argv == ("squeue", "--noheader", "--local", "--all", "--states=all")


def test_the_place_in_the_queue_is_by_priority_within_the_partition() -> None:
    rows = [("1", "p", 5, "None"), ("2", "p", 9, "Priority"), ("3", "q", 1, "None"), ("4", "p", 9, "Resources"),
            ("5", "p", 0, "None"), ("6", "p", 9, "JobHeldUser")]  # fmt: skip
    plain = "{0}|{0}|N/A|PENDING|{3}|bob|a|{1}|q|1795225394|N/A|N/A|1:00|0:00|1|1|1M|N/A||{2}|(null)"
    raw = "".join(f"{MARK}{plain.format(*row)}{MARK}{MARK}x\n" for row in rows)
    found = queue.list_queue(MARK).parse(Result(0, raw.encode()))
    assert [job.position for job in found] == [3, 1, 1, 2, 0, 0]
    assert [job.waiting_for for job in found][:2] == [
        "its turn: number 3 in the queue",
        "its turn: number 1 in the queue",
    ]
    assert found[3].waiting_for == WAITS["Resources"]


@pytest.mark.parametrize("comment, name, key", [
    ("portico:kabcdefghijk", "x", "kabcdefghijk"), ("portico:kabcdefghijk more", "x", "kabcdefghijk"),
    ("", "portico-kabcdefghijk", "kabcdefghijk"), ("portico:short", "x", ""), ("my portico:kabcdefghijk", "x", ""),
    ("portico:kabcdefghijkl", "", ""), ("(null)", "sbatch", ""),
])  # fmt: skip
def test_keys(comment: str, name: str, key: str) -> None:
    assert queue.parse_key(comment, name) == key


# history


def test_ends_from_accounting() -> None:
    ends = history.find_ends(["50", "51"]).parse(load("sacct-ends"))
    told = [explain_end(end.word, end.reason, end.exit_code) for end in ends if end.is_final]
    assert told == [
        (Reason.FAILED, "exit status 3"),
        (Reason.NOT_STARTED, "the folder of its output file does not exist or can't be written"),
        (Reason.FAILED, "signal 9 (SIGKILL); a job that uses more memory than it asked for ends like this, too"),
        (Reason.CANCELLED, "by uid 31001"),
    ]
    assert [end.word for end in ends if not end.is_final] == ["RUNNING"]


def test_history_has_only_what_ended_newest_first() -> None:
    jobs = history.list_history(None, SINCE, MARK).parse(load("sacct-history"))
    assert len(jobs) > 10 and {job.state for job in jobs} == {JobState.ENDED}
    assert jobs == sorted(jobs, key=lambda job: job.ends or datetime.min.replace(tzinfo=UTC), reverse=True)
    assert get(jobs, name="gone").user_name == "alice"
    assert any(job.key for job in jobs)


def test_a_line_break_in_a_name_does_not_lose_the_history() -> None:
    def line(job_id: str, name: str) -> str:
        values = {name: "" for name, _ in history.FIELDS} | {"id": job_id, "shown_id": job_id, "word": "COMPLETED"}
        return f"|{MARK}|".join((values | {"name": name, "user": "alice", "ended": "1795225394"}).values())

    raw = "\n".join([line("1", "first"), line("2", "a\nb\n3|x"), line("4", "last")]) + "\n"
    found = history.list_history(None, SINCE, MARK).parse(Result(0, raw.encode()))
    assert sorted((job.id, job.name) for job in found) == [("1", "first"), ("2", "a"), ("4", "last")]


def test_details_and_usage() -> None:
    details = history.describe("53").parse(load("show-job"))
    assert details.folder == "/home/alice" and details.output == "/home/alice/slurm-53.out" == details.error
    assert history.find_exit_code("50").parse(load("show-job-failed")).exit_code == "3:0"
    assert history.measure_live("53").parse(load("sstat")).memory_used_bytes == 3016 << 10
    assert history.measure_live("53").parse(load("sstat-other")).memory_used_bytes is None
    assert history.measure_ended("54").parse(load("sacct-usage")).cpu_used_s is not None
    ended = Result(0, b"54||00:01.500|/home/alice|x\n54.batch|2M|00:01.500|\n")
    assert history.measure_ended("54").parse(ended) == JobDetails("/home/alice|x", None, None, 2 << 20, 1.5)
    with pytest.raises(NotFound):
        history.describe("999999").parse(load("show-job-unknown"))


# the site


@pytest.fixture(scope="module")
def place() -> site.Site:
    settings = site.read_settings().parse(load("show-config"))
    return site.Site(
        tuple(site.list_partitions().parse(load("show-partition"))),
        tuple(site.list_nodes().parse(load("show-node"))),
        "associations" in settings["AccountingStorageEnforce"],
        tuple(site.list_qos().parse(load("sacctmgr-qos"))),
        tuple(site.list_associations(settings["ClusterName"]).parse(load("sacctmgr-association"))),
        site.list_default_accounts().parse(load("sacctmgr-user")),
    )


def test_offers_are_what_this_user_may_ask_for(place: site.Site) -> None:
    batch, closed, short = place.find_offers("alice", [])
    assert batch.partition == "batch" and batch.default and batch.accounts == ("proj1", "proj2")
    assert [qos.name for qos in batch.qos] == ["normal", "long", "one"] and batch.qos[1].max_time_s == 7200
    assert (batch.max_nodes, batch.max_cores_per_node, batch.max_memory_per_node_bytes) == (3, 4, 4000 << 20)
    assert "closed" in closed.closed and short.max_time_s == 1800
    assert place.find_offers("bob", [])[0].accounts == ("proj2",)
    assert place.find_offers("carol", []) == []
    open_to_all = dataclasses.replace(place, enforced=False)
    assert open_to_all.find_offers("carol", [])[0].accounts == ()


def test_partitions_have_doors(place: site.Site) -> None:
    def change(**changes: object) -> list[str]:
        batch = dataclasses.replace(place.partitions[0], **changes)  # type: ignore[arg-type]
        changed = dataclasses.replace(place, partitions=(batch, *place.partitions[1:]))
        return [offer.partition for offer in changed.find_offers("alice", ["alice", "staff"])]

    assert "batch" in change(allow_groups=frozenset({"staff"})) and "batch" not in change(allow_groups=frozenset({"x"}))
    assert "batch" not in change(allow_accounts=frozenset({"other"})) and "batch" not in change(root_only=True)
    assert "batch" not in change(deny_accounts=frozenset({"proj1", "proj2"}))


def test_reservations() -> None:
    assert site.list_reservations().parse(load("show-reservation-nothing")) == []
    course, later, shared, unnamed = site.list_reservations().parse(load("show-reservation"))
    assert course.name == "course" and course.users == ("alice",) and course.node_names == ("n1",)
    assert course.begins and course.ends and (course.ends - course.begins).total_seconds() == 7200
    assert (
        later.partition == "short"
        and later.accounts == ("demo",)
        and later.begins == datetime(2030, 1, 1, 8, tzinfo=UTC)
    )
    assert shared.groups == ("bob",) and (unnamed.name, unnamed.users) == ("bob_4", ("-bob",))
    assert b"m ain,t" in load("show-reservation").stdout, "sbatch would take it for two; it is not offered"
    nasty = b"ReservationName=a=b c\nReservationName=--x\nnonsense\nReservationName=ok\n"
    assert [one.name for one in site.list_reservations().parse(Result(0, nasty))] == ["ok"]
    with pytest.raises(Unavailable):
        site.list_reservations().parse(Result(1, b"", b"Unable to contact slurm controller (connect failure)\n"))


def test_a_reservation_is_offered_to_whom_it_may_be_for(place: site.Site) -> None:
    accounts = [dataclasses.replace(one, account="demo") if one.user == "bob" else one for one in place.associations]
    reserved = dataclasses.replace(
        place,
        reservations=tuple(site.list_reservations().parse(load("show-reservation"))),
        associations=tuple(accounts),
    )

    def find(user: str, groups: list[str]) -> dict[str, tuple[str, ...]]:
        return {offer.partition: offer.reservations for offer in reserved.find_offers(user, groups)}

    assert find("alice", []) == {"batch": ("course", "bob_4"), "closed": (), "short": ("course", "bob_4")}
    assert find("bob", ["bob"]) == {"batch": ("shared",), "closed": ("shared",), "short": ("later",)}


def test_a_reservation_that_is_not_there_is_said_before() -> None:
    known = site.list_reservations().parse(load("show-reservation"))
    site.refuse_unknown("course,later", known)
    with pytest.raises(Invalid) as refused:
        site.refuse_unknown("course,nope", known)
    assert refused.value.field == "reservation" and "'nope'" in refused.value.message
    for name in ("a b", "a\nb", "a;b", "--x", "a\0"):
        request = dataclasses.replace(make_request(), options=JobOptions(reservation=name))
        with pytest.raises(Invalid) as refused:
            submit.submit(request)
        assert refused.value.field == "reservation"


def test_nodes(place: site.Site) -> None:
    node = place.nodes[0]
    assert node.name == "n1" and node.partitions == ("batch", "short") and node.cores == 4 and node.usable
    assert node.memory_bytes == 4000 << 20 and node.load is not None
    words = ("DOWN*", "IDLE+DRAIN", "ALLOCATED+DRAIN+NOT_RESPONDING", "MIXED", "IDLE+CLOUD+POWERED_DOWN")
    lines = "".join(f"NodeName=x CPUTot=1 State={word}\n" for word in words)
    assert [n.usable for n in site.list_nodes().parse(Result(0, lines.encode()))] == [False, False, False, True, True]


@pytest.mark.parametrize("changes, options, field", [
    ({"cores": 5}, {}, "cores"), ({"memory_bytes": 5 << 30}, {}, "memory_gb"), ({}, {"nodes": 4}, "nodes"),
    ({"time_limit_s": 3600}, {"partition": "short"}, "hours"), ({}, {"partition": "nope"}, "partition"),
    ({}, {"account": "other"}, "account"), ({}, {"qos": "other"}, "qos"), ({"time_limit_s": 9000}, {"qos": "long"}, "hours"),
])  # fmt: skip
def test_what_can_never_run_is_said_before(
    place: site.Site, changes: dict[str, float], options: dict[str, str], field: str
) -> None:
    request = make_request(**changes)
    request = dataclasses.replace(request, options=dataclasses.replace(request.options, **options))
    with pytest.raises(Invalid) as refused:
        site.refuse_impossible(request, place.find_offers("alice", []))
    assert refused.value.field == field and refused.value.hint
    site.refuse_impossible(make_request(), place.find_offers("alice", []))


def make_request(**changes: float) -> submit.JobRequest:
    plain = submit.JobRequest("kabcdefghijk", "alice", 1, 1 << 20, 60, SINCE, script=b"#!/bin/sh\n")
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


# refusals


@pytest.mark.parametrize("name, error, field", [
    ("partition", Invalid, "partition"), ("account", Invalid, "account"), ("qos", Invalid, "qos"),
    ("node", Invalid, "nodes"), ("feature", Invalid, "constraint"), ("gres", Invalid, "gres"),
    ("memory", Invalid, "memory_gb"), ("time", Invalid, "hours"), ("cores", Invalid, "cores"), ("nodes", Invalid, "cores"),
    ("dependency", Invalid, "dependency"), ("array", Invalid, "array"), ("reservation", Invalid, "reservation"),
    ("begin", Invalid, "begin"), ("tasks", Invalid, ""), ("licence", Invalid, ""),
    ("script-shebang", Invalid, "script"), ("script-crlf", Invalid, "script"), ("script-empty", Invalid, "script"),
    ("script-nul", Invalid, "script"), ("reservation-access", Invalid, "reservation"),
])  # fmt: skip
def test_a_refused_submission_says_what_to_change(name: str, error: type[PorticoError], field: str) -> None:
    with pytest.raises(error) as refused:
        submit.parse_submitted(load(f"refused-{name}"))
    assert refused.value.field == field and refused.value.why.startswith("Slurm says: ")
    assert "sbatch:" not in refused.value.why and "\n" not in refused.value.why


@pytest.mark.parametrize("name, action, error", [
    ("cancel", Action.CANCEL, Forbidden), ("hold", Action.HOLD, Forbidden), ("hold-ended", Action.HOLD, Conflict),
    ("hold-unknown", Action.HOLD, NotFound), ("suspend", Action.SUSPEND, Forbidden), ("requeue", Action.REQUEUE, Forbidden),
])  # fmt: skip
def test_a_refused_action(name: str, action: Action, error: type[PorticoError]) -> None:
    with pytest.raises(error):
        control.act("53", action).parse(load(f"refused-{name}"))


def test_a_refused_extension_says_who_may() -> None:
    with pytest.raises(Forbidden, match="operators"):
        control.change_limit("53", 600).parse(load("refused-limit"))
    with pytest.raises(Conflict):
        control.change_limit("53", 600).parse(load("refused-limit-ended"))


def test_nothing_is_done_to_what_is_no_job_id() -> None:
    for wrong in ("", "-1", "1,2", "1 2", "all", "--user=root", "1_[1-3]", "1\n"):
        with pytest.raises(NotFound):
            control.act(wrong, Action.CANCEL)


@pytest.mark.parametrize("said", [
    "squeue: error: slurm_load_jobs error: Unable to contact slurm controller (connect failure)",
    "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation",
    "slurm_load_jobs error: Zero Bytes were transmitted or received",
    "sbatch: error: If munged is up, restart with --num-threads=10", "fatal: Could not establish a configuration source",
    "slurm_suspend error: Unexpected message received", "sacct: error: slurm_persist_conn_open: failed to send",
])  # fmt: skip
def test_away_is_unavailable(said: str) -> None:
    error = translate(Result(1, b"", said.encode()), "Asking")
    assert isinstance(error, Unavailable) and error.hint


def test_what_no_row_knows_is_shown() -> None:
    error = translate(Result(1, b"", b"sbatch: error: The moon is in \x1b[31mthe wrong house\n"), "Submitting the job")
    assert type(error) is Conflict and "The moon is in ?[31mthe wrong house" in error.why
    assert translate(Result(-9, timed_out=True), "Asking").code == "unavailable"
    assert all(row.error.code in BY_CODE and row.message for row in TABLE)


def test_an_error_with_status_0_is_no_empty_queue() -> None:
    with pytest.raises(Unavailable):
        queue.list_queue(MARK).parse(Result(0, b"", b"slurm_load_jobs error: Unable to contact slurm controller\n"))


# words


@pytest.mark.parametrize("word, reason, code, expected", [
    ("COMPLETED", "None", "0:0", (Reason.FINISHED, "")), ("TIMEOUT", "TimeLimit", "0:0", (Reason.TIME_LIMIT, "")),
    ("OUT_OF_MEMORY", "OutOfMemory", "0:125", (Reason.OUT_OF_MEMORY, "")), ("NODE_FAIL", "NodeDown", "0:0", (Reason.NODE_FAILED, "")),
    ("PREEMPTED", "None", "0:0", (Reason.PREEMPTED, "")), ("CANCELLED by 0", "", "0:15", (Reason.CANCELLED, "by uid 0")),
    ("CANCELLED", "DependencyNeverSatisfied", "", (Reason.CANCELLED, "a job that it depended on failed")),
    ("FAILED", "NonZeroExitCode", "137:0", (Reason.FAILED, "exit status 137, as after signal 9 (SIGKILL)")),
    ("FAILED", "", "0:11", (Reason.FAILED, "signal 11 (SIGSEGV)")), ("FAILED", "", "", (Reason.FAILED, "exit status unknown")),
    ("BOOT_FAIL", "", "", (Reason.NODE_FAILED, "it did not start up")),
])  # fmt: skip
def test_ends(word: str, reason: str, code: str, expected: tuple[Reason, str]) -> None:
    assert explain_end(word, reason, code) == expected


def test_waits_read_as_the_rest_of_a_sentence() -> None:
    assert describe_wait("(ReqNodeNotAvail, UnavailableNodes:n1)") == WAITS["ReqNodeNotAvail"]
    assert "cores" in describe_wait("AssocGrpCpuLimit") and "account" in describe_wait("AssocGrpCpuLimit")
    assert describe_wait("QOSMaxWallDurationPerJobLimit").startswith("nothing any more")
    # scontrol requeuehold, as 22.05's squeue says it
    assert is_held("job requeued in held state") and "release" in describe_wait("job requeued in held state")
    assert describe_wait("SomethingNew") == "what Slurm calls SomethingNew"
    assert not any(wait.endswith(".") or wait[0].isupper() for wait in WAITS.values())


@given(st.text(max_size=80))
def test_no_word_is_too_strange(word: str) -> None:
    parse_state(word)
    describe_wait(word)
    explain_end(word, word, word)
    for parse in (text.parse_time, text.parse_duration, text.parse_size, text.parse_tres, text.count_tasks, text.clean,
                  text.parse_int, text.expand_nodes, text.parse_minutes):  # fmt: skip
        parse(word)  # type: ignore[operator]
    history.parse_pairs(word)


def test_states_are_those_of_the_manual() -> None:
    assert parse_state("CANCELLED by 1003") is parse_state("CANCELLED+") is JobState.ENDED
    assert {state for state in STATES.values()} == set(JobState)


@pytest.mark.parametrize("said, seconds", [
    ("5:00", 300), ("1-00:00:00", 86400), ("1-12", 129600), ("1:02:03", 3723), ("30", 1800), ("00:00.005", 0.005),
    ("UNLIMITED", None), ("infinite", None), ("", None), ("Partition_Limit", None),
])  # fmt: skip
def test_durations(said: str, seconds: float | None) -> None:
    assert text.parse_duration(said) == seconds


def test_node_lists_and_tasks() -> None:
    assert text.expand_nodes("n[1-3,07],login,r[1-2]n[1-2]") == (
        "n1", "n2", "n3", "n07", "login", "r1n1", "r1n2", "r2n1", "r2n2",
    )  # fmt: skip
    assert text.expand_nodes("n[001-003]") == ("n001", "n002", "n003") and text.expand_nodes("(null)") == ()
    assert text.expand_nodes("n[1-99999999]") == ("n1-99999999",)
    assert [text.count_tasks(t) for t in ("7", "1-1000:3%5", "1,3,5-9", "0-9")] == [1, 334, 7, 10]
    assert text.render_minutes(1) == "1" and text.render_minutes(61) == "2" and text.render_minutes(3600) == "60"
    assert text.parse_time("1795225394") == text.parse_time("2026-11-21T01:43:14")
