"""A portal that lets everybody in, at once: its side of docs/protocol.md and nothing else, in a process of its own.

    python -m gateway_bench.portal --folder FOLDER --port PORT [--site PATH]

``/stream/N`` is a desktop on the app's Unix socket, ``/tcp/N`` the same one on TCP; each is a session of its own, and
eight have a user together. ``/s/site/`` is an HTTP app on the socket ``--site``, ``/s/websocket/`` the app's WebSocket.
The socket ``control.sock`` takes ``cut`` from the bench and answers when it was sent, and how many streams it ended.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import time
from pathlib import Path
from typing import Any, Final

from portico import wire
from portico.errors import NotFound, Unavailable

Json = dict[str, Any]

EVERYBODY: Final = "sign-in:1"
"""A tag that every stream has."""

_CACHE_S: Final = 3600.0


class Portal:
    """Answers gateways.

    Args:
        folder: Of the app's sockets.
        port: The app's, on TCP.
        site: Unix socket of an HTTP server.
    """

    def __init__(self, folder: Path, port: int, site: str) -> None:
        self._rfb, self._port = str(folder / "rfb.sock"), port
        self._http = {"site": site, "websocket": str(folder / "websocket.sock")}
        self._channels: list[wire.Channel] = []

    async def listen(self, listener: socket.socket, handle: wire.Handler, kept: list[wire.Channel]) -> None:
        """Take connections for ever."""
        listener.setblocking(False)
        while True:
            sock, _ = await asyncio.get_running_loop().sock_accept(listener)
            kept.append(wire.Channel(sock, handle))

    async def run(self, folder: Path) -> None:
        """Serve gateways and the bench, for ever."""
        listeners = [wire.listen(str(folder / name)) for name in ("routes.sock", "control.sock")]
        bench: list[wire.Channel] = []
        await asyncio.gather(
            self.listen(listeners[0], self.answer_gateway, self._channels),
            self.listen(listeners[1], self.answer_bench, bench),
        )

    async def answer_gateway(self, op: str, args: Json, fds: list[int]) -> wire.Answer | None:
        """Let everybody in."""
        wire.close_all(fds)
        if op == "connect":
            return {}, [connect(self._http[str(args["key"])])]
        if op != "route":
            return None
        _, place, name, *_ = [*str(args["target"]).split("/"), ""]
        if place == "s" and (path := self._http.get(name)):
            tags = ["user:bench", f"session:{name}", EVERYBODY]
            way = {"kind": "http", "key": name, "prefix": f"/s/{name}/", "cache_s": _CACHE_S, "tags": tags}
            return way, [connect(path)]
        if place in ("stream", "tcp"):
            tags = [f"user:u{int(name) // 8}", f"session:k{name}", EVERYBODY]
            address = self._rfb if place == "stream" else ("127.0.0.1", self._port)
            return {"kind": "stream", "protocol": "rfb", "view_only": False, "tags": tags}, [connect(address)]
        raise NotFound("There is nothing here.")

    async def answer_bench(self, op: str, args: Json, fds: list[int]) -> wire.Answer | None:
        """Cut what has the tags, at every gateway."""
        wire.close_all(fds)
        if op != "cut" or not self._channels:
            raise Unavailable("No gateway is there.")
        at_s = time.monotonic()
        channels = [channel for channel in self._channels if not channel.closed]
        packets = await asyncio.gather(*(channel.ask("cut", {"tags": args["tags"]}) for channel in channels))
        return {"at_s": at_s, "streams": sum(packet.body["streams"] for packet in packets)}, ()


def connect(address: str | tuple[str, int]) -> int:
    """Return a descriptor that is connected to an app."""
    sock = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
    sock.connect(address)
    if sock.family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock.detach()


def main() -> None:
    """Serve for ever."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--site", default="")
    options = parser.parse_args()
    asyncio.run(Portal(options.folder, options.port, options.site).run(options.folder))


if __name__ == "__main__":
    main()
