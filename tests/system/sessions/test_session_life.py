"""Sessions with the real broker, agents and POSIX users: their life, its limits, and what survives what."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

import pytest
from brokered import Brokered, as_admin, find_reason_to_skip, wait_for

from portico.errors import Conflict, Unavailable
from portico.model import Reason, SessionState
from portico.schedulers.protocol import Capacity

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(find_reason_to_skip()), reason=find_reason_to_skip() or "can run"),
]

CAPACITY = Capacity(8, 4 * 10**9)
Test = Callable[[Brokered], Awaitable[None]]


def run(test: Test, capacity: Capacity = CAPACITY, **settings: Any) -> None:
    async def main() -> None:
        place = Brokered(capacity, **settings)
        place.start_broker()
        await place.start_portal()
        try:
            await asyncio.wait_for(test(place), 120)
        finally:
            await place.destroy()

    asyncio.run(main())


def test_a_terminal_of_two_users_is_ready_and_is_theirs() -> None:
    async def test(place: Brokered) -> None:
        alice, bob = place.add_user("alice"), place.add_user("bob")
        one, two = await place.sessions.start(alice, "terminal"), await place.sessions.start(bob, "terminal")
        ready = await place.wait(alice, one, SessionState.READY)
        await place.wait(bob, two, SessionState.READY)
        assert ready.started and ready.ends and ready.ready
        assert (ready.ready - ready.started).total_seconds() < 3

    run(test)


def test_when_full_the_next_ones_wait_and_start_in_order() -> None:
    async def test(place: Brokered) -> None:
        alice, bob = place.add_user("alice"), place.add_user("bob")
        place.add_app("work", "listen sleep 1000")
        first = await place.sessions.start(alice, "work", cores=2)
        await place.wait(alice, first, SessionState.READY)
        large = await place.sessions.start(alice, "work", cores=2)
        small = await place.sessions.start(bob, "work", cores=1)
        last = await place.sessions.start(bob, "work", cores=1)

        async def told() -> bool:
            found = {s.id: s for s in await place.sessions.list_sessions(alice)}
            return found[large.id].waiting_for == "1 more core to become free"

        await wait_for(told)
        assert (await place.sessions.get_session(bob, small.id)).state is SessionState.QUEUED  # nobody overtakes
        await place.sessions.stop(bob, last.id)  # a queued one simply leaves
        assert (await place.wait(bob, last, SessionState.ENDED)).reason is Reason.STOPPED
        await place.sessions.stop(alice, first.id)
        await place.wait(alice, first, SessionState.ENDED)
        one = await place.wait(alice, large, SessionState.READY)
        two = await place.wait(bob, small, SessionState.READY)
        assert one.started and two.started and one.started <= two.started
        assert (await place.sessions.get_capacity()).cores_held == 3

    run(test, Capacity(3, 4 * 10**9))


def test_the_same_processes_are_found_again_after_everything_was_killed() -> None:
    async def test(place: Brokered) -> None:
        alice = place.add_user("alice")
        place.add_app("work", 'echo $$ >"$HOME/pid"; listen sleep 1000')
        running = await place.sessions.start(alice, "work", cores=5)
        await place.wait(alice, running, SessionState.READY)
        waiting = await place.sessions.start(alice, "work", cores=5)
        pid = (place.find_home(alice) / "pid").read_text()
        await place.kill_everything()
        place.start_broker()
        await place.start_portal()
        await asyncio.sleep(0.3)
        found = await place.wait(alice, running, SessionState.READY)
        assert found.ends is not None
        assert (place.find_home(alice) / "pid").read_text() == pid  # not a second start
        assert (await place.sessions.get_session(alice, waiting.id)).state is SessionState.QUEUED
        await place.sessions.stop(alice, running.id)
        await place.wait(alice, waiting, SessionState.READY)

    run(test)


def test_killed_in_the_middle_of_a_start_it_starts_once() -> None:
    async def test(place: Brokered) -> None:
        alice = place.add_user("alice")
        place.add_app("work", 'echo start >>"$HOME/starts"; listen sleep 1000')
        warm = await place.sessions.start(alice, "work")
        await place.wait(alice, warm, SessionState.READY)
        starts = place.find_home(alice) / "starts"
        for delay_ms in (0, 3, 6, 10, 14, 18, 22, 26, 30, 40):
            session = await place.sessions.start(alice, "work")
            await asyncio.sleep(delay_ms / 1000)
            await place.kill_everything()
            before = len(starts.read_text().split())
            place.start_broker()
            await place.start_portal()
            await place.wait(alice, session, SessionState.READY)
            assert len(starts.read_text().split()) in (before, before + 1)
            await place.sessions.stop(alice, session.id)
            await place.wait(alice, session, SessionState.ENDED)
        assert len(starts.read_text().split()) == 11

    run(test)


def test_a_lost_database_is_filled_again_once_the_user_is_added_again() -> None:
    async def test(place: Brokered) -> None:
        alice = place.add_user("alice")
        place.add_app("work", "listen sleep 1000")
        running = await place.sessions.start(alice, "work", cores=5, title="My work")
        await place.wait(alice, running, SessionState.READY)
        waiting = await place.sessions.start(alice, "work", cores=5)
        await place.stop_portal()
        for path in place.folder.glob("state/portico.db*"):
            path.unlink()
        await place.start_portal()
        await asyncio.sleep(0.5)
        alice = place.add_user("alice")

        async def found() -> Any:
            return {s.id: s for s in await place.sessions.list_sessions(alice)}.keys() == {running.id, waiting.id}

        await wait_for(found)
        again = await place.wait(alice, running, SessionState.READY)
        assert again.title == "My work" and again.cores == 5 and again.ends
        assert (await place.sessions.get_session(alice, waiting.id)).state is SessionState.QUEUED

    run(test)


def test_a_running_session_is_found_again_though_database_and_spool_are_lost() -> None:
    async def test(place: Brokered) -> None:
        alice = place.add_user("alice")
        place.add_app("work", "listen sleep 1000")
        running = await place.sessions.start(alice, "work")
        ends = (await place.wait(alice, running, SessionState.READY)).ends
        await place.stop_portal()
        for path in [*place.folder.glob("state/portico.db*"), *place.folder.glob("state/local/*")]:
            path.unlink()
        await place.start_portal()
        alice = place.add_user("alice")

        async def found() -> Any:
            return await place.sessions.list_sessions(alice)

        await wait_for(found, 20)
        again = await place.wait(alice, running, SessionState.READY)
        assert again.ends and ends and abs((again.ends - ends).total_seconds()) < 1
        await place.sessions.stop(alice, running.id)
        assert (await place.wait(alice, running, SessionState.ENDED)).reason is Reason.STOPPED

    run(test)


def test_nobody_adopts_another_ones_cell(monkeypatch: pytest.MonkeyPatch) -> None:
    """bob writes a session folder with the id of alice's session, and points it at a process of his own."""
    monkeypatch.setattr("portico.sessions.keeper.SEARCH_S", 1.0)

    async def test(place: Brokered) -> None:
        alice, bob = place.add_user("alice"), place.add_user("bob")
        place.add_app("work", "listen sleep 1000")
        hers = await place.sessions.start(alice, "work")
        his = await place.sessions.start(bob, "work")
        await place.wait(alice, hers, SessionState.READY)
        await place.wait(bob, his, SessionState.READY)
        folders = place.find_home(bob) / ".local/share/portico/sessions"
        (folders / his.id).rename(folders / hers.id)
        record = folders / hers.id / "session.json"
        record.write_text(record.read_text().replace(his.id, hers.id))
        await place.stop_portal()
        for path in [*place.folder.glob("state/portico.db*"), *place.folder.glob("state/local/*")]:
            path.unlink()
        await place.start_portal()
        bob = place.add_user("bob")
        await asyncio.sleep(3)
        assert await place.sessions.list_sessions(bob) == []
        alice = place.add_user("alice")

        async def found() -> Any:
            return [s.id for s in await place.sessions.list_sessions(alice)] == [hers.id]

        await wait_for(found, 20)
        assert await place.sessions.list_sessions(bob) == []

    run(test)


