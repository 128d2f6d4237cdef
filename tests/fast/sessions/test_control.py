"""Control of a shared session: who may type where, asked as a gateway asks, and as an attacker would like it to be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from desk import Desk, run
from test_doors import Scene, scene

from portico.errors import Conflict, NotFound, TooMany
from portico.model import AuditEntry, Identity, Role


async def may_type(at: Scene, who: str = "bob", session: Any = None) -> bool | None:
    """Return whether the gateway would let them type; None where it lets them in at all."""
    answer = await at.stream(session or at.screen, who, "shared").go()
    return None if answer["kind"] == "answer" else answer["view_only"] is False


def read_audit(desk: Desk) -> list[tuple[str, str, str]]:
    with desk.store.read() as tx:
        entries: list[AuditEntry] = tx.list_audit(100)
    return [(one.actor, one.action, one.detail) for one in entries if one.action.startswith("control:")][::-1]


def test_a_yes_lets_them_type_until_either_ends_it(tmp_path: Path) -> None:
    async def test() -> None:
        async with scene(tmp_path) as at:
            control, key = at.desk.sessions.control, at.screen.id
            ask = await control.ask(at.bob, key)
            assert await may_type(at) is False, "asking lets nobody in"
            ((asked, session),) = (await control.list_mine(at.alice)).asks
            assert (asked.viewer_name, session.id) == ("bob", key)
            await control.agree(at.alice, key, ask.id)
            assert at.desk.cut == [f"share:{at.share.id}"], "the viewer's stream comes back with control"
            answer = await at.stream(at.screen, "bob", "shared").go()
            assert answer["view_only"] is False
            assert {f"control:{at.share.id}", f"share:{at.share.id}", "user:alice", "user:bob"} < set(answer["tags"])
            assert answer["clipboard"] == at.desk.config.clipboard_limits
            at.desk.cut.clear()
            await control.stop(at.alice, key, at.share.id)
            assert at.desk.cut == [f"control:{at.share.id}"] and await may_type(at) is False
            await control.allow(at.alice, key, at.share.id)
            assert await may_type(at) is True
            await control.give_up(at.bob, key)
            assert await may_type(at) is False
            assert read_audit(at.desk) == [
                ("bob", "control:ask", "alice"), ("alice", "control:agree", "bob"), ("alice", "control:end", "bob"),
                ("alice", "control:allow", "bob"), ("bob", "control:end", "bob"),
            ]  # fmt: skip

    run(test())


def test_an_answer_is_to_one_question_of_one_session_by_its_owner(tmp_path: Path) -> None:
    async def test() -> None:
        async with scene(tmp_path) as at:
            control, key = at.desk.sessions.control, at.screen.id
            other = await at.desk.sessions.share(at.alice, at.shell.id, "bob")
            ask = await control.ask(at.bob, key)
            assert (await control.ask(at.bob, key)).id == ask.id, "asked twice is one question"
            dave = at.desk.add_user("dave")
            for who, session_id in ((at.bob, key), (dave, key), (at.carol, key), (at.alice, at.shell.id)):
                with pytest.raises(NotFound):
                    await control.agree(who, session_id, ask.id)
                with pytest.raises(NotFound):
                    await control.refuse(who, session_id, ask.id)
            await control.agree(at.alice, key, ask.id)
            assert await may_type(at) is True and await may_type(at, session=at.shell) is False
            for who, share_id in ((at.bob, other.id), (at.carol, at.share.id), (at.alice, other.id)):
                with pytest.raises(NotFound):
                    await control.stop(who, key, share_id)
                with pytest.raises(NotFound):
                    await control.allow(who, key, share_id)
            await control.stop(at.alice, key, at.share.id)
            with pytest.raises(NotFound):
                await control.agree(at.alice, key, ask.id)  # replayed
            again = await control.ask(at.bob, key)
            with pytest.raises(NotFound):
                await control.agree(at.alice, key, ask.id)  # the old answer to a new question
            assert again.id != ask.id and await may_type(at) is False

    run(test())


def test_a_no_a_withdrawal_and_silence(tmp_path: Path) -> None:
    async def test() -> None:
        async with scene(tmp_path) as at:
            control, key = at.desk.sessions.control, at.screen.id
            ask = await control.ask(at.bob, key)
            await control.refuse(at.alice, key, ask.id)
            assert [n.text for n in await at.desk.sessions.notices.list_notices(at.bob)] == ["alice said no."]
            with pytest.raises(TooMany):
                await control.ask(at.bob, key)
            with pytest.raises(NotFound):
                await control.agree(at.alice, key, ask.id)
            control._refused.clear()
            ask = await control.ask(at.bob, key)
            await control.give_up(at.bob, key)
            with pytest.raises(NotFound):
                await control.agree(at.alice, key, ask.id)
            ask = await control.ask(at.bob, key)
            at.desk.clock.advance(minutes=6)
            assert (await control.list_mine(at.alice)).asks == ()
            with pytest.raises(NotFound):
                await control.agree(at.alice, key, ask.id)
            await control.end_old()
            assert "alice did not answer." in {n.text for n in await at.desk.sessions.notices.list_notices(at.bob)}
            assert await may_type(at) is False
            ask = await control.ask(at.bob, key)
            await at.desk.sessions.unshare(at.alice, key, at.share.id)
            with pytest.raises(NotFound):
                await control.agree(at.alice, key, ask.id)  # taken back meanwhile
            assert await may_type(at) is None

    run(test())


def test_it_ends_by_itself_and_with_the_session_and_outlives_the_portal(tmp_path: Path) -> None:
    async def test() -> None:
        async with scene(tmp_path) as at:
            control, key = at.desk.sessions.control, at.screen.id
            await control.allow(at.alice, key, at.share.id)
            tag = f"control:{at.share.id}"
            cut = at.desk.cut
            at.desk.begin()  # a restart
            assert await may_type(at) is True and tag not in await at.desk.doors.find_gone([tag])
            at.desk.clock.advance(minutes=31)
            assert await may_type(at) is False, "also before anybody has looked for what is over"
            assert await at.desk.doors.find_gone([tag, f"share:{at.share.id}"]) == [tag]
            await at.desk.sessions.control.end_old()
            assert tag in at.desk.cut
            assert ("portico", "control:end", "bob: its time was over") in read_audit(at.desk)
            assert cut is not at.desk.cut
            await at.desk.sessions.control.allow(at.alice, key, at.share.id)
            ask = await at.desk.sessions.control.ask(at.carol, at.shell.id, invited=True)
            with at.desk.store.begin() as tx:
                tx.delete_shares(key)
                tx.delete_shares(at.shell.id)
            assert await at.desk.doors.find_gone([tag]) == [tag]
            with pytest.raises(NotFound):
                await at.desk.sessions.control.agree(at.alice, at.shell.id, ask.id)

    run(test())


def test_who_is_invited_sees_it_for_as_long_as_they_control_it(tmp_path: Path) -> None:
    async def test() -> None:
        async with scene(tmp_path) as at:
            control, key = at.desk.sessions.control, at.shell.id
            with pytest.raises(NotFound):
                await control.ask(at.carol, key)  # an admin, with whom nothing is shared
            ask = await control.ask(at.carol, key, invited=True)
            assert await may_type(at, "carol", at.shell) is None
            share = await control.agree(at.alice, key, ask.id)
            assert await may_type(at, "carol", at.shell) is True
            await control.stop(at.alice, key, share.id)
            assert await may_type(at, "carol", at.shell) is None
            assert f"share:{share.id}" in at.desk.cut and not await at.desk.sessions.list_shares(at.alice, key)
            control._refused.clear()
            share = await control.agree(at.alice, key, (await control.ask(at.carol, key, invited=True)).id)
            at.desk.clock.advance(minutes=31)
            assert await may_type(at, "carol", at.shell) is None

    run(test())


def test_what_can_not_be_controlled(tmp_path: Path) -> None:
    async def test() -> None:
        async with scene(tmp_path) as at:
            control = at.desk.sessions.control
            for session in (at.pages,):
                with pytest.raises(Conflict):
                    await control.ask(at.bob, session.id, invited=True)
            with pytest.raises(NotFound):
                await control.ask(at.alice, at.screen.id, invited=True)  # one's own
            with pytest.raises(NotFound):
                await control.ask(at.bob, "a" * 12, invited=True)
            with pytest.raises(NotFound):
                await control.give_up(at.bob, at.screen.id)
            await control.allow(at.alice, at.screen.id, at.share.id)
            with pytest.raises(Conflict):
                await control.ask(at.bob, at.screen.id)

    run(test())


def test_what_is_taken_back_while_a_stream_opens_is_not_had(tmp_path: Path) -> None:
    """The doors connect to the app between two looks; the second is the one that holds."""

    async def test() -> None:
        async with scene(tmp_path) as at:
            control, key = at.desk.sessions.control, at.screen.id
            await control.allow(at.alice, key, at.share.id)
            connect = at.desk.doors._connect_app

            async def slowly(session: Any) -> int:
                await control.stop(at.alice, key, at.share.id)
                return await connect(session)

            at.desk.doors._connect_app = slowly
            assert await may_type(at) is False

    run(test())


def test_a_locked_owner_or_viewer_controls_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        async with scene(tmp_path) as at:
            control, key = at.desk.sessions.control, at.screen.id
            ask = await control.ask(at.bob, key)
            await at.desk.accounts.lock_user(at.carol, "bob")
            with pytest.raises(NotFound):
                await control.agree(at.alice, key, ask.id)
            await at.desk.accounts.unlock_user(at.carol, "bob")
            at.bob = at.desk.add_user("bob")
            await control.agree(at.alice, key, ask.id)
            assert await may_type(at) is True
            await at.desk.accounts.lock_user(at.carol, "alice")
            assert await may_type(at) is None

    run(test())


def test_an_admin_has_no_say(tmp_path: Path) -> None:
    async def test() -> None:
        async with scene(tmp_path) as at:
            root = Identity(0, "root", Role.ADMIN, at.alice.via)
            ask = await at.desk.sessions.control.ask(at.bob, at.screen.id)
            for who in (at.carol, root):
                with pytest.raises(NotFound):
                    await at.desk.sessions.control.agree(who, at.screen.id, ask.id)
                assert (await at.desk.sessions.control.list_mine(who)).asks == ()

    run(test())
