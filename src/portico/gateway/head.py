"""Heads of HTTP/1.x messages, sans I/O: bytes in, values out, or a refusal (RFC 9112).

First lines are read here, by regular expressions that admit little; fields.py reads the others, with llhttp's consent.
What two parsers could read in two ways is refused, and what goes on is rendered anew from values, so that no byte of
the sender's framing reaches the next parser: that is the defence against request smuggling.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Final, NamedTuple

from portico.gateway.fields import TOKEN, Field, FieldBook, Malformed

Header = tuple[bytes, bytes]

_REQUEST_LINE: Final = re.compile(rb"(" + TOKEN + rb") ([\x21-\x7e]+) HTTP/1\.([01])")
_STATUS_LINE: Final = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [^\x00-\x08\x0a-\x1f\x7f]*)?")
_DOT_SEGMENT: Final = re.compile(r"/(?:\.|%2e){1,2}(?:/|\Z)", re.IGNORECASE)
_LENGTH: Final = re.compile(rb"[0-9]{1,18}\Z")
_KEY: Final = re.compile(rb"[A-Za-z0-9+/]{21}[AQgw]==\Z")  # 16 bytes in base64 (RFC 6455, 4.1)

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
SINGLE: Final = frozenset(
    {b"host", b"content-length", b"transfer-encoding", b"origin", b"authorization", b"sec-fetch-site", b"expect"}
    | {b"sec-websocket-key", b"sec-websocket-version", b"content-type"}
)
"""Fields that may come once only: with two of them, two readers could choose differently."""

REASONS: Final = {status.value: status.phrase.encode() for status in HTTPStatus}


class Refusal(Exception):
    """A message that is refused: ``status`` for the sender, ``reason`` in a few words, never the sender's own."""

    def __init__(self, status: int, reason: str, headers: Iterable[Header] = ()) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.headers = tuple(headers)


class Framing(enum.Enum):
    """How the end of a message's body is known (RFC 9112, 6.3)."""

    NONE = "none"
    LENGTH = "length"
    CHUNKED = "chunked"
    CLOSE = "close"


class Request(NamedTuple):
    """A request's head. ``headers`` keep their order and spelling; ``length`` is the body's with Framing.LENGTH.

    ``connection`` has the members of its Connection headers, in lower case.
    """

    method: str
    target: str
    minor: int
    headers: tuple[Field, ...]
    connection: tuple[bytes, ...]
    framing: Framing
    length: int
    keep_alive: bool
    upgrade: bool
    expects_continue: bool

    def get(self, name: bytes) -> str:
        """Return the value of the header ``name`` (lower case) as text (Latin-1); empty where there is none."""
        return get(self.headers, name).decode("latin-1")

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]


class Response(NamedTuple):
    """A response's head. ``reusable``: the connection can carry another exchange once the body has ended."""

    status: int
    headers: tuple[Field, ...]
    connection: tuple[bytes, ...]
    framing: Framing
    length: int
    reusable: bool


def get(headers: Sequence[Field], name: bytes) -> bytes:
    """Return the value of the first header ``name`` (lower case), or nothing."""
    for field in headers:
        if field.key == name:
            return field[1]
    return b""


def get_tokens(headers: Sequence[Field], name: bytes) -> list[bytes]:
    """Return the members of all lists ``name``, in lower case."""
    joined = b",".join([field[1] for field in headers if field.key == name])
    return [token for part in joined.split(b",") if (token := part.strip(b" \t").lower())]


def find_head_end(buffer: bytes | bytearray, limit_bytes: int) -> int:
    """Return where the first head in ``buffer`` ends, or 0 where more bytes are needed.

    Raises:
        Refusal: It can't become a good head any more: too long, a bare LF, or no text at all (a TLS greeting, say).

    """
    if buffer and not 0x41 <= buffer[0] <= 0x5A:
        raise Refusal(400, "no HTTP request")
    end = buffer.find(b"\r\n\r\n") + 4
    if end > limit_bytes or (end <= 3 and len(buffer) >= limit_bytes):
        raise Refusal(431, "header too large")
    until = end if end > 3 else len(buffer)
    if buffer.count(b"\n", 0, until) != buffer.count(b"\r\n", 0, until):
        raise Refusal(400, "bare line feed")
    return end if end > 3 else 0


_book: Final = FieldBook()


def _split(head: bytes, limit_count: int) -> tuple[bytes, tuple[Field, ...]]:
    """Return the first line, and the fields.

    Raises:
        Malformed: It is no head.
        Refusal: It has too many fields.
    """
    first, *lines = head.split(b"\r\n")
    if len(lines) < 2 or lines.pop() or lines.pop():
        raise Malformed
    if len(lines) > limit_count:
        raise Refusal(431, "too many headers")
    return first, tuple(_book.read(lines))


def parse_request(head: bytes, *, limit_count: int = 100) -> Request:
    """Return the request whose whole head, with its empty line, is ``head``.

    Raises:
        Refusal: It is malformed, ambiguous, or of a kind that is not served here.

    """
    try:
        line, headers = _split(head, limit_count)
    except Malformed:
        raise Refusal(400, "malformed header") from None
    method, target, minor = _parse_line(line)
    known = _check_fields(headers)
    if minor == 1 and b"host" not in known:
        raise Refusal(400, "no Host")
    framing, length = _parse_framing(known)
    if framing is Framing.CHUNKED and minor == 0:
        raise Refusal(400, "transfer coding in HTTP/1.0")
    if framing is Framing.CLOSE or (framing is Framing.LENGTH and length == 0):
        framing = Framing.NONE
    connection = tuple(get_tokens(headers, b"connection")) if b"connection" in known else ()
    upgrade = b"upgrade" in connection and get_tokens(headers, b"upgrade") == [b"websocket"]
    if upgrade:
        _check_upgrade(method, minor, headers, framing)
    expect = known.get(b"expect", b"").lower()
    if expect not in (b"", b"100-continue"):
        raise Refusal(417, "expectation")
    keep_alive = b"close" not in connection and (minor == 1 or b"keep-alive" in connection)
    expects_continue = bool(expect) and minor == 1 and framing is not Framing.NONE
    return Request(method, target, minor, headers, connection, framing, length, keep_alive, upgrade, expects_continue)


