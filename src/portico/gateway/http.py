"""HTTP/1.1 heads and bodies without I/O (RFC 9112), strict where others have been fooled.

httptools (llhttp) parses; what is checked besides is what request smuggling lives on: two ways to say how long a
body is, folded lines, bare line feeds. A head is never passed on as it came; it is rendered anew from what was
understood.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

import httptools

Headers = list[tuple[str, str]]

HEAD_LIMIT_BYTES: Final = 32 * 1024
HEADER_LIMIT: Final = 100
CHUNK_LINE_LIMIT_BYTES: Final = 256

HOP_BY_HOP: Final = frozenset(
    {"connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade"}
)
"""RFC 9110, 7.6.1; rendered anew where we mean them ourselves."""


class BadMessage(Exception):
    """The peer said something that HTTP does not allow, or that nobody needs; ``status`` is the answer."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Head:
    """A request's or response's head. ``length`` is the body's: a number of bytes, None for chunked."""

    first: tuple[str, str]
    version: str
    headers: Headers
    length: int | None
    keep_alive: bool
    upgrade: str = ""

    def get_all(self, name: str) -> list[str]:
        """Return all values of a header, by its lower-case name."""
        return [value for found, value in self.headers if found.lower() == name]

    def get(self, name: str, default: str = "") -> str:
        """Return the first value of a header, by its lower-case name."""
        return next(iter(self.get_all(name)), default)


class _Collector:
    def __init__(self) -> None:
        self.url = b""
        self.reason = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.done = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_status(self, reason: bytes) -> None:
        self.reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.done = True


def parse_request(data: bytes) -> Head:
    """Return the head of a request; ``first`` is (method, target).

    Raises:
        BadMessage: It is malformed, ambiguous or too large.
    """
    _check_lines(data)
    collector = _Collector()
    parser = httptools.HttpRequestParser(collector)
    _feed(parser, data)
    target = collector.url.decode("latin-1")
    method = parser.get_method().decode("latin-1")
    if not collector.done:
        raise BadMessage("the head is not complete")
    if not target.startswith("/") or any(not 33 <= ord(c) < 127 for c in target):
        raise BadMessage("only plain paths are served")
    headers = _decode(collector.headers)
    version = parser.get_http_version()
    if version not in ("1.0", "1.1"):
        raise BadMessage("only HTTP/1.0 and 1.1 are spoken", 505)
    length = _find_length(headers, version)
    options = _split(value for name, value in headers if name.lower() == "connection")
    upgrade = ""
    if "upgrade" in options:
        upgrade = ",".join(value for name, value in headers if name.lower() == "upgrade").lower()
    keep_alive = ("close" not in options) if version == "1.1" else ("keep-alive" in options)
    return Head((method, target), version, headers, 0 if length == -1 else length, keep_alive, upgrade)


def parse_response(data: bytes, method: str) -> Head:
    """Return the head of an answer to ``method``; ``first`` is (status, reason), ``length`` -1 for until the end.

    Raises:
        BadMessage: It is malformed; the status is 502.
    """
    collector = _Collector()
    parser = httptools.HttpResponseParser(collector)
    try:
        _feed(parser, data)
        headers = _decode(collector.headers)
        status = parser.get_status_code()
        length = _find_length(headers, "1.1")
    except BadMessage as error:
        raise BadMessage(str(error), 502) from error
    if method == "HEAD" or status < 200 or status in (204, 304):
        length = 0
    options = _split(value for name, value in headers if name.lower() == "connection")
    keep_alive = "close" not in options and parser.get_http_version() == "1.1" and length != -1
    upgrade = ",".join(value for name, value in headers if name.lower() == "upgrade").lower()
    reason = collector.reason.decode("latin-1")
    return Head((str(status), reason), parser.get_http_version(), headers, length, keep_alive, upgrade)


def _feed(parser: httptools.HttpRequestParser | httptools.HttpResponseParser, data: bytes) -> None:
    try:
        parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        pass
    except httptools.HttpParserError as error:
        raise BadMessage(f"malformed: {error}") from error


def _check_lines(data: bytes) -> None:
    lines = data.split(b"\r\n")
    if any(b"\n" in line or b"\r" in line or b"\0" in line for line in lines):
        raise BadMessage("a bare line feed, carriage return or NUL")
    if any(line[:1] in (b" ", b"\t") for line in lines):
        raise BadMessage("a folded line (RFC 9112, 5.2)")


