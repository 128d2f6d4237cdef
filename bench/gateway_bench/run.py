"""What a run is told: how long, where, and which peers are there."""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway_bench.bridges import Place
from gateway_bench.figures import Figure


@dataclass
class Run:
    """One part of a run.

    Args:
        place: Where.
        quick: Whether to take a tenth of the time, for less certain figures.
        figures: What came out.
        notes: What a reader of the figures has to know; the parts add to it.
    """

    place: Place
    quick: bool = False
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
