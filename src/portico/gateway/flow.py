"""Moves bytes from one end to another without looking at them: nothing is read while the target takes nothing.

Bulk goes through the plane's one buffer, which stays in the processor's cache (docs/decisions/0005-gateway-copies.md).
What a target does not take is kept with it; a target that is slow is given less at a time, so it keeps little.
"""

from __future__ import annotations

from typing import Final

from portico.gateway.end import End
from portico.gateway.plane import BUFFER_BYTES, HEADROOM_BYTES, Plane

LEAST_BYTES: Final = 16 * 1024


class Flow:
    """One direction. ``is_over`` once the source has ended and the target has taken all of it."""

    __slots__ = ("_plane", "_portion", "is_over", "source", "target")

    def __init__(self, plane: Plane, source: End, target: End) -> None:
        self._plane = plane
        self.source, self.target = source, target
        self.is_over = False
        self._portion = LEAST_BYTES

    def move(self, limit: int | None = None) -> int:
        """Move what there is, at most ``limit`` bytes, and return how many that were.

        Raises:
            OSError: Either end broke.
        """
        source, target = self.source, self.target
        moved = 0
        while source.readable and target.out is None and not self.is_over:
            room = self._portion if limit is None else min(self._portion, limit - moved)
            if not room:
                break
            view = self._plane.buffer[HEADROOM_BYTES : HEADROOM_BYTES + room]
            size = source.recv_into(view)
            if size is None:
                break
            if not size:
                self.is_over = True
                break
            taken = target.send(view[:size])
            moved += size
            self._portion = adapt(self._portion, size, taken)
            if source.must_yield():
                break
        return moved


def adapt(portion: int, size: int, taken: bool) -> int:
    """Return how much to read next, after ``size`` of ``portion`` bytes came and the target took all of them or not."""
    if not taken:
        return max(LEAST_BYTES, portion // 2)
    return min(BUFFER_BYTES, portion * 2) if size == portion else portion
