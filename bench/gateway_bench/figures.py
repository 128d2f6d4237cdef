"""Figures and what they are held against: values of many short rounds, ratios within each round, targets.

A ratio is made of what two peers did in the same round, a second apart, and the median of these is told with its
quartiles. Noise that both had cancels; the best of n, which is luck, is never told.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, TypeVar

PORTICO: Final = "Portico"

T = TypeVar("T")
R = TypeVar("R")


class Spread(NamedTuple):
    """A median and the quartiles around it."""

    low: float
    median: float
    high: float


def find_spread(values: Sequence[float]) -> Spread:
    """Return median and quartiles; three times the same where there is one value."""
    if len(values) < 2:
        return Spread(values[0], values[0], values[0])
    return Spread(*statistics.quantiles(values, n=4, method="inclusive"))


def find_percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile by nearest rank."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


@dataclass(frozen=True)
class Figure:
    """One thing that was measured at several peers.

    Args:
        part: Of the bench.
        what: In words.
        unit: Of the values.
        values: By peer, one for each round; round n of one peer and round n of another belong together.
        more_is_better: Otherwise less is.
        ratios: What Portico's value divided by a peer's should be at least (or, where less is better, at most).
        limit: What Portico's own value should be at least (or at most).
        digits: Behind the point.
    """

    part: str
    what: str
    unit: str
    values: dict[str, list[float]]
    more_is_better: bool = False
    ratios: dict[str, float] = field(default_factory=dict)
    limit: float | None = None
    digits: int = 0

    def find_value(self, peer: str) -> Spread:
        """Return a peer's value."""
        return find_spread(self.values[peer])

    def find_ratio(self, peer: str) -> Spread | None:
        """Return Portico's value divided by a peer's; None where one of them was not measured or is 0."""
        pairs = list(zip(self.values.get(PORTICO, []), self.values.get(peer, []), strict=False))
        if not pairs or not all(theirs for _, theirs in pairs):
            return None
        return find_spread([ours / theirs for ours, theirs in pairs])

    def list_targets(self) -> list[tuple[str, float, str]]:
        """Return each target as (peer, or empty for Portico's own value; bound; yes, no or unclear)."""
        found = []
        if self.limit is not None and PORTICO in self.values:
            found.append(("", self.limit, self._judge(self.find_value(PORTICO), self.limit)))
        for peer, bound in self.ratios.items():
            if ratio := self.find_ratio(peer):
                found.append((peer, bound, self._judge(ratio, bound)))
        return found

    def _judge(self, value: Spread, bound: float) -> str:
        """Return whether a target is met: unclear where one quartile says yes and the other one no."""
        met = {quartile >= bound if self.more_is_better else quartile <= bound for quartile in (value.low, value.high)}
        return "unclear" if len(met) > 1 else "yes" if met == {True} else "no"


@dataclass
class Report:
    """What a run has found out."""

    about: dict[str, str]
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def interleave(
    peers: Sequence[T], rounds: int, measure: Callable[[T], R], name: Callable[[T], Any]
) -> dict[Any, list[R]]:
    """Measure every peer once a round, each round beginning with the next one, so that none always comes first.

    Returns:
        Results in the order of rounds, by the name of the peer.
    """
    results: dict[Any, list[R]] = {name(peer): [] for peer in peers}
    for number in range(rounds):
        at = number % len(peers)
        for peer in [*peers[at:], *peers[:at]]:
            results[name(peer)].append(measure(peer))
    return results


def pick(results: dict[str, list[R]], which: Callable[[R], float]) -> dict[str, list[float]]:
    """Return one number of each result."""
    return {name: [which(one) for one in found] for name, found in results.items()}
