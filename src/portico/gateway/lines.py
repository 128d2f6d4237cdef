"""The relay's protocol: one JSON object a line. Sans I/O; docs/protocol.md, "Relay", is normative."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final

LINE_BYTES: Final = 4096
NONCE: Final = re.compile(r"[0-9a-f]{32}\Z")
_SESSION: Final = re.compile(r"[a-z][a-z0-9]{11}\Z")

Json = dict[str, Any]


class NotUnderstood(Exception):
    """What came is not the relay's protocol; nothing that it says may be repeated to anybody."""


class LineReader:
    """Takes bytes cut anywhere, returns whole lines; keeps less than LINE_BYTES between two calls."""

    def __init__(self) -> None:
        self._pending = b""

    def take(self, data: bytes) -> tuple[Json, bytes] | None:
        """Return the first line and what is behind it, which is kept no more; None until there is one.

        Raises:
            NotUnderstood: A line is too long, or is no JSON object.
        """
        data = self._pending + data
        end = data.find(b"\n", 0, LINE_BYTES)
        if end < 0:
            if len(data) >= LINE_BYTES:
                raise NotUnderstood("a line is too long")
            self._pending = data
            return None
        self._pending = b""
        return parse(data[:end]), data[end + 1 :]


def parse(line: bytes) -> Json:
    """Return the object of a line.

    Raises:
        NotUnderstood: It is none.
    """
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise NotUnderstood("a line is not JSON") from None
    if not isinstance(value, dict):
        raise NotUnderstood("a line is not an object")
    return value


def render(message: Json) -> bytes:
    """Return a line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


@dataclass(frozen=True)
class Hello:
    """A relay that wants to serve a session."""

    session: str
    token: str
    node: str
    run: int = 0


def parse_first(message: Json) -> Hello | str:
    """Return who a connection is from, by its first line: a relay, or the nonce of a stream.

    Raises:
        NotUnderstood: Neither.
    """
    if message.get("hello") == 1:
        session, token, node = (message.get(name) for name in ("session", "token", "node"))
        if not (isinstance(session, str) and isinstance(token, str) and isinstance(node, str)):
            raise NotUnderstood("a hello without its parts")
        if not _SESSION.match(session) or len(token) > 200:
            raise NotUnderstood("a hello of no session")
        run = message.get("run", 0)
        if type(run) is not int or not 0 <= run < 1 << 31:
            raise NotUnderstood("a hello of no run")
        return Hello(session, token, "".join(c if c.isprintable() else "?" for c in node[:100]), run)
    nonce = message.get("stream")
    if isinstance(nonce, str) and NONCE.match(nonce):
        return nonce
    raise NotUnderstood("neither a relay nor a stream")
