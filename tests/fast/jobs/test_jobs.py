"""Jobs: who sees and does what, what a form becomes, and what is drawn. The cluster is a table."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from desk import Desk, until
from table_cluster import FilesRunner, make_cluster

from portico.cli.jobs import find_new
from portico.errors import Conflict, Forbidden, Invalid, NotFound, Unavailable
from portico.jobs import Action, Column, JobFilter, JobOptions, Jobs, JobState, Templates, Wanted
from portico.jobs import files as job_files
from portico.jobs.samples import KEPT, Sample, Samples, draw_line
from portico.model import Identity, NoticeKind, Reason, Role, Via
from portico.schedulers.clusters import Cluster
from portico.schedulers.slurm.command import Result
from portico.sessions.changes import Changes
from portico.sessions.rows import Rows

T = TypeVar("T")
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SCRIPT = "#!/bin/sh\nhostname\n"


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, 30))


class Office:
    """A desk with a cluster that takes jobs."""

    def __init__(self, folder: Path) -> None:
        self.desk = Desk(folder)
        self.files = FilesRunner()
        cluster, self.slurm = make_cluster()
        rows = Rows(self.desk.store, Changes())
        self.jobs = Jobs(
            rows, self.desk.machine, self.files, [cluster], self.desk.sessions.notices, clock=self.desk.clock
        )  # type: ignore[arg-type]
        self.alice, self.bob = self.desk.add_user("alice"), self.desk.add_user("bob")
        self.admin = self.desk.add_user("carol", Role.ADMIN)

    def list_audit(self) -> list[tuple[str, str, str]]:
        with self.desk.store.read() as tx:
            return [(one.actor, one.action, one.target) for one in tx.list_audit(100)]


@pytest.fixture
def office(tmp_path: Path) -> Office:
    return Office(tmp_path)


def test_one_sees_ones_own_and_an_admin_everyones(office: Office) -> None:
    mine, his = office.slurm.add("alice", name="mine"), office.slurm.add("bob", name="his")
    found = run(office.jobs.list_jobs(office.alice))
    assert [job.id for job in found.page.jobs] == [mine.id]
    with pytest.raises(Forbidden):
        run(office.jobs.list_jobs(office.alice, everyone=True))
    everyone = run(office.jobs.list_jobs(office.admin, column=Column.NAME, descending=False, everyone=True))
    assert [job.id for job in everyone.page.jobs] == [his.id, mine.id]
    only = run(office.jobs.list_jobs(office.admin, wanted=JobFilter(text="HIS"), everyone=True))
    assert [job.id for job in only.page.jobs] == [his.id]
    # A filter for another user's jobs shows nobody's but one's own.
    sly = run(office.jobs.list_jobs(office.alice, wanted=JobFilter(user_name="bob")))
    assert [job.id for job in sly.page.jobs] == [mine.id]


def test_anothers_job_is_as_if_it_were_not_there(office: Office) -> None:
    job = office.slurm.add("alice")
    for work in (
        lambda: office.jobs.view(office.bob, "demo", job.id),
        lambda: office.jobs.read_script(office.bob, "demo", job.id),
        lambda: office.jobs.tail(office.bob, "demo", job.id),
        lambda: office.jobs.act(office.bob, "demo", job.id, Action.CANCEL),
        lambda: office.jobs.change_limit(office.bob, "demo", job.id, 2),
    ):
        with pytest.raises(NotFound, match="no such job"):
            run(work())
    assert office.slurm.done == [] and office.files.asked == []


def test_an_admin_cancels_and_looks_not_inside(office: Office) -> None:
    job = office.slurm.add("alice")
    view = run(office.jobs.view(office.admin, "demo", job.id))
    assert view.details is None and view.actions == (Action.CANCEL,)
    run(office.jobs.act(office.admin, "demo", job.id, Action.CANCEL))
    assert office.slurm.done == [("alice", job.id, "cancel")], "as the job's own user"
    with pytest.raises(Forbidden):
        run(office.jobs.act(office.admin, "demo", job.id, Action.HOLD))
    for work in (office.jobs.tail, office.jobs.read_script):
        with pytest.raises(Forbidden):
            run(work(office.admin, "demo", job.id))
    assert ("carol", "job:cancel", job.id) in office.list_audit()


def test_what_is_done_is_written_down_before_and_a_refusal_after(office: Office) -> None:
    job = office.slurm.add("alice", JobState.ENDED)
    with pytest.raises(Conflict):
        run(office.jobs.act(office.alice, "demo", job.id, Action.CANCEL))
    with office.desk.store.read() as tx:
        first, second = [one.detail for one in reversed(tx.list_audit(100)) if one.action == "job:cancel"]
    assert first == "demo, alice" and second == "demo, alice, refused: The job has ended already."


def test_a_job_that_the_queue_has_forgotten(office: Office) -> None:
    job = office.slurm.add("alice", JobState.ENDED)
    office.slurm.forget_job(job.id)
    for who in (office.alice, office.admin):
        assert run(office.jobs.view(who, "demo", job.id)).job == job
    for who, job_id in ((office.bob, job.id), (office.alice, "999")):
        with pytest.raises(NotFound, match="no such job"):
            run(office.jobs.view(who, "demo", job_id))


def test_a_job_tells_of_its_end_once_if_it_was_asked_to(office: Office) -> None:
    async def test() -> None:
        for notify, name in ((True, "told"), (False, "quiet"), (True, "stopped")):
            await office.jobs.submit(office.alice, "", Wanted(SCRIPT, options=JobOptions(name=name), notify=notify))
        for name, reason, detail in (
            ("told", Reason.FAILED, "exit status 3"), ("quiet", Reason.FAILED, ""), ("stopped", Reason.STOPPED, ""),
        ):  # fmt: skip
            office.slurm.end(name, reason, detail)
        watch = asyncio.create_task(office.jobs.run())

        async def is_forgotten() -> bool:
            return not office.slurm.requests

        await until(is_forgotten)
        await office.jobs._tidy(office.jobs.get_cluster())
        watch.cancel()
        (notice,) = await office.desk.sessions.notices.list_notices(office.alice)
        (job_id,) = [job.id for job in office.slurm.jobs.values() if job.name == "told"]
        assert notice.path == f"/jobs/demo/{job_id}" and notice.kind is NoticeKind.ENDED
        assert notice.text == f"Job {job_id} (told) has ended. Its program ended with an error. (exit status 3)"

    run(test())


def test_templates_of_ours_and_of_the_site(tmp_path: Path) -> None:
    assert [one.name for one in Templates().list()] == ["array", "parallel", "serial"]
    assert Templates().get("serial").title == "One program on one core."
    (tmp_path / "serial.sh").write_text("#!/bin/sh\n#SBATCH -n 1\n# Ours\ntrue\n")
    (tmp_path / "a b.sh").write_text("#!/bin/sh\n")
    (tmp_path / "bytes.sh").write_bytes(b"#!/bin/sh\n\xff")
    (tmp_path / "large.sh").write_bytes(b"#" * 300_000)
    (tmp_path / "gone.sh").symlink_to("/nonexistent")
    templates = Templates([tmp_path, tmp_path / "nowhere"])
    assert [one.name for one in templates.list()] == ["array", "parallel", "serial"]
    assert templates.get("serial").title == "Ours"
    for name in ("nothing", "../serial", ""):
        with pytest.raises(NotFound):
            templates.get(name)


def test_submitting(office: Office) -> None:
    options = JobOptions(name="first", partition="batch", array="1-3")
    job_id = run(office.jobs.submit(office.alice, "", Wanted(SCRIPT.replace("\n", "\r\n"), "", 2, 0.5, 1.5, options)))
    (request,) = office.slurm.requests.values()
    assert (request.user_name, request.cores, request.memory_bytes, request.time_limit_s) == (
        "alice", 2, 500_000_000, 5400,
    )  # fmt: skip
    assert request.batch and request.script == SCRIPT.encode() and request.options == options
    assert job_id == next(job.id for job in office.slurm.jobs.values() if job.key == request.key)
    assert ("alice", "job:submit", request.key) in office.list_audit()


def test_a_file_is_read_as_its_user(office: Office) -> None:
    office.files.files["/home/alice/job.sh"] = SCRIPT.encode()
    run(office.jobs.submit(office.alice, "demo", Wanted(path="/home/alice/job.sh")))
    assert office.files.asked == [("alice", ("cat", "--", "/home/alice/job.sh"))]
    for wanted in (Wanted(), Wanted(SCRIPT, "/home/alice/job.sh"), Wanted(path="job.sh"), Wanted(path="/a\nb")):
        with pytest.raises(Invalid):
            run(office.jobs.submit(office.alice, "demo", wanted))
    with pytest.raises(NotFound, match="nothing to read"):
        run(office.jobs.submit(office.alice, "demo", Wanted(path="/etc/shadow")))


@pytest.mark.parametrize("field", ["cores", "memory_gb", "hours"])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf")])
def test_no_number_is_too_strange(office: Office, field: str, value: float) -> None:
    with pytest.raises(Invalid) as caught:
        run(office.jobs.submit(office.alice, "demo", Wanted(SCRIPT, **{field: value})))
    assert caught.value.field == field and not office.slurm.requests


def test_a_refusal_is_told_and_root_is_nobodys_user(office: Office) -> None:
    office.slurm.refuses = Invalid("No such partition.", field="partition")
    with pytest.raises(Invalid, match="partition"):
        run(office.jobs.submit(office.alice, "demo", Wanted(SCRIPT)))
    root = Identity(0, "root", Role.ADMIN, Via.SOCKET)
    with pytest.raises(Conflict):
        run(office.jobs.submit(root, "demo", Wanted(SCRIPT)))


def test_what_can_be_done_depends_on_the_state(office: Office) -> None:
    def find(**more: Any) -> tuple[Action, ...]:
        job = office.slurm.add("alice", **more)
        return run(office.jobs.view(office.alice, "demo", job.id)).actions

    assert find(state=JobState.QUEUED) == (Action.CANCEL, Action.HOLD)
    assert find(state=JobState.QUEUED, held=True) == (Action.CANCEL, Action.RELEASE)
    assert find(state=JobState.RUNNING) == (Action.CANCEL, Action.SUSPEND, Action.REQUEUE)
    assert find(state=JobState.RUNNING, word="SUSPENDED") == (Action.CANCEL, Action.RESUME, Action.REQUEUE)
    assert find(state=JobState.ENDED) == ()


def test_the_end_of_the_output(office: Office) -> None:
    job = office.slurm.add("alice")
    office.files.files[f"/home/{job.id}.out"] = b"one\ntwo\n\xff\xfethree\n"
    text = run(office.jobs.tail(office.alice, "demo", job.id, lines=2))
    assert text == "two\n��three"
    with pytest.raises(NotFound, match="nothing to read"):
        run(office.jobs.tail(office.alice, "demo", job.id, error=True))
    assert all(user == "alice" for user, _ in office.files.asked)


def test_a_file_that_never_ends_is_given_up() -> None:
    command = job_files.tail("/dev/zero", 10)
    assert command.timeout_s <= 5 and command.limit_bytes <= 64 * 1024
    with pytest.raises(Unavailable, match="took too long"):
        command.parse(Result(-9, b"", b"", timed_out=True))
    with pytest.raises(Invalid, match="MB"):
        job_files.read("/dev/zero").parse(Result(-9, b"", b"", timed_out=True, cut=True))


def test_history_knows_its_bounds(office: Office) -> None:
    office.slurm.add("alice", JobState.ENDED)
    office.slurm.add("bob", JobState.ENDED)
    assert len(run(office.jobs.list_history(office.alice, "demo", 7))) == 1
    for days in (0, -1, 91, float("nan")):
        with pytest.raises(Invalid):
            run(office.jobs.list_history(office.alice, "demo", days))


def test_there_is_no_other_cluster(office: Office) -> None:
    for name in ("local", "nowhere", "../x"):
        with pytest.raises(NotFound):
            run(office.jobs.list_jobs(office.alice, name))


def test_lines_are_drawn_to_their_top() -> None:
    times = [START, START + timedelta(minutes=1), START + timedelta(minutes=10)]
    assert draw_line(list(zip(times, [0, 5, 10], strict=True)), 10, 100, 50) == "0.0,50.0 10.0,25.0 100.0,0.0"
    assert draw_line([(START, 1)], 10) == draw_line([(START, 1), (START, 2)], 0) == ""


def test_the_drawn_day_outlives_the_portal(tmp_path: Path) -> None:
    path = tmp_path / "samples" / "big.jsonl"
    kept = Samples(path)
    for minute in range(0, 3 * KEPT, 2):
        kept.add(Sample(START + timedelta(minutes=minute), 12, minute % 12, 1, minute))
    with open(path, "a") as file:
        file.write('["2026-01-01T00:00:00", 1, 1, 1, 1]\nrubbish\n[1]\n["2026')  # a time without zone, a torn line
    again = Samples(path)
    assert again.list() == kept.list() and len(again.list()) == KEPT // 2
    for minute in range(3 * KEPT):
        again.add(Sample(START + timedelta(days=9, minutes=minute), 12, 1, 1, 1))
    assert len(path.read_text().splitlines()) <= 2 * KEPT and len(again.list()) == KEPT
    path.unlink()
    path.mkdir()  # a disk that does not take it
    again.add(Sample(START + timedelta(days=20), 12, 1, 1, 1))
    assert len(again.list()) == 1


@pytest.mark.parametrize(
    ("before", "after", "new"),
    [("a\nb", "a\nb\nc", "c"), ("", "a", "a"), ("a", "a", ""), ("a\nb", "x\ny", "x\ny"), ("a\nb", "b", "b")],
)
def test_what_is_new_in_a_tail(before: str, after: str, new: str) -> None:
    assert find_new(before, after) == new


def test_this_machine_takes_jobs_behind_the_clusters_and_keeps_their_history(tmp_path: Path) -> None:
    office = Office(tmp_path)
    local, (demo, _) = Cluster("local", "This machine", "local", office.desk.scheduler), make_cluster()
    rows = Rows(office.desk.store, Changes())
    jobs = Jobs(
        rows, office.desk.machine, office.files, [local, demo], office.desk.sessions.notices, clock=office.desk.clock
    )  # type: ignore[arg-type]
    assert [one.name for one in jobs.clusters] == ["demo", "local"] and jobs.get_cluster().name == "demo"

    async def test() -> None:
        job_id = await jobs.submit(office.alice, "local", Wanted(SCRIPT, options=JobOptions(name="mine")))
        view = await jobs.view(office.alice, "local", job_id)
        assert (view.job.state, view.actions, view.can_change_limit) == (JobState.RUNNING, (Action.CANCEL,), True)
        assert view.details and view.details.output == f"/home/alice/portico-{job_id}.out"
        with pytest.raises(NotFound):
            await jobs.view(office.bob, "local", job_id)
        held = await jobs.submit(office.alice, "local", Wanted(SCRIPT, options=JobOptions(held=True)))
        assert (await jobs.view(office.alice, "local", held)).actions == (Action.CANCEL, Action.RELEASE)
        await jobs.act(office.admin, "local", held, Action.CANCEL)
        office.desk.machine.end(job_id)
        await office.desk.scheduler.query()
        await jobs._tidy(local)
        assert await office.desk.scheduler.query() == {}
        assert {job.id for job in await jobs.list_history(office.alice, "local")} == {job_id, held}
        assert await jobs.list_history(office.bob, "local") == []
        office.desk.clock.advance(hours=1)  # long after it left the table
        assert (await jobs.view(office.alice, "local", job_id)).job.name == "mine"
        assert await jobs.read_script(office.alice, "local", job_id) == SCRIPT

    run(test())
