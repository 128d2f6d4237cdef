"""The gateway's event loop: asyncio's, whose selector serves the data plane itself, without a task for each stream.

A stream costs two small objects and two entries of an epoll(7) set, and one of its bytes costs a dictionary look-up and
a call. Everything that waits for the portal, for signals or for a clock stays ordinary asyncio: its descriptors are in
an epoll set of their own, which is one more descriptor of ours.
"""

from __future__ import annotations

import asyncio
import logging
import math
import select
import selectors
import socket
import time
from collections.abc import Mapping
from typing import Any, Final, Protocol

log = logging.getLogger(__name__)

BUFFER_BYTES: Final = 256 * 1024
"""What is read at once: a little more than what a Unix socket holds by default (net.core.wmem_default, 212,992)."""

KEPT_MOST_BYTES: Final = 256 * 1024 * 1024
"""What may wait for slow clients in all; beyond it those who keep much are closed, and come back."""

HEADROOM_BYTES: Final = 16
"""In front of what is read, for the header of the frame that it becomes."""

READ: Final = select.EPOLLIN | select.EPOLLRDHUP | select.EPOLLET
WRITE: Final = select.EPOLLOUT
ENDING: Final = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR
_EVENTS_AT_ONCE: Final = 512


class Served(Protocol):
    """What a descriptor's events go to."""

    def on_event(self, mask: int) -> None:
        """Take an event. It is a hint: what it says may be over, or about a descriptor that was closed meanwhile."""

    def on_turn(self) -> None:
        """Go on with what gave others their turn."""


class Plane(selectors.BaseSelector):
    """A selector for asyncio that calls those who :meth:`attach` directly, edge-triggered.

    ``now`` is the monotonic time of the latest events; ``buffer`` belongs to whoever runs, until it returns.
    """

    def __init__(self) -> None:
        self._asyncio = selectors.EpollSelector()
        self._epoll = select.epoll()
        self._inner = self._asyncio.fileno()
        self._epoll.register(self._inner, select.EPOLLIN)
        self._served: dict[int, Served] = {}
        self._turns: list[Served] = []
        self.now = time.monotonic()
        self.buffer = memoryview(bytearray(HEADROOM_BYTES + BUFFER_BYTES))
        self.kept_bytes = 0  # what all ends together could not send yet
        self.kept_most_bytes = KEPT_MOST_BYTES
        self.slowest_s = 0.0  # the longest time between two waits since somebody set it to 0

    # for the data plane

    def attach(self, fd: int, served: Served, events: int = READ) -> None:
        """Serve a descriptor from now on."""
        self._served[fd] = served
        self._epoll.register(fd, events)

    def change(self, fd: int, events: int) -> None:
        """Wait for other events; one that has happened already comes at once."""
        self._epoll.modify(fd, events)

    def detach(self, fd: int) -> None:
        """Serve it no more; before it is closed."""
        if self._served.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def give_turn(self, served: Served) -> None:
        """Let others run first, then call ``on_turn``."""
        self._turns.append(served)

    # for asyncio

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait, serve the data plane, and return what is ready of asyncio's own."""
        began = time.monotonic()
        self.slowest_s = max(self.slowest_s, began - self.now)
        if self._turns or (timeout is not None and timeout <= 0):
            timeout = 0
        elif timeout is not None:
            timeout = math.ceil(timeout * 1e3) * 1e-3  # epoll_wait(2) knows milliseconds
        try:
            events = self._epoll.poll(timeout, _EVENTS_AT_ONCE)
        except InterruptedError:
            return []
        self.now = time.monotonic()
        is_ready = False
        get = self._served.get
        for fd, mask in events:
            if fd == self._inner:
                is_ready = True
                continue
            served = get(fd)
            if served is not None:
                try:
                    served.on_event(mask)
                except Exception:  # a defect of ours: the others go on
                    log.exception("a connection failed")
        if self._turns:
            turns, self._turns = self._turns, []
            for served in turns:
                try:
                    served.on_turn()
                except Exception:
                    log.exception("a connection failed")
        return self._asyncio.select(0) if is_ready else []

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """See selectors.BaseSelector."""
        return self._asyncio.register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """See selectors.BaseSelector."""
        return self._asyncio.unregister(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """See selectors.BaseSelector."""
        return self._asyncio.get_map()

    def close(self) -> None:
        """See selectors.BaseSelector."""
        self._epoll.close()
        self._asyncio.close()


class PlaneLoop(asyncio.SelectorEventLoop):
    """asyncio's loop on a plane."""

    def __init__(self) -> None:
        self.plane = Plane()
        super().__init__(self.plane)


def get_plane() -> Plane:
    """Return the plane of the running loop.

    Raises:
        RuntimeError: It has none: run with ``asyncio.Runner(loop_factory=PlaneLoop)``.
    """
    loop = asyncio.get_running_loop()
    if not isinstance(loop, PlaneLoop):
        raise RuntimeError("the gateway runs on a PlaneLoop")
    return loop.plane


class Acceptor:
    """A listening socket. Several processes may share one: each connection wakes one of them (EPOLLEXCLUSIVE)."""

    def __init__(self, plane: Plane, listener: socket.socket) -> None:
        self._plane, self._listener = plane, listener
        self._waiting = asyncio.Event()
        self._is_attached = False
        listener.setblocking(False)

    async def wait(self) -> None:
        """Wait until there is a connection to accept, or somebody else has taken it."""
        if not self._is_attached:
            self._waiting.clear()
            self._plane.attach(self._listener.fileno(), self, select.EPOLLIN | select.EPOLLEXCLUSIVE)
            self._is_attached = True
        await self._waiting.wait()

    def on_event(self, mask: int) -> None:
        """Wake who accepts; until that one waits again there is nothing to tell."""
        self.close()
        self._waiting.set()

    def on_turn(self) -> None:
        """Nothing takes turns here."""

    def close(self) -> None:
        """Take no more notice of it."""
        if self._is_attached:
            self._is_attached = False
            self._plane.detach(self._listener.fileno())
