"""A person with a browser, as far as HTTP shows one: signs in, starts apps, opens streams. For tests and benchmarks."""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import httpx
import websockets.sync.client
from rfb import RfbClient, WebSocketStream


class Person:
    """Somebody at a browser: keeps cookies and sends the Origin header that a browser would.

    Args:
        url: The portal's origin.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.http = httpx.Client(base_url=url, headers={"Origin": url}, timeout=30)
        self._streams = contextlib.ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the browser: its streams and connections."""
        self.close_streams()
        self.http.close()

    def close_streams(self) -> None:
        """Close the streams that are open."""
        self._streams.close()

    def enrol(self, code: str, password: str) -> None:
        """Set the first password with a one-time code."""
        answer = self.http.post("/enrol", data={"code": code, "password": password, "again": password})
        assert answer.status_code in (200, 303), answer.text

    def sign_in(self, name: str, password: str) -> httpx.Response:
        """Sign in; the caller looks at the answer."""
        return self.http.post("/sign-in", data={"name": name, "password": password})

    def start(self, app: str, **request: Any) -> dict[str, Any]:
        """Start a session; return it as the API tells it."""
        answer = self.http.post("/api/v1/sessions", json={"app_id": app, **request})
        assert answer.status_code in (200, 201), answer.text
        session: dict[str, Any] = answer.json()
        return session

    def get(self, session_id: str) -> dict[str, Any]:
        """Return a session as the API tells it."""
        session: dict[str, Any] = self.http.get(f"/api/v1/sessions/{session_id}").raise_for_status().json()
        return session

    def wait(self, session_id: str, state: str = "ready", timeout_s: float = 60) -> dict[str, Any]:
        """Wait until a session is in ``state``.

        Raises:
            TimeoutError: It was not in time, or has ended instead; the message has the log.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            session = self.get(session_id)
            if session["state"] == state:
                return session
            if session["state"] == "ended" or time.monotonic() > deadline:
                log = self.http.get(f"/api/v1/sessions/{session_id}/log").text
                raise TimeoutError(f"not {state}: {session}\n{log}")
            time.sleep(0.02)

    def open_stream(self, path: str, **headers: str) -> websockets.sync.client.ClientConnection:
        """Open a WebSocket on the portal as its pages do."""
        cookie = "; ".join(f"{name}={value}" for name, value in self.http.cookies.items())
        connecting = websockets.sync.client.connect(
            self.url.replace("http", "ws", 1) + path,
            additional_headers={"Cookie": cookie, **headers},
            origin=self.url,  # type: ignore[arg-type]
            subprotocols=["binary"],  # type: ignore[list-item]
            compression=None,
            max_size=None,
            open_timeout=20,
        )
        return self._streams.enter_context(connecting)

    def open_desktop(self, path: str) -> tuple[RfbClient, websockets.sync.client.ClientConnection]:
        """Open a desktop's stream and finish the RFB handshake."""
        connection = self.open_stream(path)
        return RfbClient(WebSocketStream(connection)), connection


class TerminalClient:
    """A client of the terminal protocol (docs/protocol.md) over a WebSocket."""

    def __init__(self, connection: websockets.sync.client.ClientConnection, offset: int = 0) -> None:
        self._connection = connection
        self._rest = b""
        self.output = b""
        self.offset = offset
        self.exit_status: int | None = None
        self._send(b"a", struct.pack(">Q", offset))

    def type(self, text: str) -> None:
        """Send input."""
        self._send(b"i", text.encode())

    def resize(self, columns: int, rows: int) -> None:
        """Tell the size of the window."""
        self._send(b"r", struct.pack(">HH", columns, rows))

    def wait(self, condition: Callable[[str], bool], timeout_s: float = 20) -> str:
        """Read until ``condition`` holds for all output so far; return that.

        Raises:
            TimeoutError: It did not come true in time; the message has the output.
        """
        deadline = time.monotonic() + timeout_s
        while not condition(text := self.output.decode(errors="replace")):
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"not so within {timeout_s} s: {text!r}")
            try:
                message = self._connection.recv(timeout=left)
            except TimeoutError:
                continue
            assert isinstance(message, bytes)
            self._feed(message)
        return text

    def _send(self, kind: bytes, payload: bytes) -> None:
        self._connection.send(kind + struct.pack(">I", len(payload)) + payload)

    def _feed(self, data: bytes) -> None:
        self._rest += data
        while len(self._rest) >= 5:
            kind, length = self._rest[:1], struct.unpack(">I", self._rest[1:5])[0]
            if len(self._rest) < 5 + length:
                return
            payload, self._rest = self._rest[5 : 5 + length], self._rest[5 + length :]
            if kind == b"s":
                self.offset, _present = struct.unpack(">QQ", payload)
            elif kind == b"o":
                self.output += payload
                self.offset += len(payload)
            elif kind == b"e":
                self.exit_status = struct.unpack(">I", payload)[0]