def test_the_time_limit_ends_it_though_its_user_has_stopped_the_shepherd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portico.schedulers.local.OVERDUE", timedelta(seconds=3))

    async def test(place: Brokered) -> None:
        alice = place.add_user("alice")
        place.add_app("work", "echo hi; listen sleep 1000")
        fair = await place.sessions.start(alice, "work", hours=2 / 3600)
        foul = await place.sessions.start(alice, "work", hours=2 / 3600)
        await place.wait(alice, foul, SessionState.READY)
        shepherd = (await place.machine.look(alice.user_name, foul.id))["pid"]
        os.kill(shepherd, signal.SIGSTOP)
        assert (await place.wait(alice, fair, SessionState.ENDED)).reason is Reason.TIME_LIMIT
        ended = await place.wait(alice, foul, SessionState.ENDED, 40)
        assert ended.reason is Reason.TIME_LIMIT
        assert (await place.machine.cells()) == {}

    run(test)


def test_extend_moves_the_limit_and_has_an_end() -> None:
    async def test(place: Brokered) -> None:
        alice = place.add_user("alice")
        place.add_app("work", "listen sleep 1000")
        session = await place.sessions.start(alice, "work", hours=3 / 3600)
        before = await place.wait(alice, session, SessionState.READY)
        extended = await place.sessions.extend(alice, session.id)
        assert extended.ends and before.ends and (extended.ends - before.ends).total_seconds() == pytest.approx(3.6)
        with pytest.raises(Conflict, match="all the time"):
            for _ in range(3):
                await place.sessions.extend(alice, session.id)
        await asyncio.sleep(4)
        assert (await place.sessions.get_session(alice, session.id)).state is SessionState.READY
        assert (await place.wait(alice, session, SessionState.ENDED)).reason is Reason.TIME_LIMIT

    run(test, extend_hours=0.001, max_extended_hours=0.002)


