"""Bodies of HTTP/1.1 messages, sans I/O: bytes in, payload out, and where the body ends (RFC 9112, 7.1).

Chunks are decoded here and not by llhttp, which goes on with the next message in the same buffer without saying
where the first one ended, and which sets no bound to extensions and trailers. Trailers are dropped.
"""

from __future__ import annotations

import re
from typing import Final

from portico.gateway.head import Framing, Refusal

_SIZE_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[\t\x20-\x7e\x80-\xff]*)?\Z")
_TRAILER: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+:[^\x00-\x08\x0a-\x1f\x7f]*\Z")
_LINE_LIMIT_BYTES: Final = 4096
_TRAILERS_LIMIT_BYTES: Final = 16 * 1024


class Body:
    """The body of one message. ``done`` once its end was seen; ``received`` counts payload bytes."""

    def __init__(self, framing: Framing, length: int = 0) -> None:
        self.framing = framing
        self.received = 0
        self.left = length if framing is Framing.LENGTH else 0
        self.done = framing is Framing.NONE or (framing is Framing.LENGTH and length == 0)
        self._state = "size"
        self._line = bytearray()
        self._trailer_bytes = 0

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Take the next bytes; return (payload, what follows the body).

        Raises:
            Refusal: The chunks are malformed.

        """
        if self.done:
            return b"", data
        if self.framing is Framing.CLOSE:
            self.received += len(data)
            return data, b""
        if self.framing is Framing.LENGTH:
            payload = data[: self.left]
            self.left -= len(payload)
            self.received += len(payload)
            self.done = self.left == 0
            return payload, data[len(payload) :]
        return self._feed_chunks(data)

    def _feed_chunks(self, data: bytes) -> tuple[bytes, bytes]:
        parts: list[bytes] = []
        at = 0
        while at < len(data) and not self.done:
            if self._state == "data":
                part = data[at : at + self.left]
                at += len(part)
                self.left -= len(part)
                self.received += len(part)
                parts.append(part)
                if not self.left:
                    self._state = "end"
                continue
            end = data.find(b"\n", at)
            stop = end + 1 if end >= 0 else len(data)
            self._line += data[at:stop]
            at = stop
            if len(self._line) > _LINE_LIMIT_BYTES:
                raise Refusal(400, "chunk header too long")
            if end >= 0:
                if not self._line.endswith(b"\r\n"):
                    raise Refusal(400, "bare line feed in chunks")
                line = bytes(self._line[:-2])
                self._line.clear()
                self._take_line(line)
        return b"".join(parts) if len(parts) != 1 else parts[0], data[at:]

    def _take_line(self, line: bytes) -> None:
        if self._state == "size":
            match = _SIZE_LINE.match(line)
            if match is None:
                raise Refusal(400, "chunk size")
            self.left = int(match[1], 16)
            self._state = "data" if self.left else "trailers"
        elif self._state == "end":
            if line:
                raise Refusal(400, "chunk end")
            self._state = "size"
        elif not line:
            self.done = True
        else:
            self._trailer_bytes += len(line)
            if self._trailer_bytes > _TRAILERS_LIMIT_BYTES or not _TRAILER.match(line):
                raise Refusal(400, "trailer")


def render_chunk(payload: bytes) -> bytes:
    """Return ``payload``, which must not be empty, as one chunk."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


LAST_CHUNK: Final = b"0\r\n\r\n"
