"""What the gateway asks the portal: which way a request goes. Knows no domain; docs/protocol.md is normative.

It keeps decisions for as long as the portal allows, knows everything that is live and what it lives by, and cuts it
when the portal says so. While the portal is away nothing new is let in, and what is live goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from portico import wire
from portico.errors import PorticoError, Refused, TooMany, Unavailable
from portico.gateway.clipboard import ANY, Clipboard
from portico.gateway.limits import Limits
from portico.gateway.metrics import Metrics
from portico.gateway.websocket import CUT

Json = dict[str, Any]
Context = tuple[object, ...]

log = logging.getLogger(__name__)

RECONNECT_FIRST_S: Final = 0.05
RECONNECT_LAST_S: Final = 1.0
ASK_S: Final = 10.0
CUT_AT_ONCE: Final = 32
"""Streams that are ended before others have their turn."""
HELLO_TAGS: Final = 2000
"""Tags in one ``hello``: with 40 bytes each it is well below a message's limit; more tags take more notices."""

SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing (RFC 9110, 9.2.1)."""

_CUTS_REMEMBERED_S: Final = 2 * ASK_S
_CONTROLS: Final = frozenset(map(chr, [*range(32), 127]))


class Live(Protocol):
    """A stream or request under way."""

    @property
    def tags(self) -> frozenset[str]:
        """What it lives by."""

    @property
    def is_stream(self) -> bool:
        """Whether it is a stream, and not a request."""

    def end(self, code: int, reason: str) -> None:
        """End it, with a WebSocket close code where it can say one."""


@dataclass(frozen=True)
class Answer:
    """The portal answers the request itself."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


@dataclass
class Way:
    """A way to an app. ``fd`` is one connection to it, or -1; owned by whoever takes the way.

    ``protocol`` is empty for kind ``http``; ``key`` and ``prefix`` are empty for kind ``stream``.
    """

    tags: frozenset[str]
    fd: int = -1
    key: str = ""
    prefix: str = ""
    cache_s: float = 0.0
    protocol: str = ""
    view_only: bool = True
    clipboard: Clipboard = ANY

    def take_descriptor(self) -> int:
        """Return the connection, which is the caller's from now on; -1 where there is none."""
        fd, self.fd = self.fd, -1
        return fd


@dataclass
class _Kept:
    way: Way
    expires: float = field(default=0.0)


def parse_decision(packet: wire.Packet) -> Way | Answer:
    """Return the decision in an answer to ``route``; its descriptors are closed if it is refused.

    Raises:
        Refused: It is not as docs/protocol.md says.

    """
    body, fds = packet
    try:
        kind = body["kind"]
        if kind == "answer":
            wire.close_all(fds)
            headers = body.get("headers") or {}
            pairs = headers.items() if isinstance(headers, dict) else headers
            status = int(body["status"])
            given = tuple((str(name), str(value)) for name, value in pairs)
            if not 200 <= status <= 599 or any(set(name + value) & _CONTROLS for name, value in given):
                raise ValueError("status or header")
            return Answer(status, given, str(body.get("body", "")).encode())
        tags = frozenset(str(tag) for tag in body["tags"])
        if kind not in ("http", "stream") or len(fds) != 1 or not tags:
            raise ValueError("kind")
        if kind == "stream":
            # Only what says that it is not view-only is not.
            view_only, clipboard = body["view_only"] is not False, _parse_clipboard(body.get("clipboard"))
            return Way(tags, fds[0], protocol=str(body["protocol"]), view_only=view_only, clipboard=clipboard)
        prefix, cache_s = str(body["prefix"]), float(body.get("cache_s") or 0)
        return Way(tags, fds[0], key=str(body["key"]), prefix=prefix, cache_s=cache_s)
    except (KeyError, TypeError, ValueError) as error:
        wire.close_all(fds)
        raise Refused("The portal's answer is not understood.", why=repr(error)) from error


def _parse_clipboard(given: Any) -> Clipboard:
    """Return a stream's limits; a name that is not known would be a limit that does not hold.

    Raises:
        ValueError: They are not understood.
    """
    limits = {} if given is None else given
    if not isinstance(limits, dict) or not limits.keys() <= {"in", "out"}:
        raise ValueError("clipboard")
    if any(type(limit) is not int or not 0 <= limit < 1 << 31 for limit in limits.values()):
        raise ValueError("clipboard")
    return Clipboard(limits.get("in"), limits.get("out"))