def test_too_much_memory_is_named_as_the_reason() -> None:
    async def test(place: Brokered) -> None:
        alice = place.add_user("alice")
        place.add_app("hungry", 'exec /usr/bin/python3 -c "x = bytearray(300_000_000); import time; time.sleep(60)"')
        session = await place.sessions.start(alice, "hungry", memory_gb=0.06)
        assert (await place.wait(alice, session, SessionState.ENDED)).reason is Reason.OUT_OF_MEMORY

    run(test)


def test_how_a_program_ended_is_told() -> None:
    async def test(place: Brokered) -> None:
        alice = place.add_user("alice")
        say = '>"$PORTICO_SESSION_DIR/trouble"'
        for app, script in (
            ("good", "exit 0"), ("bad", "echo it broke >&2; exit 3"), ("killed", "kill -9 $$"),
            ("sorry", f"printf 'first\\nno licence is left. Try again\\033[2J in an hour\\n' {say}; exit 3"),
            ("fine", f"echo not so bad {say}; exit 0"), ("long", f"head -c 5000 /dev/zero | tr '\\0' x {say}; exit 3"),
            ("link", 'ln -s /etc/passwd "$PORTICO_SESSION_DIR/trouble"; exit 3'),
            ("pipe", 'mkfifo "$PORTICO_SESSION_DIR/trouble"; exit 3'),
        ):  # fmt: skip
            place.add_app(app, script)
        for app, reason, detail in (
            ("good", Reason.FINISHED, ""),
            ("bad", Reason.FAILED, "exit status 3"),
            ("killed", Reason.FAILED, "signal 9 (SIGKILL)"),
            ("sorry", Reason.FAILED, "no licence is left. Try again?[2J in an hour"),
            ("fine", Reason.FINISHED, ""),
            ("long", Reason.FAILED, "x" * 400),
            ("link", Reason.FAILED, "exit status 3"),
            ("pipe", Reason.FAILED, "exit status 3"),
        ):
            session = await place.sessions.start(alice, app)
            ended = await place.wait(alice, session, SessionState.ENDED)
            assert (ended.reason, ended.detail) == (reason, detail)
            if app == "bad":
                assert await place.sessions.read_log(alice, session.id) == "it broke"
            await place.sessions.forget(alice, session.id)
        assert await place.sessions.list_sessions(alice) == []
        assert list((place.find_home(alice) / ".local/share/portico/sessions").iterdir()) == []

    run(test)


def test_what_never_answers_is_ended_and_what_ignores_term_too() -> None:
    async def test(place: Brokered) -> None:
        alice = place.add_user("alice")
        place.add_app("mute", "trap '' TERM; while :; do sleep 1; done", ready="[ready]\ntimeout_s = 1\n")
        session = await place.sessions.start(alice, "mute")
        assert (await place.wait(alice, session, SessionState.ENDED)).reason is Reason.NEVER_READY
        assert await place.machine.cells() == {}

    run(test)


