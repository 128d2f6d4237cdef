"""The rendezvous: where relays dial in, and where each stream of theirs becomes a socket like that of a local app.

A relay's connection stays open; a stream comes on a connection of its own, with a nonce that was told to that one
relay. Its bytes are moved between TLS and one end of a socket pair, whose other end goes to the portal and from there
to the gateway that asked, as an agent's does. It knows no user: whether a relay may serve a session, the portal says.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
import secrets
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final

from portico import wire
from portico.errors import NotFound, PorticoError, Refused, TooMany, Unavailable
from portico.gateway.end import End, TlsEnd
from portico.gateway.flow import Flow
from portico.gateway.lines import Hello, LineReader, NotUnderstood, parse_first, render
from portico.gateway.plane import Acceptor, Plane, get_plane

Json = dict[str, Any]

log = logging.getLogger(__name__)

FIRST_LINE_S: Final = 10.0
ASK_S: Final = 10.0
OPEN_S: Final = 4.0
"""Less than what the portal waits for, and that less than what the gateway does."""
PING_S: Final = 20.0
DEAD_S: Final = 60.0
CONNECTIONS: Final = 20_000
UNKNOWN: Final = 2_000
"""Connections that have not said yet who they are."""
STREAMS_PER_SESSION: Final = 512
_KEPT_BYTES: Final = 256 * 1024
_ACCEPTED_AT_ONCE: Final = 64


class Arrival:
    """A connection that has not said yet what it is."""

    def __init__(self, hub: Rendezvous, sock: socket.socket, tls: ssl.SSLContext) -> None:
        self._hub = hub
        self._reader = LineReader()
        self.deadline = hub.plane.now + FIRST_LINE_S
        self.end = TlsEnd(hub.plane, sock, self, tls, lambda took_s: None)

    def on_readable(self, end: End) -> None:
        """Read up to the first line."""
        try:
            while end.readable:
                data = end.recv()
                if data is None:
                    return
                if not data:
                    self.close()
                    return
                if found := self._reader.take(data):
                    self._hub.admit(self, parse_first(found[0]), found[1])
                    return
        except OSError:
            self.close()
        except NotUnderstood as error:
            log.info("a connection was refused: %s", error)
            self.close()

    def on_writable(self, end: End) -> None:
        """Nothing is said before the first line."""

    def on_broken(self, end: End) -> None:
        """Close it."""
        self.close()

    def on_deadline(self) -> None:
        """Give it up."""
        self.close()

    def close(self) -> None:
        """Close at once."""
        self.end.close()
        self._hub.forget(self)


class Relay:
    """A relay's own connection. ``admitted`` once the portal has let it in."""

    def __init__(self, hub: Rendezvous, end: End, hello: Hello) -> None:
        self._hub, self.end = hub, end
        self.session, self.node, self.run = hello.session, hello.node, hello.run
        self.admitted = False
        self.streams = 0
        self._reader = LineReader()
        self._probes: dict[int, asyncio.Future[Json]] = {}
        self._next_probe = 1
        self.deadline = hub.plane.now + PING_S
        end.owner = self

    def say(self, message: Json) -> None:
        """Send a line; a relay that takes none for long is gone."""
        try:
            self.end.send(render(message))
        except OSError:
            self.close()
            return
        if self.end.out is not None and len(self.end.out) > _KEPT_BYTES:
            self.close()

    async def probe(self, reach: str, path: str) -> Json:
        """Ask whether the app answers.

        Raises:
            Unavailable: The relay does not say.
        """
        number, self._next_probe = self._next_probe, self._next_probe + 1
        future: asyncio.Future[Json] = asyncio.get_running_loop().create_future()
        self._probes[number] = future
        self.say({"probe": number, "reach": reach, "path": path})
        try:
            async with asyncio.timeout(OPEN_S):
                return await future
        except TimeoutError:
            raise Unavailable("The session's relay does not answer.", retry_after_s=2) from None
        finally:
            self._probes.pop(number, None)

    def on_readable(self, end: End) -> None:
        """Take lines."""
        try:
            while end.readable:
                data = end.recv()
                if data is None:
                    return
                if not data:
                    self.close()
                    return
                while found := self._reader.take(data):
                    self._take(found[0])
                    data = found[1]
                if end.must_yield():
                    return
        except OSError:
            self.close()
        except NotUnderstood as error:
            log.warning("session %s: its relay was let go: %s", self.session, error)
            self.close()

    def _take(self, message: Json) -> None:
        if "failed" in message:
            self._hub.fail(self, str(message["failed"]), str(message.get("why", ""))[:200])
        elif "probed" in message:
            number = message["probed"]
            future = self._probes.get(number) if isinstance(number, int) else None
            if future and not future.done():
                future.set_result(message)

    def on_writable(self, end: End) -> None:
        """Nothing waits for that."""

    def on_broken(self, end: End) -> None:
        """Close it."""
        self.close()

    def on_deadline(self) -> None:
        """Ping it, or give it up."""
        now = self._hub.plane.now
        if now - self.end.heard > DEAD_S:
            self.close()
            return
        self.deadline = now + PING_S
        self.say({"ping": 1})

    def close(self) -> None:
        """Close at once; its streams go on, they have connections of their own."""
        if not self.end.closed:
            self.end.close()
            for future in self._probes.values():
                if not future.done():
                    future.set_exception(Unavailable("The session's relay is away.", retry_after_s=2))
            self._hub.forget(self)


