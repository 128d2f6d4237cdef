"""A zip archive whose bytes are taken while it is being made: nothing is sought, no size is known ahead.

Sizes and check sums follow each member (PKWARE APPNOTE.TXT 6.3.10, 4.3.9, bit 3), in 64 bits where a member may be
large. A tar of tars was refused: tar(5) wants each size first, and a member that breaks off would take the rest along.
"""

from __future__ import annotations

import zipfile
from datetime import datetime
from typing import IO


class _Out:
    """Where zipfile writes to; it finds no tell() and no seek(), and makes a stream."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def take(self) -> bytes:
        parts, self._parts = self._parts, []
        return b"".join(parts)


class ZipStream:
    """One archive; :meth:`take` after each step, so that little is in memory.

    Args:
        at: What members are dated with, in UTC.
    """

    def __init__(self, at: datetime) -> None:
        self._out = _Out()
        self._zip = zipfile.ZipFile(self._out, "w", zipfile.ZIP_DEFLATED)  # type: ignore[call-overload]
        self._at = at
        self._member: IO[bytes] | None = None

    def take(self) -> bytes:
        """Return what has been made since."""
        return self._out.take()

    def add(self, name: str, content: bytes) -> None:
        """Add a small member."""
        self._zip.writestr(self._describe(name), content)

    def begin(self, name: str) -> None:
        """Begin a member of any size, whose content is compressed already."""
        info = self._describe(name)
        # Deflate without compressing rather than stored: readers of streams find its end (public from Python 3.13 on).
        info._compresslevel = 0  # type: ignore[attr-defined]
        self._member = self._zip.open(info, "w", force_zip64=True)

    def write(self, data: bytes) -> None:
        """Add to the member that was begun."""
        assert self._member is not None
        self._member.write(data)

    def end(self) -> None:
        """End that member."""
        assert self._member is not None
        self._member.close()
        self._member = None

    def close(self) -> None:
        """End the archive with its directory; one that breaks off has none, and no program takes it for the whole."""
        self._zip.close()

    def _describe(self, name: str) -> zipfile.ZipInfo:
        info = zipfile.ZipInfo(name, self._at.timetuple()[:6])
        info.compress_type = zipfile.ZIP_DEFLATED
        info.external_attr = 0o600 << 16
        return info
