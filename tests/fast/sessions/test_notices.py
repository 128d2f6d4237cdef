"""Notices: who is told what, and once; mail through a real SMTP server."""

from __future__ import annotations

import asyncio
import contextlib
import email
import email.policy
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import pytest
from aiosmtpd.smtp import SMTP
from desk import Desk, until

from portico.errors import NotFound
from portico.model import NoticeKind, Reason, SessionState
from portico.sessions.notices import Mailer

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    return asyncio.run(asyncio.wait_for(work, 30))


class Inbox:
    """What an SMTP server was given."""

    def __init__(self) -> None:
        self.mails: list[Any] = []
        self.refuse = False
        self.refused = 0

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        if self.refuse:
            self.refused += 1
            return "451 later"
        self.mails.append((envelope, email.message_from_bytes(envelope.content, policy=email.policy.default)))
        return "250 OK"


@contextlib.asynccontextmanager
async def serving(box: Inbox) -> AsyncIterator[str]:
    """Run an SMTP server; give its address."""
    server = await asyncio.get_running_loop().create_server(lambda: SMTP(box), "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        await server.wait_closed()


def test_a_failure_is_told_once_and_a_stop_is_not(tmp_path: Path) -> None:
    async def test() -> None:
        desk = Desk(tmp_path)
        alice, bob = desk.add_user("alice"), desk.add_user("bob")
        async with desk.keeping():
            stopped = await desk.start_ready(alice)
            await desk.sessions.stop(alice, stopped.id)
            await desk.reach(alice, stopped, SessionState.ENDED)
            failed = await desk.start_ready(alice, title="Lab")
            await desk.sessions._keepers["local"].finish(failed, Reason.OUT_OF_MEMORY, "")
            await desk.sessions._keepers["local"].finish(failed, Reason.LOST, "")
        (notice,) = await desk.sessions.notices.list_notices(alice)
        assert notice.kind is NoticeKind.ENDED and notice.path == f"/sessions/{failed.id}"
        assert "Lab has ended" in notice.text and "memory" in notice.text and notice.hint
        assert await desk.sessions.notices.list_notices(bob) == []
        with pytest.raises(NotFound):
            await desk.sessions.notices.forget(bob, notice.id)
        await desk.sessions.notices.forget(alice, notice.id)
        assert await desk.sessions.notices.list_notices(alice) == []

    run(test())


def test_ready_is_told_to_whom_it_took_long(tmp_path: Path) -> None:
    async def test() -> None:
        desk = Desk(tmp_path)
        alice = desk.add_user("alice")
        async with desk.keeping():
            first = await desk.start_ready(alice, cores=4)
            assert await desk.sessions.notices.list_notices(alice) == []
            session = await desk.sessions.start(alice, "shell")
            desk.clock.advance(minutes=2)
            await desk.sessions.stop(alice, first.id)
            await desk.reach(alice, session, SessionState.READY)
            (notice,) = await until(lambda: desk.sessions.notices.list_notices(alice))
        assert notice.kind is NoticeKind.READY and "is ready" in notice.text

    run(test())


def test_an_end_that_comes_is_told_once_for_each_extension(tmp_path: Path) -> None:
    async def test() -> None:
        desk = Desk(tmp_path)
        alice = desk.add_user("alice")
        async with desk.keeping():
            session = await desk.start_ready(alice, hours=2)
            await desk.start_ready(alice, hours=0.25)
            notices = desk.sessions.notices
            await notices.tell_soon()
            assert await notices.list_notices(alice) == []
            desk.clock.advance(hours=1, minutes=50)
            for _ in range(3):
                await notices.tell_soon()
            (notice,) = await notices.list_notices(alice)
            assert notice.kind is NoticeKind.ENDING and "10 minutes" in notice.text
            assert notice.path == f"/sessions/{session.id}"
            extended = await desk.sessions.extend(alice, session.id)
            assert extended.ends and session.ends
            await notices.tell_soon()
            desk.clock.advance(seconds=(extended.ends - session.ends).total_seconds())
            await notices.tell_soon()
            assert len(await notices.list_notices(alice)) == 2
            desk.clock.advance(days=8)
            await notices.prune()
            assert await notices.list_notices(alice) == []

    run(test())


def test_a_notice_is_mailed(tmp_path: Path) -> None:
    async def test() -> None:
        box = Inbox()
        async with serving(box) as address:
            desk = Desk(tmp_path, smtp_server=address, mail_domain="example.org", host="hpc.example.org")
            alice = desk.add_user("alice")
            async with desk.keeping():
                failed = await desk.start_ready(alice, title="Lab: äöü")
                await desk.sessions._keepers["local"].finish(failed, Reason.NODE_FAILED, "")
                await until(lambda: give(box.mails))
        envelope, mail = box.mails[0]
        assert envelope.rcpt_tos == ["alice@example.org"] and mail["From"] == "portico@example.org"
        assert "Lab: äöü has ended" in mail["Subject"] and mail["Auto-Submitted"] == "auto-generated"
        text = mail.get_content()
        assert f"/sessions/{failed.id}" in text and "node" in text

    run(test())


def test_a_server_that_refuses_keeps_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portico.sessions.notices.MAIL_WAIT_S", 0.1)

    async def test() -> None:
        box = Inbox()
        box.refuse = True
        async with serving(box) as address:
            desk = Desk(tmp_path, smtp_server=address)
            alice = desk.add_user("alice")
            async with desk.keeping():
                failed = await desk.start_ready(alice)
                await desk.sessions._keepers["local"].finish(failed, Reason.LOST, "")
                assert len(await desk.sessions.notices.list_notices(alice)) == 1
                await until(lambda: give(box.refused))
                box.refuse = False
                await until(lambda: give(box.mails))
        assert len(box.mails) == 1

    run(test())


def test_a_title_makes_no_header() -> None:
    async def test() -> None:
        box = Inbox()
        async with serving(box) as address:
            mailer = Mailer(address, "portico@example.org", "example.org")
            await asyncio.to_thread(mailer.send, "alice", "x\r\nBcc: bob@example.org", "text")
        envelope, mail = box.mails[0]
        assert envelope.rcpt_tos == ["alice@example.org"] and mail["Bcc"] is None

    run(test())


async def give(value: Any) -> Any:
    return value
