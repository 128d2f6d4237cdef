"""The way into a running session by SSH: which one is meant, whose it is, and the keys that are good there now.

What starts ``sshd -i`` is the place's business: on this machine an agent in the session's cell, on a cluster the relay
inside the job. Both are given the same files.
"""

from __future__ import annotations

import asyncio
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Protocol

from portico.accounts.ssh_entry import SshEntry
from portico.config import Config
from portico.errors import Conflict, NotFound, Unavailable
from portico.model import Identity, Session, SessionState, now
from portico.sessions.service import Sessions
from portico.ssh.inner import HOST_ALIAS, render_files

KEYGEN_S: Final = 10
HOST_KEYS: Final = 1000
HOST_KEY_LIFE: Final = timedelta(days=7)


class HostSigner(Protocol):
    """This installation's host CA; portico.ssh.authority has it."""

    def sign_host(self, public: str, *, principals: Sequence[str], valid_until: datetime) -> str:
        """Return a host certificate for a public key."""


class SshSessions:
    """Sessions, for SSH.

    Args:
        authority: Signs their host keys.
    """

    def __init__(
        self,
        sessions: Sessions,
        entry: SshEntry,
        authority: HostSigner,
        config: Config,
        clock: Callable[[], datetime] = now,
    ) -> None:
        self._sessions = sessions
        self._entry = entry
        self._authority = authority
        self._config = config
        self._clock = clock
        self._host_keys: dict[str, tuple[datetime, str, str]] = {}
        self._making = asyncio.Lock()

    async def connect(self, who: Identity, name: str) -> int:
        """Return a descriptor that is connected to an sshd inside a session of one's own; the caller owns it.

        Args:
            who: Whose it must be.
            name: The session's id, or an app's: the newest session of it that runs.

        Raises:
            NotFound: There is none of that name, or not of this user's.
            Conflict: It does not run, or its user has no key that is good.
            Unavailable: Its machine does not answer, or has no sshd.
        """
        session = await self._find(who, name)
        keys = await asyncio.to_thread(self._entry.list_inner, who.user_name)
        if not keys:
            raise Conflict(
                "There is no SSH key of yours that is good now.",
                hint="Add one on your account page, or get a certificate: portico ssh login",
            )
        host_key, certificate = await self._get_host_key(session)
        files = render_files(
            host_key=host_key, host_certificate=certificate, keys=keys, forwarding=self._config.ssh_forwarding
        )
        return await self._sessions.connect_ssh(who, session, files)

    async def _find(self, who: Identity, name: str) -> Session:
        mine = await self._sessions.list_sessions(who)
        found = next((one for one in mine if one.id == name), None)
        running = [one for one in mine if one.state in (SessionState.STARTING, SessionState.READY)]
        found = found or next((one for one in running if one.app_id == name), None)
        if found is None or found.user_name != who.user_name:
            names = ", ".join(sorted({one.app_id for one in running} | {one.id for one in running}))
            raise NotFound(
                f"You have no session {name[:40]!r}.", hint=f"Those that run: {names}" if names else "None is running."
            )
        if found not in running:
            raise Conflict(f"The session {found.id} does not run.", why=f"It is {found.state.value}.")
        return found

    async def _get_host_key(self, session: Session) -> tuple[str, str]:
        """Return a session's host key and its certificate, made at the first connection."""
        async with self._making:
            known = self._host_keys.get(session.id)
            if known is None or known[0] <= self._clock():
                made = await asyncio.to_thread(self._make_host_key)
                known = self._host_keys[session.id] = (self._clock() + HOST_KEY_LIFE / 2, *made)
                while len(self._host_keys) > HOST_KEYS:
                    del self._host_keys[next(iter(self._host_keys))]
        return known[1], known[2]

    def _make_host_key(self) -> tuple[str, str]:
        with tempfile.TemporaryDirectory(prefix="portico-") as folder:
            path = Path(folder) / "host_key"
            argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", HOST_ALIAS, "-f", str(path)]
            try:
                subprocess.run(argv, check=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=KEYGEN_S)
                public = path.with_suffix(".pub").read_text()
                until = self._clock() + HOST_KEY_LIFE
                return path.read_text(), self._authority.sign_host(public, principals=[HOST_ALIAS], valid_until=until)
            except (OSError, subprocess.SubprocessError) as error:
                raise Unavailable("A host key could not be made.", why=str(error)) from error
