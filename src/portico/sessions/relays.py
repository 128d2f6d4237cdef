"""The relays of sessions on other machines, as the portal knows them: who may be one, and what they are asked.

A relay proves itself with a secret that is made from the session's id and a key of this installation, so that nothing
has to be kept for it. The secret stands in one file of the session's folder, which is its user's alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from portico import wire
from portico.errors import Forbidden, NotFound, PorticoError, Refused, Unavailable
from portico.model import SESSION_ID, Session, now
from portico.sessions.record import clean_text

Json = dict[str, Any]

log = logging.getLogger(__name__)

ASK_S: Final = 6.0


@dataclass(frozen=True)
class Arrival:
    """A relay that is connected: the session's job runs on ``node``, and did at ``at``.

    ``run`` is how often Slurm had put the job back when this relay was started.
    """

    at: datetime
    node: str
    run: int


class Relays:
    """What the rendezvous process asks, and is asked.

    Args:
        key: What secrets are made with; of this installation alone.
        find: Returns a session's row; None where there is none.
    """

    def __init__(
        self, key: bytes, find: Callable[[str], Awaitable[Session | None]], clock: Callable[[], datetime] = now
    ) -> None:
        self._key = key
        self._find = find
        self._clock = clock
        self._channel: wire.Channel | None = None
        self._arrived: dict[str, Arrival] = {}
        self._watchers: dict[str, Callable[[], None]] = {}

    def watch(self, cluster: str, call: Callable[[], None]) -> None:
        """Have something called whenever a relay of this cluster's has come."""
        self._watchers[cluster] = call

    def make_token(self, session_id: str) -> str:
        """Return a session's secret."""
        return hmac.new(self._key, session_id.encode(), hashlib.sha256).hexdigest()

    def find_arrival(self, session_id: str) -> Arrival | None:
        """Return the relay that is connected for a session."""
        return self._arrived.get(session_id)

    # the rendezvous

    def accept(self, channel: wire.Channel) -> None:
        """Take a rendezvous' connection; the newest is the one that is asked."""
        if self._channel:
            self._channel.close()
        self._channel = channel
        self._arrived.clear()

    async def handle(self, op: str, args: Json, fds: list[int]) -> wire.Answer | None:
        """Answer the rendezvous; docs/protocol.md, "Relay"."""
        wire.close_all(fds)
        if op == "relay":
            session_id, token, node = (str(args.get(name)) for name in ("session", "token", "node"))
            await self._admit(session_id, token, node, int(args.get("run", 0)))
            return {}, ()
        if op == "hello":
            for session_id, node, run in args.get("relays", ()):
                await self._arrive(str(session_id), str(node), int(run))
            return None
        if op == "relay_gone":
            session_id = str(args.get("session"))
            if self._arrived.pop(session_id, None):
                log.info("session %s: its relay is away", session_id)
            return None
        raise Refused(f"The portal knows no {op[:20]!r}.")

    async def _admit(self, session_id: str, token: str, node: str, run: int) -> None:
        """Let a relay in.

        Raises:
            Forbidden: It has not the session's secret.
            NotFound: There is no such session, not yet again, or not this run of it any more.
        """
        if not SESSION_ID.match(session_id) or not hmac.compare_digest(
            token.encode(), self.make_token(session_id).encode()
        ):
            log.warning("a relay on %s has no right to what it claims to be", clean_text(node, 100))
            raise Forbidden("This relay has no right to serve this session.")
        if not await self._arrive(session_id, node, run):
            raise NotFound("There is no such session that could run.")

    async def let_go(self, session_id: str, run: int) -> None:
        """Let go of a session's relay, unless it is of this run already: its node is no longer the session's."""
        arrival = self._arrived.get(session_id)
        if arrival is None or arrival.run < run:
            self._arrived.pop(session_id, None)
            with contextlib.suppress(PorticoError):
                await self._ask("relay_drop", {"session": session_id})

    async def _arrive(self, session_id: str, node: str, run: int) -> bool:
        session = await self._find(session_id)
        if session is None or session.ended is not None or run < session.restarts:
            return False  # a node that was given up may come back, and its relay with it
        self._arrived[session_id] = Arrival(self._clock(), clean_text(node, 100), run)
        if call := self._watchers.get(session.cluster):
            call()
        return True

    async def _ask(self, op: str, args: Json) -> wire.Packet:
        if self._channel is None or self._channel.closed:
            raise Unavailable("Connections to other machines are not possible now.", why="The rendezvous is away.")
        return await self._channel.ask(op, args, timeout_s=ASK_S)

    async def probe(self, session: Session, path: str) -> tuple[bool, str]:
        """Return whether an app answers, and what is waited for where it does not.

        Raises:
            PorticoError: The relay does not say.
        """
        if session.id not in self._arrived:
            return False, "its node to call back"
        body = (await self._ask("relay_probe", {"session": session.id, "reach": session.reach, "path": path})).body
        return body.get("ready") is True, clean_text(str(body.get("waiting_for")), 200)

    async def connect(self, session_id: str, ssh: Mapping[str, str] | None = None) -> int:
        """Return a connection to a session's app; the caller owns it.

        Args:
            session_id: Which.
            ssh: Files for an sshd inside the session, which it is then that is connected to.

        Raises:
            PorticoError: The relay or the app does not answer.
        """
        try:
            packet = await self._ask("relay_open", {"session": session_id, **({"ssh": dict(ssh)} if ssh else {})})
        except NotFound:
            raise Unavailable(
                "The session's node is not connected.", why="It is dialling again, or lost.", retry_after_s=2
            ) from None
        if len(packet.fds) != 1:
            wire.close_all(packet.fds)
            raise Refused("An answer came without the connection that it speaks of.")
        return packet.fds[0]