def test_stop_works_while_it_starts() -> None:
    async def test(place: Brokered) -> None:
        alice = place.add_user("alice")
        place.add_app("slow", "sleep 1000")
        session = await place.sessions.start(alice, "slow")
        await place.wait(alice, session, SessionState.STARTING)
        begun = asyncio.get_running_loop().time()
        assert (await place.sessions.stop(as_admin(place.add_user("bob")), session.id)).waiting_for == "its end"
        ended = await place.wait(alice, session, SessionState.ENDED)
        assert ended.reason is Reason.STOPPED_BY_ADMIN
        assert asyncio.get_running_loop().time() - begun < 4  # by TERM
        assert place.cut == [f"session:{session.id}"]

    run(test)


def test_a_full_home_is_named_and_loses_nothing() -> None:
    async def test(place: Brokered) -> None:
        alice = place.add_user("alice")
        place.add_app("work", "listen sleep 1000")
        running = await place.sessions.start(alice, "work")
        await place.wait(alice, running, SessionState.READY)
        home = place.find_home(alice)
        mounted = home / ".local/share/portico/sessions"
        subprocess.run(["cp", "-a", str(mounted), str(place.folder / "copy")], check=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k,mode=0755", "tmpfs", str(mounted)], check=True)
        try:
            subprocess.run(["cp", "-a", f"{place.folder}/copy/.", str(mounted)], check=True)
            with contextlib.suppress(OSError), open(mounted / "filler", "wb", buffering=0) as filler:
                while True:
                    filler.write(b"x" * 4096)
            with pytest.raises(Unavailable, match="home folder is full"):
                await place.sessions.start(alice, "work")
            await asyncio.sleep(1.5)
            found = await place.sessions.list_sessions(alice)
            assert [(s.id, s.state) for s in found] == [(running.id, SessionState.READY)]
            await place.sessions.stop(alice, running.id)
            assert (await place.wait(alice, running, SessionState.ENDED)).reason is Reason.STOPPED
        finally:
            subprocess.run(["umount", "-l", str(mounted)], check=True)

    run(test)


def test_a_user_who_stops_the_own_agent_holds_up_nobody_else() -> None:
    async def test(place: Brokered) -> None:
        alice, bob = place.add_user("alice"), place.add_user("bob")
        place.add_app("work", "listen sleep 1000")
        hers = [await place.sessions.start(alice, "work") for _ in range(3)]
        for session in hers:
            await place.wait(alice, session, SessionState.READY)
        agent = (await place.machine.ask(alice.user_name, "ping", {})).body["pid"]
        os.kill(agent, signal.SIGSTOP)
        for session in hers:
            await place.machine.end_cell(session.id)  # so that the keeper has to ask her agent
        his = await place.sessions.start(bob, "work")
        ready = await place.wait(bob, his, SessionState.READY, 5)
        assert ready.ready and (ready.ready - ready.created).total_seconds() < 3
        for session in hers:  # her stopped agent is given up, and another one asked
            assert (await place.wait(alice, session, SessionState.ENDED, 40)).reason in (Reason.LOST, Reason.FAILED)
        os.kill(agent, signal.SIGKILL)

    run(test)


def test_a_removed_users_sessions_end_and_leave_nothing() -> None:
    async def test(place: Brokered) -> None:
        alice, bob = place.add_user("alice"), place.add_user("bob")
        admin = as_admin(bob)
        place.add_app("work", "listen sleep 1000")
        kept = await place.sessions.start(alice, "work")
        await place.wait(alice, kept, SessionState.READY)
        await place.sessions.stop_all_of(admin, alice.user_name)
        assert (await place.sessions.get_session(alice, kept.id)).state is SessionState.ENDED
        torn = await place.sessions.start(alice, "work")
        await place.wait(alice, torn, SessionState.READY)
        await place.accounts.remove_user(admin, alice.user_name, remove_home=True)

        async def gone() -> bool:
            return await place.machine.cells() == {} and await place.scheduler.query() == {}

        await wait_for(gone)

    run(test)