def _decode(raw: Iterable[tuple[bytes, bytes]]) -> Headers:
    headers = [(name.decode("latin-1"), value.decode("latin-1").strip(" \t")) for name, value in raw]
    if len(headers) > HEADER_LIMIT:
        raise BadMessage("too many headers", 431)
    if any(any((ord(c) < 32 and c != "\t") or ord(c) == 127 for c in value) for _, value in headers):
        raise BadMessage("a control character in a header")
    return headers


def _split(values: Iterable[str]) -> list[str]:
    return [part.strip().lower() for value in values for part in value.split(",")]


def _find_length(headers: Headers, version: str) -> int | None:
    """Return the body's length, None for chunked, -1 where nothing is said (RFC 9112, 6.3)."""
    lengths = [value for name, value in headers if name.lower() == "content-length"]
    codings = [value.lower() for name, value in headers if name.lower() == "transfer-encoding"]
    if codings:
        if lengths or codings != ["chunked"] or version != "1.1":
            raise BadMessage("two ways, or an unknown one, to tell the body's length")
        return None
    if lengths:
        if len(lengths) > 1 or not lengths[0].isascii() or not lengths[0].isdigit() or len(lengths[0]) > 18:
            raise BadMessage("the body's length is not one number")
        return int(lengths[0])
    return -1


def render_head(first_line: str, headers: Headers) -> bytes:
    """Return a head; no value can hold a line break, as parsed ones never do and ours are checked here."""
    lines = [first_line, *(f"{name}: {value}" for name, value in headers)]
    if any("\r" in line or "\n" in line for line in lines):
        raise BadMessage("a line break in a header", 500)
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1", "replace")


def drop_hop_by_hop(head: Head) -> Headers:
    """Return the headers that go beyond the next hop."""
    named = set(_split(head.get_all("connection")))
    return [(name, value) for name, value in head.headers if name.lower() not in HOP_BY_HOP | named]


class ChunkedReader:
    """Decodes a chunked body (RFC 9112, 7.1): bytes cut anywhere in, the body's bytes out. Trailers are dropped."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._left = 0
        self._state = "size"
        self.done = False

    def feed(self, data: bytes) -> bytes:
        """Return what ``data`` adds to the body; bytes behind the end stay in :attr:`rest`.

        Raises:
            BadMessage: It is malformed.
        """
        self._buffer += data
        body = bytearray()
        while not self.done:
            if self._state == "data":
                part = self._buffer[: self._left]
                body += part
                del self._buffer[: len(part)]
                self._left -= len(part)
                if self._left:
                    break
                self._state = "end"
            elif self._state == "end":
                if len(self._buffer) < 2:
                    break
                if self._buffer[:2] != b"\r\n":
                    raise BadMessage("a chunk does not end where it says")
                del self._buffer[:2]
                self._state = "size"
            else:
                at = self._buffer.find(b"\n")
                if at < 0:
                    if len(self._buffer) > CHUNK_LINE_LIMIT_BYTES:
                        raise BadMessage("a chunk's first line is too long")
                    break
                line = bytes(self._buffer[: at + 1])
                del self._buffer[: at + 1]
                self._take_line(line)
        return bytes(body)

    @property
    def rest(self) -> bytes:
        """What came behind the end."""
        return bytes(self._buffer)

    def _take_line(self, line: bytes) -> None:
        if not line.endswith(b"\r\n") or len(line) > CHUNK_LINE_LIMIT_BYTES:
            raise BadMessage("a chunk's first line is malformed")
        if self._state == "trailer":
            self.done = line == b"\r\n"
            return
        size = line[:-2].split(b";", 1)[0].strip(b" \t")
        if not size or len(size) > 15 or any(c not in b"0123456789abcdefABCDEF" for c in size):
            raise BadMessage("a chunk's size is malformed")
        self._left = int(size, 16)
        self._state = "data" if self._left else "trailer"


def render_chunk(data: bytes) -> bytes:
    """Return one chunk; for the last, empty one use LAST_CHUNK."""
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK: Final = b"0\r\n\r\n"