class Joined:
    """A stream: TLS from the relay on one side, one end of a socket pair on the other."""

    deadline = math.inf

    def __init__(self, hub: Rendezvous, relay: Relay, remote: End, near: End) -> None:
        self._hub, self._relay = hub, relay
        self._remote, self._near = remote, near
        self._in, self._out = Flow(hub.plane, near, remote), Flow(hub.plane, remote, near)
        relay.streams += 1
        remote.owner = near.owner = self

    def start(self, said: bytes) -> None:
        """Carry what is there already, ``said`` first."""
        try:
            if said:
                self._near.send(said)
        except OSError:
            self.close()
            return
        for end in (self._remote, self._near):
            end.readable = True
            if not end.closed:
                self.on_readable(end)

    def on_readable(self, end: End) -> None:
        """Carry on."""
        self._carry(self._out if end is self._remote else self._in)

    def on_writable(self, end: End) -> None:
        """Carry on what waited for this end to take it."""
        self._carry(self._in if end is self._remote else self._out)

    def on_broken(self, end: End) -> None:
        """End it."""
        self.close()

    def on_deadline(self) -> None:
        """There is none."""

    def _carry(self, flow: Flow) -> None:
        try:
            flow.move()
        except OSError:
            self.close()
            return
        if flow.is_over and flow.target.out is None:  # TLS can't be closed halfway
            self.close()

    def close(self) -> None:
        """Close at once."""
        if not (self._remote.closed and self._near.closed):
            self._remote.shutdown_write()
            self._remote.close()
            self._near.close()
            self._relay.streams -= 1
            self._hub.forget(self)


