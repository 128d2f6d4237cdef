"""The life of sessions with a real store: what people may do, what they are told, and what survives."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from desk import Desk, run, until
from machines import BrokerThatRefuses, FakeMachine, SlowAgent

from portico.accounts import Accounts
from portico.errors import Conflict, Forbidden, Invalid, NotFound, PorticoError, TooMany, Unavailable
from portico.model import Identity, Reason, Role, Session, SessionState, Via
from portico.sessions.record import parse_record, render_record
from portico.store import Transaction


def read_actions(desk: Desk) -> list[tuple[str, str]]:
    with desk.store.read() as tx:
        return [(entry.actor, entry.action) for entry in reversed(tx.list_audit(100))]


def test_from_queued_to_ready_to_stopped_with_news_and_audit(tmp_path: Path) -> None:
    async def test() -> None:
        desk = Desk(tmp_path)
        alice = desk.add_user("alice")
        with desk.sessions.changes.subscribe("alice") as news, desk.sessions.changes.subscribe("bob") as others:
            session = await desk.sessions.start(alice, "shell", hours=3, values={"size": "large"}, title="Mine")
            assert (session.state, session.hours, session.values) == (SessionState.QUEUED, 3, {"size": "large"})
            assert "alice" in desk.machine.accounts
            async with desk.keeping():
                ready = await desk.reach(alice, session, SessionState.READY)
                assert ready.started and ready.ends and (ready.ends - ready.started).total_seconds() == 3 * 3600
                await desk.sessions.stop(alice, session.id)
                ended = await desk.reach(alice, session, SessionState.ENDED)
            assert (ended.reason, ended.waiting_for) == (Reason.STOPPED, "")
            assert news.is_set() and not others.is_set()
        assert desk.cut == [f"session:{session.id}"]
        assert read_actions(desk) == [("alice", "session:start"), ("alice", "session:stop")]
        assert await desk.scheduler.query() == {}  # the spool keeps nothing of what people were told

    run(test())


def test_the_job_gets_its_form_and_limits(tmp_path: Path) -> None:
    async def test() -> None:
        desk = Desk(tmp_path)
        alice = desk.add_user("alice")
        session = await desk.sessions.start(alice, "pages", cores=2, values={"size": "large"})
        env = dict(desk.scheduler._spool.find(session.id).request.env)  # type: ignore[union-attr]
        assert env["PORTICO_FORM_SIZE"] == "large"
        assert env["PORTICO_BASE_PATH"] == f"/s/{session.id}/"
        assert (env["PORTICO_CORES"], env["PORTICO_MEMORY_BYTES"]) == ("2", "1000000000")

    run(test())


@pytest.mark.parametrize(
    ("request_", "error", "field", "words"),
    [
        ({"cores": 5}, Invalid, "cores", "offers 4 cores in all"),
        ({"memory_gb": 9}, Invalid, "memory_gb", "offers 8.0 GB of memory in all"),
        ({"cores": 0.1}, Invalid, "cores", "from 0.5 to 4"),
        ({"cores": float("nan")}, Invalid, "cores", "from"),
        ({"memory_gb": float("inf")}, Invalid, "memory_gb", "from"),
        ({"hours": 25}, Invalid, "hours", "from 0.25 to 24"),
        ({"hours": -1}, Invalid, "hours", "from"),
        ({"values": {"size": "huge"}}, Invalid, "size", "one of small, large"),
        ({"values": {"other": "x"}}, Invalid, "other", "no field"),
        ({"title": "a\nb"}, Invalid, "title", "one line"),
        ({"title": "\ud800"}, Invalid, "title", "one line"),
        ({"app_id": "none"}, NotFound, "", "no app"),
    ],
)
def test_what_can_never_be_is_refused_at_once(
    tmp_path: Path, request_: dict[str, Any], error: type[PorticoError], field: str, words: str
) -> None:
    async def test() -> None:
        desk = Desk(tmp_path)
        alice = desk.add_user("alice")
        with pytest.raises(error, match=words) as refusal:
            await desk.sessions.start(alice, **{"app_id": "shell", **request_})
        assert refusal.value.field == field
        assert (await desk.sessions.list_sessions(alice), desk.machine.jobs) == ([], {})

    run(test())


def test_two_at_once_do_not_pass_the_limit(tmp_path: Path) -> None:
    async def test() -> None:
        desk = Desk(tmp_path, max_sessions_per_user=2)
        alice, bob = desk.add_user("alice"), desk.add_user("bob")
        tries = (desk.sessions.start(who, "shell") for who in (alice, alice, alice, bob))
        results = await asyncio.gather(*tries, return_exceptions=True)
        kinds = [type(result) for result in results]
        assert sorted(kinds[:3], key=str) == sorted([Session, Session, TooMany], key=str)  # whichever came last
        assert kinds[3] is Session

    run(test())


def test_a_start_that_fails_leaves_nothing(tmp_path: Path) -> None:
    class FullHome(FakeMachine):
        async def _prepare(self, user_name: str, args: dict[str, Any]) -> dict[str, Any]:
            await super()._prepare(user_name, args)
            raise Unavailable("Your home folder is full.")

    async def test() -> None:
        desk = Desk(tmp_path, FullHome())
        alice = desk.add_user("alice")
        with pytest.raises(Unavailable, match="home folder is full"):
            await desk.sessions.start(alice, "shell")
        assert (await desk.sessions.list_sessions(alice), desk.machine.jobs) == ([], {})

    run(test())


def test_a_queue_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        desk = Desk(tmp_path)
        alice = desk.add_user("alice")

        def fail(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("portico.schedulers.spool.os.fsync", fail)
        with pytest.raises(Unavailable):
            await desk.sessions.start(alice, "shell")
        assert (await desk.sessions.list_sessions(alice), desk.machine.jobs) == ([], {})

    run(test())


def test_others_sessions_are_not_there_and_admins_may_only_stop_them(tmp_path: Path) -> None:
    async def test() -> None:
        desk = Desk(tmp_path)
        alice, bob, carol = desk.add_user("alice"), desk.add_user("bob"), desk.add_user("carol", Role.ADMIN)
        sessions = desk.sessions
        async with desk.keeping():
            session = await desk.start_ready(alice)
            share = await sessions.share(alice, session.id, "bob")
            for denied in (
                lambda: sessions.get_session(bob, session.id),
                lambda: sessions.stop(bob, session.id),
                lambda: sessions.extend(bob, session.id),
                lambda: sessions.forget(bob, session.id),
                lambda: sessions.read_log(bob, session.id),
                lambda: sessions.share(bob, session.id, "carol"),
                lambda: sessions.unshare(bob, session.id, share.id),
                lambda: sessions.list_shares(bob, session.id),
            ):
                with pytest.raises(NotFound, match="no such session"):
                    await denied()
            for denied in (
                lambda: sessions.extend(carol, session.id),
                lambda: sessions.forget(carol, session.id),
                lambda: sessions.read_log(carol, session.id),
                lambda: sessions.share(carol, session.id, "bob"),
                lambda: sessions.unshare(carol, session.id, share.id),
                lambda: sessions.list_shares(carol, session.id),
            ):
                with pytest.raises(Forbidden):
                    await denied()
            with pytest.raises(Forbidden):
                await sessions.list_sessions(bob, everyone=True)
            with pytest.raises(Forbidden):
                await sessions.stop_all_of(bob, "alice")
            assert [s.id for s in await sessions.list_sessions(carol, everyone=True)] == [session.id]
            await sessions.stop(carol, session.id)
            ended = await desk.reach(alice, session, SessionState.ENDED)
        assert ended.reason is Reason.STOPPED_BY_ADMIN
        assert ("carol", "session:stop") in read_actions(desk)

    run(test())


def test_root_of_the_machine_has_no_sessions(tmp_path: Path) -> None:
    async def test() -> None:
        with pytest.raises(Conflict):
            await Desk(tmp_path).sessions.start(Identity(0, "root", Role.ADMIN, Via.SOCKET), "shell")

    run(test())


def test_extending_ends_at_the_limit(tmp_path: Path) -> None:
    async def test() -> None:
        desk = Desk(tmp_path, extend_hours=4.0, max_extended_hours=9.0)
        alice = desk.add_user("alice")
        queued = await desk.sessions.start(alice, "shell", hours=2)
        with pytest.raises(Conflict, match="Only what runs"):
            await desk.sessions.extend(alice, queued.id)
        async with desk.keeping():
            session = await desk.reach(alice, queued, SessionState.READY)
            hours = []
            for _ in range(2):
                session = await desk.sessions.extend(alice, session.id)
                assert session.started and session.ends
                hours.append((session.ends - session.started).total_seconds() / 3600)
            assert hours == [6, 9]
            assert desk.machine.jobs[session.id].deadline == session.ends.timestamp() if session.ends else False
            with pytest.raises(Conflict, match="9 hours"):
                await desk.sessions.extend(alice, session.id)

    run(test())


def test_never_ready(tmp_path: Path) -> None:
    async def test() -> None:
        desk = Desk(tmp_path)
        alice = desk.add_user("alice")
        session = await desk.sessions.start(alice, "shell")
        desk.machine.jobs[session.id].ready = False
        async with desk.keeping():
            await desk.reach(alice, session, SessionState.STARTING)
            desk.clock.advance(seconds=6)
            assert (await desk.reach(alice, session, SessionState.ENDED)).reason is Reason.NEVER_READY

    run(test())


def test_a_share_lets_look_until_it_is_taken_back_or_the_end(tmp_path: Path) -> None:
    async def test() -> None:
        desk = Desk(tmp_path)
        alice, bob = desk.add_user("alice"), desk.add_user("bob")
        async with desk.keeping():
            session, pages = await desk.start_ready(alice, "screen"), await desk.start_ready(alice, "pages")
            for viewer, error in (("alice", Invalid), ("nobody", Invalid)):
                with pytest.raises(error):
                    await desk.sessions.share(alice, session.id, viewer)
            with pytest.raises(Conflict, match="Only desktops and terminals"):
                await desk.sessions.share(alice, pages.id, "bob")
            share = await desk.sessions.share(alice, session.id, "bob")
            with pytest.raises(Conflict, match="already"):
                await desk.sessions.share(alice, session.id, "bob")
            assert [s.id for _, s in await desk.sessions.list_shared_with(bob)] == [session.id]
            await desk.sessions.unshare(alice, session.id, share.id)
            assert desk.cut == [f"share:{share.id}"]
            assert await desk.sessions.list_shared_with(bob) == []
            await desk.sessions.share(alice, session.id, "bob")
            await desk.sessions.stop(alice, session.id)
            await desk.reach(alice, session, SessionState.ENDED)
            assert await desk.sessions.list_shared_with(bob) == []
            with pytest.raises(NotFound):
                await desk.sessions.control.view(bob, session.id)

    run(test())


def test_a_restart_finds_all_again(tmp_path: Path) -> None:
    async def test() -> None:
        desk = Desk(tmp_path)
        alice = desk.add_user("alice")
        async with desk.keeping():
            running = await desk.start_ready(alice, cores=4)
            ends_by_itself = await desk.sessions.start(alice, "shell", cores=4)
        desk.begin()
        async with desk.keeping():
            assert (await desk.sessions.get_session(alice, running.id)).state is SessionState.READY
            desk.machine.end(running.id, 3)
            ended = await desk.reach(alice, running, SessionState.ENDED)
            assert (ended.reason, ended.detail) == (Reason.FAILED, "exit status 3")
            await desk.reach(alice, ends_by_itself, SessionState.READY)
        assert [job.starts for job in desk.machine.jobs.values()] == [1, 1]

    run(test())


def test_a_stop_that_was_said_and_not_done_is_done_after_the_restart(tmp_path: Path) -> None:
    async def test() -> None:
        desk = Desk(tmp_path)
        alice = desk.add_user("alice")
        async with desk.keeping():
            session = await desk.start_ready(alice)

        async def die(*_: object) -> None:
            raise asyncio.CancelledError

        desk.scheduler.cancel = die  # type: ignore[method-assign]
        with pytest.raises(asyncio.CancelledError):
            await desk.sessions.stop(alice, session.id)
        desk.begin()
        async with desk.keeping():
            assert (await desk.reach(alice, session, SessionState.ENDED)).reason is Reason.STOPPED

    run(test())


@pytest.mark.parametrize("lost", ["spool", "database", "both"])
@pytest.mark.parametrize("has_cells", [True, False])
def test_what_runs_outlives_what_knows_of_it(
    tmp_path: Path, lost: str, has_cells: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("portico.sessions.local_place.is_in_cell", lambda pid, key: True)
    monkeypatch.setattr("portico.sessions.keeper.SEARCH_S", 0.05)

    async def test() -> None:
        desk = Desk(tmp_path, FakeMachine(has_cells=has_cells))
        alice = desk.add_user("alice")
        async with desk.keeping():
            running = await desk.start_ready(alice, "screen", cores=3, title="Mine")
            queued = await desk.sessions.start(alice, "shell", cores=3)
        desk.store.close()
        for path in [
            *(tmp_path.glob("local/*") if lost != "database" else ()),
            *(tmp_path.glob("portico.db*") if lost != "spool" else ()),
        ]:
            path.unlink()
        desk.begin()
        async with desk.keeping():
            await asyncio.sleep(0.2)
            alice = desk.add_user("alice")

            async def found() -> Any:
                ids = {session.id for session in await desk.sessions.list_sessions(alice)}
                return ids == ({running.id, queued.id} if lost != "both" else {running.id})

            await until(found)
            again = await desk.reach(alice, running, SessionState.READY)
            assert (again.title, again.cores, again.reach, again.ends) == (
                "Mine",
                3,
                running.reach,
                running.ends,
            )
            if lost != "both":
                assert (await desk.sessions.get_session(alice, queued.id)).state is SessionState.QUEUED
            assert desk.machine.jobs[running.id].starts == 1

    run(test())


@pytest.mark.parametrize(
    "change",
    [
        {"id": "kaaaaaaaaaaa"},
        {"user_name": "bob"},
        {"cores": float("nan")},
        {"memory_bytes": -1},
        {"hours": 1e9},
        {"created": "2026-01-01T00:00:00"},
        {"created": 5},
        {"reach": "telnet"},
        {"values": 3},
        {"cores": None},
    ],
)
def test_a_record_that_its_owner_has_forged_speaks_of_nothing(change: dict[str, Any]) -> None:
    session = Session("k00000000001", "alice", "shell", "t", "local", "pty", 1, 10**9, 1)  # type: ignore[arg-type]
    record = {**render_record_of(session), **change}
    with pytest.raises((KeyError, TypeError, ValueError, OverflowError)):
        parse_record(record, session.id, "alice")


def render_record_of(session: Session) -> dict[str, Any]:
    from dataclasses import replace

    from portico.model import Reach

    return render_record(replace(session, reach=Reach.PTY))


def test_a_record_comes_back_as_it_went() -> None:
    from portico.model import Reach

    session = Session("k00000000001", "alice", "shell", "t", "local", Reach.PTY, 1, 10**9, 1, {"a": "b"})
    assert parse_record(render_record(session), session.id, "alice") == session


def test_one_session_that_cannot_be_followed_stops_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        desk = Desk(tmp_path)
        alice, bob = desk.add_user("alice"), desk.add_user("bob")
        async with desk.keeping():
            hers, his = await desk.start_ready(alice), await desk.start_ready(bob)
            save = Transaction.save_session

            def fail(tx: Transaction, session: Session) -> None:
                if session.id == hers.id:
                    raise RuntimeError("a defect")
                save(tx, session)

            monkeypatch.setattr(Transaction, "save_session", fail)
            desk.machine.end(hers.id)
            desk.machine.end(his.id)
            await desk.reach(bob, his, SessionState.ENDED)
            monkeypatch.setattr(Transaction, "save_session", save)
            assert (await desk.reach(alice, hers, SessionState.ENDED)).reason is Reason.FINISHED

    run(test())


def test_a_locked_database_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sqlite3

    monkeypatch.setattr("portico.store.store.BUSY_TIMEOUT_S", 0.05)

    async def test() -> None:
        desk = Desk(tmp_path)
        alice = desk.add_user("alice")
        async with desk.keeping():
            session = await desk.start_ready(alice)
            lock = sqlite3.connect(tmp_path / "portico.db", isolation_level=None)
            lock.execute("BEGIN IMMEDIATE")
            desk.machine.end(session.id)
            with pytest.raises(Unavailable, match="busy"):
                await desk.sessions.start(alice, "shell")
            await asyncio.sleep(0.3)
            assert (await desk.sessions.get_session(alice, session.id)).state is SessionState.READY
            lock.execute("ROLLBACK")
            lock.close()
            assert (await desk.reach(alice, session, SessionState.ENDED)).reason is Reason.FINISHED
        assert list(desk.machine.jobs) == [session.id]

    run(test())


def test_a_hanging_agent_holds_up_only_its_user(tmp_path: Path) -> None:
    async def test() -> None:
        desk = Desk(tmp_path, SlowAgent("alice"))
        alice, bob = desk.add_user("alice"), desk.add_user("bob")
        hers = asyncio.create_task(desk.sessions.start(alice, "shell"))
        async with desk.keeping():
            await asyncio.sleep(0)
            session = await asyncio.wait_for(desk.start_ready(bob), 3)
            await asyncio.wait_for(desk.sessions.stop(bob, session.id), 1)
            await asyncio.wait_for(desk.reach(bob, session, SessionState.ENDED), 3)
        hers.cancel()

    run(test())


def test_a_refused_start_tells_why(tmp_path: Path) -> None:
    async def test() -> None:
        desk = Desk(tmp_path, BrokerThatRefuses(Conflict("The account is not for us.")))
        alice = desk.add_user("alice")
        async with desk.keeping():
            session = await desk.sessions.start(alice, "shell")
            ended = await desk.reach(alice, session, SessionState.ENDED)
        assert (ended.reason, ended.detail) == (Reason.NOT_STARTED, "The account is not for us.")

    run(test())


def test_what_ended_long_ago_is_pruned_with_its_folder(tmp_path: Path) -> None:
    async def test() -> None:
        desk = Desk(tmp_path, keep_ended_days=7.0)
        alice = desk.add_user("alice")
        async with desk.keeping():
            old = await desk.start_ready(alice)
            desk.machine.end(old.id)
            await desk.reach(alice, old, SessionState.ENDED)
            desk.clock.advance(days=8)
            new = await desk.start_ready(alice, hours=1)
        desk.begin()
        async with desk.keeping():

            async def pruned() -> bool:
                return [s.id for s in await desk.sessions.list_sessions(alice)] == [new.id]

            await until(pruned)
        assert list(desk.machine.jobs) == [new.id]

    run(test())


def test_forgetting_needs_an_end(tmp_path: Path) -> None:
    async def test() -> None:
        desk = Desk(tmp_path)
        alice = desk.add_user("alice")
        async with desk.keeping():
            session = await desk.start_ready(alice)
            with pytest.raises(Conflict, match="still runs"):
                await desk.sessions.forget(alice, session.id)
            desk.machine.end(session.id)
            await desk.reach(alice, session, SessionState.ENDED)
            await desk.sessions.forget(alice, session.id)
        assert (await desk.sessions.list_sessions(alice), desk.machine.jobs) == ([], {})

    run(test())


def test_every_session_of_somebody_who_leaves_is_stopped(tmp_path: Path) -> None:
    async def test() -> None:
        desk = Desk(tmp_path)
        alice, carol = desk.add_user("alice"), desk.add_user("carol", Role.ADMIN)
        accounts: Accounts = desk.accounts
        async with desk.keeping():
            await desk.start_ready(alice, cores=4)
            await desk.sessions.start(alice, "shell", cores=4)
            await desk.sessions.stop_all_of(carol, "alice")
            states = {s.state for s in await desk.sessions.list_sessions(alice)}
        assert states == {SessionState.ENDED} and accounts.get_user("alice")

    run(test())


def test_the_keeper_ends_when_it_is_told_though_there_is_news(tmp_path: Path) -> None:
    async def test() -> None:
        desk = Desk(tmp_path)
        for _ in range(20):
            task = asyncio.create_task(desk.sessions.run())
            await asyncio.sleep(0.02)
            desk.sessions._keepers["local"].wake()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(task, 1)
            desk.begin()

    run(test())


def test_streams_of_a_sign_in_that_ran_out_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portico.sessions.housekeeper.CUT_S", 0.0)

    async def test() -> None:
        desk = Desk(tmp_path, sign_in_hours=12.0)
        alice = desk.add_user("alice")
        async with desk.keeping():
            await desk.start_ready(alice)
            assert desk.cut == []
            desk.clock.advance(hours=13)

            async def cut() -> bool:
                return f"sign-in:{alice.sign_in_id}" in desk.cut

            await until(cut)

    run(test())
