"""Figures over time: what a cluster had and held in the last day, kept in a file, drawn by pages."""

from __future__ import annotations

import contextlib
import json
import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

INTERVAL_S: Final = 60.0
KEPT: Final = 24 * 60
DAY: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class Sample:
    """A cluster at one moment."""

    at: datetime
    cores: float
    cores_held: float
    running: int
    queued: int


class Samples:
    """The last day of one cluster.

    Args:
        path: Where they are kept, a line of JSON for each; it is written anew when it has two days. What can't be read
            or written is left out: these are figures, and nothing hangs on them.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._samples: deque[Sample] = deque(maxlen=KEPT)
        self._path = path
        self._lines = 0
        if path is not None:
            with contextlib.suppress(OSError, UnicodeDecodeError):
                for line in path.read_text().splitlines():
                    self._lines += 1
                    with contextlib.suppress(ValueError, TypeError):
                        at, cores, held, running, queued = json.loads(line)
                        found = Sample(datetime.fromisoformat(at), float(cores), float(held), int(running), int(queued))
                        if found.at.tzinfo is not None:
                            self._samples.append(found)

    def add(self, sample: Sample) -> None:
        """Add the newest. Writes to the disk."""
        self._samples.append(sample)
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(mode=0o700, exist_ok=True)
            if self._lines >= 2 * KEPT:
                temporary = self._path.with_suffix(".new")
                temporary.write_text("".join(map(_render, self._samples)))
                temporary.replace(self._path)
                self._lines = len(self._samples)
            else:
                with open(self._path, "a") as file:
                    file.write(_render(sample))
                self._lines += 1
        except OSError as error:
            log.warning("%s: %s", self._path, error.strerror)

    def list(self) -> list[Sample]:
        """Return those of the day before the newest, the oldest first."""
        return [one for one in self._samples if one.at > self._samples[-1].at - DAY]


def _render(sample: Sample) -> str:
    values = [sample.at.isoformat(), sample.cores, sample.cores_held, sample.running, sample.queued]
    return json.dumps(values) + "\n"


def draw_line(points: Sequence[tuple[datetime, float]], most: float, width: int = 600, height: int = 80) -> str:
    """Return the points of an SVG polyline: the oldest at the left, the newest at the right, ``most`` at the top."""
    if len(points) < 2 or most <= 0:
        return ""
    begin = points[0][0]
    whole_s = (points[-1][0] - begin).total_seconds() or 1.0
    return " ".join(
        f"{width * (at - begin).total_seconds() / whole_s:.1f},{height - height * min(value / most, 1):.1f}"
        for at, value in points
    )
