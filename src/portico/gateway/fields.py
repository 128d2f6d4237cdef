"""Header fields by their lines: judged once, and known again when anybody says the very same line (RFC 9112, 5).

A browser says the same fifteen lines with every request, and an app answers with the same eight; one or two of all of
them are new. What a line means, and what becomes of it on its way, depends on the line alone, so it is kept with it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import httptools

TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_LINE: Final = re.compile(rb"(" + TOKEN + rb"):[ \t]*([^\x00-\x08\x0a-\x1f\x7f]*)")  # no NUL, CR or LF, no obs-fold
KEPT_LINES: Final = 1024
"""Of each of the two generations."""
_KEPT_LINE_BYTES: Final = 1024
_NEVER_KEPT: Final = frozenset({b"authorization", b"proxy-authorization", b"sec-websocket-key"})


class Malformed(Exception):
    """A line is no header field."""


class Field(tuple[bytes, bytes]):
    """A field as it came, (name, value), with its name in lower case.

    ``to_app``, ``to_portal`` and ``to_client`` are the lines that it becomes on its way there, CR LF included, empty
    where it goes no further; None until forward.py has looked at it.
    """

    key: bytes
    to_app: bytes | None = None
    to_portal: bytes | None = None
    to_client: bytes | None = None


class FieldBook:
    """Fields by their lines; of two generations of lines the one that nobody has said for long is forgotten."""

    def __init__(self) -> None:
        self._young: dict[bytes, Field] = {}
        self._old: dict[bytes, Field] = {}

    def read(self, lines: Iterable[bytes]) -> list[Field]:
        """Return the fields of lines, given without CR LF.

        Raises:
            Malformed: One of them is none.
        """
        known, find = self._young.get, self._find
        return [known(line) or find(line) for line in lines]

    def count(self) -> int:
        """Return how many lines are kept."""
        return len(self._young) + len(self._old)

    def _find(self, line: bytes) -> Field:
        field = self._old.get(line) or parse_field(line)
        if len(line) <= _KEPT_LINE_BYTES and field.key not in _NEVER_KEPT:
            if len(self._young) >= KEPT_LINES:
                self._old, self._young = self._young, {}
            self._young[line] = field
        return field


class _Heard(list[tuple[bytes, bytes]]):
    """What llhttp calls back with."""

    def on_header(self, name: bytes, value: bytes) -> None:
        self.append((name, value.strip(b" \t")))


def parse_field(line: bytes) -> Field:
    """Return the field of one line.

    The regular expression admits less than llhttp does, and llhttp has to understand the same.

    Raises:
        Malformed: It is none.
    """
    found = _LINE.fullmatch(line)
    if found is None:
        raise Malformed
    name, value = found[1], found[2].rstrip(b" \t")
    heard = _Heard()
    try:
        httptools.HttpRequestParser(heard).feed_data(b"GET / HTTP/1.1\r\n%b\r\n\r\n" % line)
    except httptools.HttpParserError:
        raise Malformed from None
    if heard != [(name, value)]:
        raise Malformed
    field = Field((name, value))
    field.key = name.lower()
    return field
