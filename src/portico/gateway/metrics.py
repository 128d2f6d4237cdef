"""What the gateway counts: plain numbers, because they are counted where every byte passes.

The portal asks for them (docs/protocol.md, `metrics`) and gives them to Prometheus; nothing here says who did what.
"""

from __future__ import annotations

import os
import time
from bisect import bisect_left
from collections import Counter
from typing import Any, Final

LATENCY_BOUNDS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Histogram:
    """Counts of values at or below each bound; the last count is of those above all bounds."""

    def __init__(self, bounds: tuple[float, ...] = LATENCY_BOUNDS_S) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def render(self) -> dict[str, Any]:
        """Return it as a JSON value; counts are not cumulative."""
        return {"bounds": list(self.bounds), "counts": list(self.counts), "sum": self.sum}


class Metrics:
    """One gateway's numbers since it started."""

    def __init__(self) -> None:
        self.started = time.time()
        self.connections = 0
        self.requests = 0
        self.in_bytes = 0
        self.out_bytes = 0
        self.streams: Counter[str] = Counter()
        self.live: Counter[str] = Counter()
        self.refusals: Counter[str] = Counter()
        self.cuts = 0
        self.tls_handshake = Histogram()
        self.authorisation = Histogram()
        self.opening = Histogram()
        self.lag = Histogram()

    def open(self, kind: str) -> None:
        """Count a stream that begins."""
        self.streams[kind] += 1
        self.live[kind] += 1

    def close(self, kind: str) -> None:
        """Count a stream that has ended."""
        self.live[kind] -= 1

    def render(self, connections: int) -> dict[str, Any]:
        """Return all as a JSON value (docs/protocol.md, `metrics`); ``connections`` are open now."""
        counters: dict[str, float] = {
            "connections_total": self.connections,
            "requests_total": self.requests,
            "cuts_total": self.cuts,
            'bytes_total{direction="in"}': self.in_bytes,
            'bytes_total{direction="out"}': self.out_bytes,
        }
        counters |= {f'streams_total{{kind="{kind}"}}': count for kind, count in self.streams.items()}
        counters |= {f'refusals_total{{reason="{reason}"}}': count for reason, count in self.refusals.items()}
        gauges: dict[str, float] = {"connections_open": connections}
        gauges |= {f'streams_open{{kind="{kind}"}}': count for kind, count in self.live.items()}
        return {
            "pid": os.getpid(),
            "started": self.started,
            "counters": counters,
            "gauges": gauges,
            "histograms": {
                "tls_handshake_seconds": self.tls_handshake.render(),
                "authorisation_seconds": self.authorisation.render(),
                "stream_opening_seconds": self.opening.render(),
                "event_loop_lag_seconds": self.lag.render(),
            },
        }
