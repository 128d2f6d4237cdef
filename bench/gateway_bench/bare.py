"""The least that any process between two sockets can do: no frames, no rules, nobody asked; bulk by splice(2).

    python -m gateway_bench.bare --app PATH --port PORT --app-port PORT --tcp-port PORT

What comes on ``--port`` goes to the app's Unix socket, what comes on ``--tcp-port`` to the app's TCP port. It is no
product: it shows how much of everybody's figures is the kernel's, and so how far a bridge can get at all.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import os
import select
import socket
from typing import Final

from gateway_bench.app import BACKLOG
from gateway_bench.client import Address, connect

PIPE_BYTES: Final = 1 << 20
READ_BYTES: Final = 64 * 1024
_SET_PIPE_SIZE: Final = 1031  # F_SETPIPE_SZ (fcntl(2))


class Way:
    """One direction of a connection. Bytes are copied until a read was full, and spliced from then on."""

    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self.source, self.target = source, target
        self._pipe: tuple[int, int] | None = None

    def move(self) -> bool:
        """Move what there is; return False at the end. A target that is full is waited for: one stream is measured."""
        if self._pipe is not None:
            reader, writer = self._pipe
            left = size = os.splice(self.source.fileno(), writer, PIPE_BYTES)
            while left:
                left -= os.splice(reader, self.target.fileno(), left)
            return bool(size)
        data = self.source.recv(READ_BYTES)
        self.target.sendall(data)
        if len(data) == READ_BYTES:
            self._pipe = os.pipe()
            fcntl.fcntl(self._pipe[1], _SET_PIPE_SIZE, PIPE_BYTES)
        return bool(data)

    def close(self) -> None:
        """Close the source and what is between."""
        self.source.close()
        for fd in self._pipe or ():
            os.close(fd)


def serve(listeners: dict[socket.socket, Address]) -> None:
    """Serve for ever, one event after the other."""
    epoll = select.epoll()
    waiting = {listener.fileno(): (listener, address) for listener, address in listeners.items()}
    ways: dict[int, Way] = {}
    for fd in waiting:
        epoll.register(fd, select.EPOLLIN)
    while True:
        for fd, _ in epoll.poll():
            if fd in waiting:
                listener, address = waiting[fd]
                client, _ = listener.accept()
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                app = connect(address)
                for source, target in ((client, app), (app, client)):
                    ways[source.fileno()] = Way(source, target)
                    epoll.register(source.fileno(), select.EPOLLIN)
            elif (way := ways.get(fd)) is not None:
                going = False
                with contextlib.suppress(OSError):
                    going = way.move()
                if not going:
                    other = ways.pop(way.target.fileno())
                    ways.pop(fd)
                    other.close()
                    way.close()


def main() -> None:
    """Listen and serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--app", required=True)
    for name in ("--port", "--app-port", "--tcp-port"):
        parser.add_argument(name, type=int, required=True)
    options = parser.parse_args()
    serve({
        socket.create_server(("127.0.0.1", options.port), backlog=BACKLOG): options.app,
        socket.create_server(("127.0.0.1", options.tcp_port), backlog=BACKLOG): ("127.0.0.1", options.app_port),
    })  # fmt: skip


if __name__ == "__main__":
    main()
