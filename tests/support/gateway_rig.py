"""A real gateway on loopback TCP, with a portal and apps that a test says how to behave. Fakes are named by their vice."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, connect

from portico import wire
from portico.errors import PorticoError
from portico.gateway.limits import Limits
from portico.gateway.listening import Listening
from portico.gateway.plane import PlaneLoop
from portico.gateway.routes import Routes
from portico.gateway.server import Gateway


class _Policy(asyncio.DefaultEventLoopPolicy):
    """The gateway needs a loop of its own; it does for everything else too."""

    _loop_factory = PlaneLoop


asyncio.set_event_loop_policy(_Policy())

Json = dict[str, Any]
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
SESSION = "kabcdefghij1"


async def until(condition: Callable[[], Any], timeout_s: float = 5.0, what: str = "a condition") -> Any:
    """Return the first true value of ``condition``."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not (value := condition()):
        if asyncio.get_running_loop().time() > deadline:
            raise TimeoutError(f"{what} was not true within {timeout_s:g} s")
        await asyncio.sleep(0.005)
    return value


class App:
    """An app's Unix socket with a handler, as the user's agent would connect to it."""

    def __init__(self, path: Path, handler: Handler) -> None:
        self.path, self._handler = path, handler
        self.connections = 0
        self.open = 0
        self.writers: list[asyncio.StreamWriter] = []

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, str(self.path), limit=1 << 20)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        self.writers.append(writer)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                await self._handler(reader, writer)
        finally:
            self.open -= 1
            self.writers.remove(writer)
            writer.close()
            with contextlib.suppress(ConnectionError, asyncio.CancelledError):
                await writer.wait_closed()

    async def stop(self) -> None:
        self._server.close()
        for writer in list(self.writers):
            writer.transport.abort()
        await until(lambda: not self.open, what="the app's connections closed")


class Portal:
    """The portal's two sockets. ``decide`` answers ``route``; ``respond`` serves HTTP."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.asked: list[Json] = []
        self.connects: list[str] = []
        self.hellos: list[Json] = []
        self.apps: dict[str, Path] = {}
        self.way: Json = {"kind": "answer", "status": 404, "headers": {}, "body": "nothing here"}
        self.app = ""
        self.decide: Callable[[Json], Awaitable[tuple[Json, list[int]]]] = self._decide
        self.respond: Handler = serve_echo
        self.channels: list[wire.Channel] = []
        self.running = False

    async def start(self) -> None:
        self._listener = wire.listen(str(self.folder / "routes.sock"))
        self._listener.setblocking(False)
        self._http = App(self.folder / "portal.sock", lambda r, w: self.respond(r, w))
        await self._http.start()
        self._accepting = asyncio.create_task(self._accept())
        self.running = True

    @property
    def http_connections(self) -> int:
        return self._http.connections

    async def stop(self) -> None:
        """Die as ``kill -9`` makes it die: everything closes at once."""
        self.running = False
        self._accepting.cancel()
        await asyncio.gather(self._accepting, return_exceptions=True)
        self._listener.close()
        for name in ("routes.sock", "portal.sock"):
            (self.folder / name).unlink(missing_ok=True)
        for channel in self.channels:
            channel.close()
        self.channels.clear()
        await self._http.stop()

    async def _accept(self) -> None:
        while True:
            sock, _ = await asyncio.get_running_loop().sock_accept(self._listener)
            self.channels.append(wire.Channel(sock, self._handle, name="gateway"))

    async def _handle(self, op: str, args: Json, fds: list[int]) -> wire.Answer | None:
        if op == "route":
            self.asked.append(args)
            return await self.decide(args)
        if op == "connect":
            self.connects.append(args["key"])
            return {}, [connect_app(self.apps[args["key"]])]
        self.hellos.append(args)
        return None

    async def _decide(self, request: Json) -> tuple[Json, list[int]]:
        return self.way, [connect_app(self.apps[self.app])] if self.app else []

    async def cut(self, *tags: str) -> int:
        packet = await self.channels[-1].ask("cut", {"tags": list(tags)})
        return int(packet.body["streams"])


def connect_app(path: Path) -> int:
    """Return a connected descriptor."""
    sock = socket.socket(socket.AF_UNIX)
    sock.connect(str(path))
    return sock.detach()


class Rig:
    """Gateway, portal and apps in one event loop."""

    def __init__(self, limits: Limits | None = None, tls: Any = None, trusted: frozenset[str] = frozenset()) -> None:
        self._limits, self._tls, self._trusted = limits or Limits(), tls, trusted
        self._folder = tempfile.TemporaryDirectory(prefix="gw", dir="/tmp")
        self.folder = Path(self._folder.name)
        self.portal = Portal(self.folder)
        self._apps: list[App] = []

    async def __aenter__(self) -> Self:
        await self.portal.start()
        self.routes = Routes(str(self.folder / "routes.sock"), self._limits)
        self.gateway = Gateway(str(self.folder / "portal.sock"), self.routes, self._limits)
        self.sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        self.port, self.apps_port = (sock.getsockname()[1] for sock in self.sockets)
        scheme = "https" if self._tls else "http"
        portal = Listening(frozenset({f"localhost:{self.port}"}), frozenset(), "", scheme, self._trusted)
        apps = Listening(frozenset(), frozenset({f"localhost:{self.apps_port}"}), "", scheme, self._trusted)
        self.tasks = [
            asyncio.create_task(self.gateway.listen(portal, self.sockets[0], self._tls)),
            asyncio.create_task(self.gateway.listen(apps, self.sockets[1], self._tls)),
            asyncio.create_task(self.routes.run()),
            asyncio.create_task(self.gateway.sweep()),
        ]
        await until(lambda: self.portal.hellos, what="hello")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.gateway.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for sock in self.sockets:
            sock.close()
        for app in self._apps:
            await app.stop()
        if self.portal.running:
            await self.portal.stop()
        self._folder.cleanup()

    async def add_app(self, handler: Handler, key: str = SESSION) -> App:
        """Start an app, and let ``connect`` find it."""
        app = App(self.folder / f"{key}.sock", handler)
        await app.start()
        self._apps.append(app)
        self.portal.apps[key] = app.path
        return app

    async def route_http(self, handler: Handler, cache_s: float = 0, **more: Any) -> App:
        """Start an app of kind http that all requests go to."""
        self.portal.app = SESSION
        self.portal.way = {
            "kind": "http", "key": SESSION, "prefix": f"/s/{SESSION}/", "cache_s": cache_s,
            "tags": ["user:alice", f"session:{SESSION}", "sign-in:1"], **more,
        }  # fmt: skip
        return await self.add_app(handler)

    async def route_stream(self, handler: Handler, protocol: str = "rfb", view_only: bool = False) -> App:
        """Start an app that all upgrades go to as a stream."""
        self.portal.app = SESSION
        self.portal.way = {
            "kind": "stream", "protocol": protocol, "view_only": view_only,
            "tags": ["user:alice", f"session:{SESSION}", "share:4"],
        }  # fmt: skip
        return await self.add_app(handler)

    # clients

    async def open(self, apps: bool = False) -> Raw:
        """Open a TCP connection."""
        port = self.apps_port if apps else self.port
        return Raw(*await asyncio.open_connection("127.0.0.1", port, limit=1 << 22), f"localhost:{port}")

    @contextlib.asynccontextmanager
    async def exchange(self, data: bytes, *, apps: bool = False) -> AsyncIterator[Raw]:
        """Open a connection and send; ``HOST`` in the data becomes the right Host."""
        raw = await self.open(apps)
        try:
            raw.send(data)
            yield raw
        finally:
            await raw.close()

    def websocket(self, path: str = "/stream", *, apps: bool = False, **more: Any) -> connect:
        """Open a WebSocket with an independent implementation."""
        more.setdefault("subprotocols", ["binary"])
        more.setdefault("max_size", None)
        port = self.apps_port if apps else self.port
        return connect(f"ws://localhost:{port}{path}", compression=None, ping_interval=None, **more)


class Raw:
    """A client that sends bytes as a test says them."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        self.reader, self.writer, self.host = reader, writer, host

    def send(self, data: bytes) -> None:
        self.writer.write(data.replace(b"HOST", self.host.encode()))

    async def answer(self, timeout_s: float = 5, head_only: bool = False) -> Reply:
        """Read one answer."""
        async with asyncio.timeout(timeout_s):
            return await read_answer(self.reader, head_only)

    async def rest(self, timeout_s: float = 5) -> bytes:
        """Read until the gateway closes."""
        async with asyncio.timeout(timeout_s):
            with contextlib.suppress(ConnectionResetError):
                return await self.reader.read()
        return b""

    async def close(self) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()