class Rendezvous:
    """Serves relays and, on a channel that it keeps open, the portal.

    Args:
        path: The portal's socket for it.
    """

    def __init__(self, path: str) -> None:
        self.plane: Plane = get_plane()
        self._path = path
        self._relays: dict[str, Relay] = {}
        self._waiting: dict[str, tuple[Relay, asyncio.Future[int]]] = {}
        self._all: set[Arrival | Relay | Joined] = set()
        self._arrivals = 0
        self._channel: wire.Channel | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # connections from relays

    async def listen(self, listener: socket.socket, tls: Callable[[], ssl.SSLContext]) -> None:
        """Accept connections until cancelled, each with the context that there is then."""
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(DEAD_S * 1000))
        acceptor = Acceptor(self.plane, listener)
        try:
            while True:
                await acceptor.wait()
                try:
                    for _ in range(_ACCEPTED_AT_ONCE):
                        sock, _ = listener.accept()
                        self._accept(sock, tls())
                except BlockingIOError:
                    pass
                except OSError as error:  # EMFILE and the like: connections wait in the backlog meanwhile
                    log.warning("accept: %s", error.strerror)
                    await asyncio.sleep(0.2)
        finally:
            acceptor.close()

    def _accept(self, sock: socket.socket, tls: ssl.SSLContext) -> None:
        if len(self._all) >= CONNECTIONS or self._arrivals >= UNKNOWN:
            sock.close()
            return
        try:
            arrival = Arrival(self, sock, tls)
        except (OSError, ValueError):
            sock.close()
            return
        self._arrivals += 1
        self._all.add(arrival)

    def admit(self, arrival: Arrival, who: Hello | str, said: bytes) -> None:
        """Take over a connection that has said what it is."""
        self.forget(arrival)
        if isinstance(who, Hello):
            relay = Relay(self, arrival.end, who)
            self._all.add(relay)
            self._begin(self._ask_about(relay, who.token))
            return
        waiting = self._waiting.pop(who, None)
        if waiting is None or waiting[1].done():
            log.info("a stream came that nobody waits for")
            arrival.end.close()
            return
        near, far = socket.socketpair()
        joined = Joined(self, waiting[0], arrival.end, End(self.plane, near, arrival))
        self._all.add(joined)
        waiting[1].set_result(far.detach())
        joined.start(said)

    async def _ask_about(self, relay: Relay, token: str) -> None:
        """Ask the portal whether a relay may serve its session."""
        try:
            said = {"session": relay.session, "token": token, "node": relay.node, "run": relay.run}
            await self._ask("relay", said)
        except PorticoError as error:
            relay.say({"refused": f"{error.message} {error.why}".strip()})
            relay.close()
            return
        if relay.end.closed:
            return
        if older := self._relays.get(relay.session):
            older.close()
        relay.admitted = True
        self._relays[relay.session] = relay
        relay.say({"ok": 1})

    def fail(self, relay: Relay, nonce: str, why: str) -> None:
        """Take note that a relay can't open a stream."""
        waiting = self._waiting.get(nonce)
        if waiting and waiting[0] is relay and not waiting[1].done():
            waiting[1].set_exception(Unavailable("The app does not answer.", why=why, retry_after_s=1))

    def forget(self, one: Arrival | Relay | Joined) -> None:
        """Forget a connection that was closed, or became another."""
        if one not in self._all:
            return
        self._all.discard(one)
        if isinstance(one, Arrival):
            self._arrivals -= 1
        elif isinstance(one, Relay) and self._relays.get(one.session) is one:
            del self._relays[one.session]
            for waiting, future in self._waiting.values():
                if waiting is one and not future.done():
                    future.set_exception(Unavailable("The session's relay is away.", retry_after_s=2))
            self._begin(self._tell_gone(one.session))

    async def _tell_gone(self, session: str) -> None:
        with contextlib.suppress(PorticoError):
            if self._channel:
                await self._channel.notify("relay_gone", {"session": session})

    def _begin(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # the portal

    async def run(self) -> None:
        """Stay connected to the portal, until cancelled."""
        while True:
            with contextlib.suppress(PorticoError, OSError):
                self._channel = channel = await wire.connect(self._path, self._handle, name="portal")
                relays = [[relay.session, relay.node, relay.run] for relay in self._relays.values()]
                for at in range(0, max(len(relays), 1), 500):
                    await channel.notify("hello", {"pid": os.getpid(), "relays": relays[at : at + 500]})
                await channel.wait_closed()
            self._channel = None
            await asyncio.sleep(0.1)

    async def _ask(self, op: str, args: Json) -> Json:
        channel = self._channel
        if channel is None or channel.closed:
            raise Unavailable("Portico is restarting.", retry_after_s=2)
        return (await channel.ask(op, args, timeout_s=ASK_S)).body

    async def _handle(self, op: str, args: Json, fds: list[int]) -> wire.Answer | None:
        wire.close_all(fds)
        session = str(args.get("session", ""))
        if op == "relay_drop":
            if relay := self._relays.get(session):
                relay.close()
            return {}, ()
        if op not in ("relay_open", "relay_probe"):
            raise Refused(f"The rendezvous knows no such {op[:20]!r}.")
        relay = self._relays.get(session)
        if relay is None:
            raise NotFound("The session's relay is not connected.")
        if op == "relay_probe":
            answer = await relay.probe(str(args.get("reach", "")), str(args.get("path", "")))
            waiting_for = str(answer.get("waiting_for", ""))[:200]
            return {"ready": answer.get("ready") is True, "waiting_for": waiting_for}, ()
        ssh = args.get("ssh")
        return {}, [await self._open(relay, ssh if isinstance(ssh, dict) else None)]

    async def _open(self, relay: Relay, ssh: Json | None = None) -> int:
        """Return a connection to a session's app, or to an sshd beside it that is given these files.

        Raises:
            Unavailable: The relay or the app does not answer.
            TooMany: The session has all the streams that it may have.
        """
        if relay.streams >= STREAMS_PER_SESSION:
            raise TooMany("Too many connections to this app are open.", hint="Close some windows.")
        nonce = secrets.token_hex(16)
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._waiting[nonce] = relay, future
        relay.say({"open": nonce, **({"ssh": ssh} if ssh else {})})
        try:
            async with asyncio.timeout(OPEN_S):
                return await future
        except TimeoutError:
            raise Unavailable("The session's relay does not answer.", retry_after_s=2) from None
        finally:
            self._waiting.pop(nonce, None)

    # life

    async def sweep(self) -> None:
        """Keep the times of all connections, until cancelled."""
        while True:
            await asyncio.sleep(1.0)
            now = self.plane.now
            for one in [one for one in self._all if one.deadline <= now]:
                one.on_deadline()

    def close(self) -> None:
        """Close all."""
        for one in list(self._all):
            one.close()
        for task in self._tasks:
            task.cancel()
        if self._channel:
            self._channel.close()


async def serve(
    path: str, listener: socket.socket, tls: Callable[[], ssl.SSLContext], on_ready: Callable[[], None] = lambda: None
) -> None:
    """Serve until cancelled, on a PlaneLoop."""
    hub = Rendezvous(path)
    tasks = [asyncio.create_task(work) for work in (hub.listen(listener, tls), hub.run(), hub.sweep())]
    on_ready()
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        hub.close()
