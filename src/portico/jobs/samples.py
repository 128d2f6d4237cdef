"""Figures over time: what a cluster had and held, kept in memory for a day, drawn by pages."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from datetime import datetime
from typing import Final

INTERVAL_S: Final = 60.0
KEPT: Final = 24 * 60


@dataclass(frozen=True, slots=True)
class Sample:
    """A cluster at one moment."""

    at: datetime
    cores: float
    cores_held: float
    running: int
    queued: int


class Samples:
    """The last day of one cluster."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=KEPT)

    def add(self, sample: Sample) -> None:
        """Add the newest."""
        self._samples.append(sample)

    def list(self) -> list[Sample]:
        """Return all, the oldest first."""
        return list(self._samples)


def draw_line(values: list[float], most: float, width: int = 600, height: int = 80) -> str:
    """Return the points of an SVG polyline: the oldest at the left, ``most`` at the top."""
    if len(values) < 2 or most <= 0:
        return ""
    step = width / (len(values) - 1)
    return " ".join(f"{at * step:.1f},{height - height * min(value / most, 1):.1f}" for at, value in enumerate(values))