class Reply:
    """An answer."""

    def __init__(self, head: bytes, body: bytes) -> None:
        self.head, self.body = head.decode("latin-1"), body
        self.status = int(self.head.split(" ", 2)[1])

    def all(self, name: str) -> list[str]:
        return re.findall(rf"(?im)^{re.escape(name)}: (.*?)\r$", self.head)


async def read_answer(reader: asyncio.StreamReader, head_only: bool = False) -> Reply:
    head = await reader.readuntil(b"\r\n\r\n")
    reply = Reply(head, b"")
    if head_only or reply.status in (204, 304) or reply.status < 200:
        return reply
    if length := reply.all("content-length"):
        reply.body = await reader.readexactly(int(length[0]))
    elif reply.all("transfer-encoding") == ["chunked"]:
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            reply.body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
    else:
        reply.body = await reader.read()
    return reply


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Read a request as an app does: its head and its body, unchunked."""
    head = await reader.readuntil(b"\r\n\r\n")
    body = b""
    if match := re.search(rb"(?im)^content-length: (\d+)\r$", head):
        body = await reader.readexactly(int(match[1]))
    elif re.search(rb"(?im)^transfer-encoding: chunked\r$", head):
        while size := int(await reader.readuntil(b"\r\n"), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readexactly(2)
    return head, body


async def serve_echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer each request with its own head and body, as text."""
    while True:
        head, body = await read_request(reader)
        out = head + body
        if head.startswith(b"HEAD "):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n")
            continue
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % len(out) + out)
        await writer.drain()


async def echo_bytes(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send back what comes."""
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


def answering(raw: bytes, *, close: bool = False) -> Handler:
    """Return an app that gives ``raw`` as its answer to everything."""

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await read_request(reader)
            writer.write(raw)
            await writer.drain()
            if close:
                return

    return handler


def resident_bytes() -> int:
    """Return this process's resident memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


__all__ = ["KEY", "SESSION", "App", "ClientConnection", "PorticoError", "Raw", "Reply", "Rig", "until"]