class Routes:
    """The channel to the portal, its kept decisions, and all that is live.

    Args:
        path: The portal's routes socket.
        limits: How many decisions are kept, and how many streams a tag may carry.
        metrics: Where cuts and the time of questions are counted.
        render_metrics: What the portal gets that asks for metrics.
    """

    def __init__(
        self,
        path: str,
        limits: Limits | None = None,
        metrics: Metrics | None = None,
        render_metrics: Callable[[], Json] = dict,
    ) -> None:
        limits = limits or Limits()
        self._path = path
        self._limit = limits.decisions
        self._most = dict(limits.streams_per_tag)
        self._carried: Counter[str] = Counter()
        self._metrics = metrics or Metrics()
        self._render_metrics = render_metrics
        self._channel: wire.Channel | None = None
        self._kept: dict[Context, list[_Kept]] = {}
        self._live: set[Live] = set()
        self._cuts: deque[tuple[float, frozenset[str]]] = deque()
        self.on_drop: Callable[[str], None] = lambda key: None

    # the channel

    async def run(self) -> None:
        """Stay connected, until cancelled."""
        wait_s = RECONNECT_FIRST_S
        try:
            while True:
                with contextlib.suppress(PorticoError, OSError):
                    self._channel = channel = await self._open()
                    await self._say_hello(channel)
                    wait_s = RECONNECT_FIRST_S
                    await channel.wait_closed()
                    log.warning("the portal is away: live streams go on, new requests wait for it")
                self._channel = None
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, RECONNECT_LAST_S)
        finally:
            if self._channel:
                self._channel.close()

    async def _open(self) -> wire.Channel:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.setblocking(False)
        try:
            sock.connect(self._path)  # SEQPACKET on Unix: at once, or EAGAIN where the backlog is full
            return wire.Channel(sock, self._handle, name="portal")
        except OSError:
            sock.close()
            raise

    async def _say_hello(self, channel: wire.Channel) -> None:
        tags = sorted({tag for live in self._live for tag in live.tags})
        for at in range(0, max(len(tags), 1), HELLO_TAGS):
            await channel.notify("hello", {"pid": os.getpid(), "tags": tags[at : at + HELLO_TAGS]})

    async def _ask(self, op: str, args: Json) -> wire.Packet:
        channel = self._channel
        if channel is None or channel.closed:
            raise Unavailable("Portico is restarting.", why="Nobody can say now who may go where.", retry_after_s=2)
        return await channel.ask(op, args, timeout_s=ASK_S)

    # decisions

    async def route(self, request: Json) -> Way | Answer:
        """Return the portal's decision, and keep it for as long as it allows.

        Raises:
            Unavailable: The portal is away.
            PorticoError: It refuses.

        """
        context = make_context(request)
        loop = asyncio.get_running_loop()
        for _ in range(3):
            asked_at = loop.time()
            decision = parse_decision(await self._ask("route", request))
            self._metrics.authorisation.observe(loop.time() - asked_at)
            if isinstance(decision, Answer):
                return decision
            if not self._was_cut_since(asked_at, decision.tags):
                self._keep(context, decision)
                return decision
            wire.close_all([decision.take_descriptor()])  # decided before the cut, so what it says is old
        raise Unavailable("This way was just taken back.", retry_after_s=1)

    async def connect(self, way: Way) -> int:
        """Return one more connection for a kept decision.

        Raises:
            PorticoError: It does not hold any more, or the portal is away.

        """
        asked_at = asyncio.get_running_loop().time()
        packet = await self._ask("connect", {"key": way.key})
        if len(packet.fds) != 1 or self._was_cut_since(asked_at, way.tags):
            wire.close_all(packet.fds)
            raise Unavailable("The portal gave no connection.", retry_after_s=1)
        return packet.fds[0]

    def forget(self, way: Way) -> None:
        """Drop kept decisions for the same app as ``way``'s, because they led nowhere."""
        self._drop(lambda kept: kept.key == way.key)

    def _keep(self, context: Context, way: Way) -> None:
        if not way.key or way.cache_s <= 0 or not way.prefix.endswith("/"):
            return
        if len(self._kept) >= self._limit:
            self._kept.pop(next(iter(self._kept)))
        expires = asyncio.get_running_loop().time() + way.cache_s
        copy = Way(way.tags, key=way.key, prefix=way.prefix)
        others = [one for one in self._kept.pop(context, []) if one.way.prefix != way.prefix]
        self._kept[context] = [*others[-15:], _Kept(copy, expires)]

    def find_kept(self, context: Context, path: str, at: float) -> Way | None:
        """Return a decision that the portal allowed to be kept, by the plane's time; it has no descriptor."""
        for kept in self._kept.get(context, ()):
            if path.startswith(kept.way.prefix) and kept.expires > at:
                return kept.way
        return None

    def _drop(self, is_dropped: Callable[[Way], bool]) -> None:
        for context, kept in list(self._kept.items()):
            left = [one for one in kept if not is_dropped(one.way)]
            if left:
                self._kept[context] = left
            else:
                del self._kept[context]

    # what is live

    def refuse_too_many(self, tags: frozenset[str]) -> None:
        """Refuse one more stream where a tag carries all it may.

        Raises:
            TooMany: See there.
        """
        for tag, kind in self._find_limited(tags):
            if self._carried[tag] >= self._most[kind]:
                raise TooMany(
                    "Too many streams are open.", why=f"This {kind} has {self._most[kind]}.", hint="Close some windows."
                )

    def _find_limited(self, tags: frozenset[str]) -> list[tuple[str, str]]:
        return [(tag, kind) for tag in tags if (kind := tag.partition(":")[0]) in self._most]

    def add(self, live: Live) -> None:
        """Keep something where ``cut`` finds it, until it is removed."""
        self._live.add(live)
        if live.is_stream:
            self._carried.update(tag for tag, _ in self._find_limited(live.tags))

    def remove(self, live: Live) -> None:
        """Forget something that has ended; a second time changes nothing."""
        if live not in self._live:
            return
        self._live.remove(live)
        if live.is_stream:
            for tag, _ in self._find_limited(live.tags):
                self._carried[tag] -= 1
                if not self._carried[tag]:
                    del self._carried[tag]

    def end_streams(self, code: int, reason: str) -> None:
        """End all streams, and no request."""
        for live in list(self._live):
            if live.is_stream:
                live.end(code, reason)

    async def _handle(self, op: str, args: Json, fds: list[int]) -> wire.Answer | None:
        wire.close_all(fds)
        if op == "metrics":
            return self._render_metrics(), ()
        tags = args.get("tags")
        if op != "cut" or not isinstance(tags, list):
            raise Refused(f"A gateway knows no such {op[:20]!r}.")
        return {"streams": await self._cut(frozenset(str(tag) for tag in tags))}, ()

    async def _cut(self, tags: frozenset[str]) -> int:
        """End all that lives by any of these; nothing new comes meanwhile, and others have their turns."""
        loop = asyncio.get_running_loop()
        self._cuts.append((loop.time(), tags))
        while self._cuts[0][0] < loop.time() - _CUTS_REMEMBERED_S:
            self._cuts.popleft()
        keys = {one.way.key for kept in self._kept.values() for one in kept if one.way.tags & tags}
        self._drop(lambda way: bool(way.tags & tags))
        for key in keys | {tag.partition(":")[2] for tag in tags if tag.startswith("session:")}:
            self.on_drop(key)
        self._metrics.cuts += 1
        hit = [live for live in self._live if live.tags & tags]
        for number, live in enumerate(hit, 1):
            live.end(CUT, "taken back")
            if number % CUT_AT_ONCE == 0:
                await asyncio.sleep(0)
        return sum(live.is_stream for live in hit)

    def _was_cut_since(self, since: float, tags: frozenset[str]) -> bool:
        return any(at >= since and cut & tags for at, cut in self._cuts)


def make_context(request: Json) -> Context:
    """Return all that a decision may depend on besides the path; what differs in any of it is asked for anew."""
    headers: dict[str, str] = request["headers"]
    return (
        request["method"] in SAFE,
        request["listener"],
        request["host"],
        request["scheme"],
        request["address"],
        request["upgrade"],
        *(item for name in sorted(headers) for item in (name, headers[name])),
    )
