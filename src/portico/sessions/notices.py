"""Notices: a session is ready after a while, ends soon, or has failed; a job has ended. In pages, and by mail.

A notice is a row until its user removes it, or for a week. Mail is sent beside it and may fail: that is logged, and
nothing waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import email.message
import email.utils
import logging
import smtplib
import ssl
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from portico.config import Config
from portico.errors import NotFound
from portico.model import Identity, Notice, NoticeKind, Reason, Session, now
from portico.sessions.changes import Changes
from portico.sessions.reasons import BEGINS_AGAIN, describe_end
from portico.sessions.rows import Rows
from portico.store import Transaction

log = logging.getLogger(__name__)

READY_AFTER: Final = timedelta(seconds=60)
"""Who waited for less is still looking at the page."""
SOON: Final = timedelta(minutes=15)
SHORT: Final = timedelta(minutes=30)
"""A session that was to be so short ends as everybody expects."""
KEPT: Final = timedelta(days=7)
SHOWN: Final = 20
QUIET: Final = frozenset({Reason.STOPPED, Reason.FINISHED})
MAIL_TRIES: Final = 3
MAIL_WAIT_S: Final = 30.0
SMTP_S: Final = 20.0


class Mailer:
    """Sends mail through the site's SMTP server (RFC 5321), with STARTTLS where it offers that.

    Args:
        server: ``host`` or ``host:port``.
        sender: The address that mail comes from.
        domain: What follows the @ of users' addresses.
        user: For authentication; empty for none.
        password_file: Holds the password.
    """

    def __init__(self, server: str, sender: str, domain: str, user: str = "", password_file: str = "") -> None:
        host, _, port = server.rpartition(":") if ":" in server else (server, "", "25")
        self._host, self._port = host, int(port)
        self._sender, self._domain = sender, domain
        self._user, self._password_file = user, password_file

    def send(self, user_name: str, subject: str, text: str) -> None:
        """Send one mail.

        Raises:
            OSError: The server does not take it (smtplib's errors are OSErrors).
        """
        message = email.message.EmailMessage()
        message["From"], message["To"] = self._sender, f"{user_name}@{self._domain}"
        message["Subject"] = " ".join(subject.split())
        message["Date"], message["Message-ID"] = email.utils.formatdate(), email.utils.make_msgid(domain=self._domain)
        message["Auto-Submitted"] = "auto-generated"  # RFC 3834: no out-of-office answers
        message.set_content(text)
        with smtplib.SMTP(self._host, self._port, timeout=SMTP_S) as server:
            server.ehlo()
            if server.has_extn("starttls"):
                server.starttls(context=ssl.create_default_context())
                server.ehlo()
            if self._user:
                server.login(self._user, Path(self._password_file).read_text().strip())
            server.send_message(message)


def make_mailer(config: Config) -> Mailer | None:
    """Return what sends mail, where that is set."""
    if not config.smtp_server:
        return None
    domain = config.mail_domain or config.host
    sender = config.mail_from or f"portico@{domain}"
    return Mailer(config.smtp_server, sender, domain, config.smtp_user, config.smtp_password_file)


class Notices:
    """All notices.

    Args:
        origin: The portal's, for links in mails.
        mailer: Sends mail; None for pages only.
    """

    def __init__(
        self,
        rows: Rows,
        changes: Changes,
        origin: str,
        mailer: Mailer | None = None,
        clock: Callable[[], datetime] = now,
    ) -> None:
        self._rows = rows
        self._changes = changes
        self._origin = origin
        self._mailer = mailer
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()

    # what happens to sessions

    async def on_ready(self, session: Session) -> None:
        """Tell that a session is ready, if its user has waited for it."""
        if session.ready and (session.restarts or session.ready - session.created >= READY_AFTER):
            text = f"{session.title} is ready{' again' if session.restarts else ''}."
            await self._tell(session.user_name, NoticeKind.READY, _find_page(session), text)

    async def on_put_back(self, session: Session) -> None:
        """Tell that a session's cluster has ended what ran of it, and begins it again."""
        text = f"{session.title} was put back into the queue: {session.put_back}."
        await self._tell(session.user_name, NoticeKind.AGAIN, _find_page(session), text, BEGINS_AGAIN)

    async def on_end(self, session: Session) -> None:
        """Tell why a session has ended, unless its user or its program ended it."""
        if session.reason is not None and session.reason not in QUIET:
            sentence, hint = describe_end(session)
            text = f"{session.title} has ended. {sentence}"
            await self._tell(session.user_name, NoticeKind.ENDED, _find_page(session), text, hint)

    async def tell_soon(self) -> None:
        """Tell of every session that will end soon, once for each end that it is given."""
        at = self._clock()
        for session in await self._rows.read(lambda tx: tx.list_live_sessions()):
            if session.ends is None or session.started is None or not at < session.ends <= at + SOON:
                continue
            if session.ends - session.started <= SHORT:
                continue
            since = session.ends - SOON
            known = await self._rows.read(lambda tx, s=session: tx.list_notices(s.user_name, 100))  # type: ignore[misc]
            if any(n.path == _find_page(session) and n.kind is NoticeKind.ENDING and n.at >= since for n in known):
                continue
            minutes = max(1, round((session.ends - at).total_seconds() / 60))
            text = f"{session.title} ends in {minutes} minutes."
            hint = "Save your work, or press Extend on its page."
            await self._tell(session.user_name, NoticeKind.ENDING, _find_page(session), text, hint)

    # what happens to jobs

    async def on_job_end(self, user_name: str, path: str, text: str, *, trouble: bool) -> None:
        """Tell of the end of a job, once."""
        known = await self._rows.read(lambda tx: tx.list_notices(user_name, 100))
        if not any(notice.path == path for notice in known):
            await self._tell(user_name, NoticeKind.ENDED if trouble else NoticeKind.DONE, path, text)

    async def prune(self) -> None:
        """Remove old ones."""
        await self._rows.write(lambda tx: tx.delete_notices(self._clock() - KEPT))

    async def _tell(self, user_name: str, kind: NoticeKind, path: str, text: str, hint: str = "") -> None:
        def write(tx: Transaction) -> None:
            tx.add_notice(user_name, self._clock(), kind, path, text, hint)

        await self._rows.write(write)
        self._changes.tell(user_name)
        if self._mailer is not None:
            body = f"{text}\n{hint}\n\n{self._origin}{path}\n"
            task = asyncio.create_task(self._mail(user_name, text, body))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _mail(self, user_name: str, subject: str, body: str) -> None:
        assert self._mailer is not None
        for number in range(MAIL_TRIES):
            try:
                await asyncio.to_thread(self._mailer.send, user_name, subject, body)
                return
            except (OSError, ValueError) as error:
                log.warning("a mail to %s was not sent: %s", user_name, error)
            if number < MAIL_TRIES - 1:
                await asyncio.sleep(MAIL_WAIT_S * (number + 1))

    async def close(self) -> None:
        """Give mails up that are still tried."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)

    # what people see

    async def list_notices(self, who: Identity) -> list[Notice]:
        """Return one's own, the newest first."""
        return await self._rows.read(lambda tx: tx.list_notices(who.user_name, SHOWN))

    async def forget(self, who: Identity, notice_id: int) -> None:
        """Remove one of one's own.

        Raises:
            NotFound: There is none.
        """
        if not await self._rows.write(lambda tx: tx.delete_notice(who.user_name, notice_id)):
            raise NotFound("There is no such notice.")
        self._changes.tell(who.user_name)


def _find_page(session: Session) -> str:
    return f"/sessions/{session.id}"