def _parse_line(line: bytes) -> tuple[str, str, int]:
    """Return method, target and minor version of a request's first line, given without CR LF.

    Raises:
        Refusal: It is malformed, or method or target are not served here.
    """
    found = _REQUEST_LINE.fullmatch(line)
    if found is None:
        raise Refusal(400, "malformed header")
    method, target = found[1].decode("ascii"), found[2].decode("ascii")
    if method not in METHODS:
        raise Refusal(405, "method", [(b"Allow", ", ".join(sorted(METHODS)).encode())])
    if not target.startswith("/") or target.startswith("//") or "#" in target:
        raise Refusal(400, "request target")
    if _DOT_SEGMENT.search(target.partition("?")[0]):
        raise Refusal(400, "dot segment in request target")
    return method, target, 1 if found[3] == b"1" else 0


def parse_request_like(line: bytes, like: Request) -> Request | None:
    """Return the request with this first line, CR LF included, and the very fields of ``like``.

    None where the whole head has to be looked at: with a body, an upgrade, an expectation, another version, and where
    the line is to be refused.
    """
    if like.framing is not Framing.NONE or like.upgrade or like.expects_continue:
        return None
    try:
        method, target, minor = _parse_line(line.removesuffix(b"\r\n"))
    except Refusal:
        return None
    return like._replace(method=method, target=target) if minor == like.minor else None


def parse_response(head: bytes, method: str, *, limit_count: int = 200) -> Response:
    """Return the response to a request with ``method`` whose whole head is ``head``.

    Raises:
        Refusal: It is malformed or ambiguous.

    """
    try:
        line, headers = _split(head, limit_count)
        found = _STATUS_LINE.fullmatch(line)
        if found is None:
            raise Malformed
        known = _check_fields(headers)
        framing, length = _parse_framing(known)
    except Malformed:
        raise Refusal(502, "malformed answer") from None
    except Refusal as refusal:
        raise Refusal(502, f"answer: {refusal.reason}") from None
    status = int(found[2])
    if method == "HEAD" or status < 200 or status in (204, 304):
        framing = Framing.NONE
    connection = tuple(get_tokens(headers, b"connection")) if b"connection" in known else ()
    persistent = found[1] == b"1" or b"keep-alive" in connection
    reusable = persistent and b"close" not in connection and framing is not Framing.CLOSE
    return Response(status, headers, connection, framing, length, reusable)


def render_request(method: str, target: str, headers: Iterable[Header]) -> bytes:
    """Return the head of an HTTP/1.1 request."""
    return render_head(f"{method} {target} HTTP/1.1".encode("latin-1"), headers)


def render_status_line(status: int) -> bytes:
    """Return the first line of an HTTP/1.1 response, CR LF included."""
    return b"HTTP/1.1 %d %b\r\n" % (status, REASONS.get(status, b""))


def render_response(status: int, headers: Iterable[Header]) -> bytes:
    """Return the head of an HTTP/1.1 response."""
    return render_head(render_status_line(status)[:-2], headers)


def render_head(first_line: bytes, headers: Iterable[Header]) -> bytes:
    """Return a head.

    Raises:
        ValueError: A value would break its line, which is a defect of the caller.

    """
    lines = [first_line, *(b"%b: %b" % header for header in headers)]
    head = b"\r\n".join((*lines, b"", b""))
    if head.count(b"\n") != len(lines) + 1 or head.count(b"\r") != len(lines) + 1 or b"\0" in head:
        raise ValueError("a header value would break its line")
    return head


def _check_fields(headers: Sequence[Field]) -> dict[bytes, bytes]:
    """Return the fields by their names in lower case; of those that may come several times, the last.

    Raises:
        Refusal: There are two of one that may come once only.
    """
    known = {field.key: field[1] for field in headers}
    if len(known) < len(headers):
        seen: set[bytes] = set()
        for field in headers:
            if field.key in seen and field.key in SINGLE:
                raise Refusal(400, "header given twice")
            seen.add(field.key)
    return known


def _parse_framing(known: Mapping[bytes, bytes]) -> tuple[Framing, int]:
    coding, length = known.get(b"transfer-encoding"), known.get(b"content-length")
    if coding is not None:
        if length is not None:
            raise Refusal(400, "both length and transfer coding")
        if coding.lower() != b"chunked":
            raise Refusal(400, "transfer coding")
        return Framing.CHUNKED, 0
    if length is None:
        return Framing.CLOSE, 0
    if not _LENGTH.match(length):
        raise Refusal(400, "content length")
    return Framing.LENGTH, int(length)


def _check_upgrade(method: str, minor: int, headers: Sequence[Field], framing: Framing) -> None:
    """Refuse a WebSocket handshake that RFC 6455, 4.2.1 does not allow."""
    if method != "GET" or minor != 1 or framing is not Framing.NONE:
        raise Refusal(400, "malformed upgrade")
    if get(headers, b"sec-websocket-version") != b"13":
        raise Refusal(426, "WebSocket version", [(b"Sec-WebSocket-Version", b"13"), (b"Upgrade", b"websocket")])
    if not _KEY.match(get(headers, b"sec-websocket-key")):
        raise Refusal(400, "malformed upgrade")
