"""Many streams of one client at once, all but idle: they answer pings, and notice when they are closed."""

from __future__ import annotations

import select
import ssl
import time
from collections.abc import Callable
from types import TracebackType
from typing import Final, Self

from gateway_bench import rfb
from gateway_bench.bridges import Bridge
from gateway_bench.client import Client, parse_frame, render_frame

PER_ADDRESS: Final = 400
"""Streams from one address of 127.0.0.0/8: fewer than a gateway lets one address have, and than there are ports."""

_PUMP_EVERY: Final = 200


class Member:
    """One stream."""

    def __init__(self, client: Client, websocket: bool) -> None:
        self.client, self._websocket = client, websocket
        self.said = b""
        self.told_at_s = 0.0
        self.closed_at_s = 0.0
        self._rest = b""
        client.sock.setblocking(False)

    def hear(self) -> None:
        """Take what came: the app's bytes to ``said``; pings and a close frame are answered (RFC 6455, 5.5)."""
        while not self.closed_at_s:
            try:
                data = self.client.sock.recv(4096)
            except (BlockingIOError, ssl.SSLWantReadError):
                return
            except OSError:
                data = b""
            if not data:
                self.closed_at_s = time.monotonic()
                self.client.sock.close()
            elif not self._websocket:
                self.said += data
            else:
                self._rest += data
                self._hear_frames()

    def _hear_frames(self) -> None:
        while True:
            frame, self._rest = parse_frame(self._rest)
            if frame is None:
                return
            kind, payload = frame
            if kind == 2:
                self.said += payload
            elif kind in (8, 9):
                self.told_at_s = time.monotonic() if kind == 8 else self.told_at_s
                self.client.sock.sendall(render_frame(8 if kind == 8 else 10, payload))


class Fleet:
    """Streams through one bridge; closed at the end of the block."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._epoll = select.epoll()
        self._by_fd: dict[int, Member] = {}
        self.members: list[Member] = []
        self.refused: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for member in self.members:
            member.client.sock.close()
        self._epoll.close()

    def open(self, number: int, first: int = 0) -> None:
        """Open so many more streams, each of a desktop of its own from ``first`` on; gives up after 20 refusals."""
        for index in range(first, first + number):
            try:
                client = self._bridge.open(index, f"127.0.0.{2 + index // PER_ADDRESS}")
            except OSError as error:
                self.refused.append(str(error))
                if len(self.refused) >= 20:
                    return
                continue
            member = Member(client, self._bridge.websocket)
            self.members.append(member)
            self._by_fd[client.sock.fileno()] = member
            self._epoll.register(client.sock.fileno(), select.EPOLLIN)
            if index % _PUMP_EVERY == 0:
                self.pump(lambda: True, 0)

    def pump(self, done: Callable[[], bool], timeout_s: float) -> None:
        """Hear what comes, until ``done`` or the time is up."""
        deadline = time.monotonic() + timeout_s
        while True:
            for fd, _ in self._epoll.poll(0 if done() else max(0.0, min(0.1, deadline - time.monotonic())), 1024):
                member = self._by_fd[fd]
                member.hear()
                if member.closed_at_s:
                    del self._by_fd[fd]
            if done() or time.monotonic() >= deadline:
                return

    def count_answering(self, timeout_s: float = 60.0) -> int:
        """Send an input event through each; return how many answered it."""
        waiting = [member for member in self.members if not member.closed_at_s]
        for member in waiting:
            member.said = b""
            member.client.say(rfb.POINTER)

        def all_heard() -> bool:
            while waiting and (waiting[-1].said or waiting[-1].closed_at_s):
                waiting.pop()
            return not waiting

        self.pump(all_heard, timeout_s)
        return sum(member.said == rfb.POINTER for member in self.members)
