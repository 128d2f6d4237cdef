"""Part ``idle``: what a stream costs that says nothing, in the bridge's memory, and whether all of them still work."""

from __future__ import annotations

import resource
import time
from typing import Final

from gateway_bench.bridges import HAPROXY, PORTICO, WEBSOCKIFY, Bridge, all_started, app_started
from gateway_bench.figures import Figure
from gateway_bench.fleet import Fleet
from gateway_bench.run import Run

STREAMS: Final = {HAPROXY: 1_000, WEBSOCKIFY: 500, PORTICO: 10_000}
"""websockify waits with select(2), which knows no descriptor above 1,023, and each stream needs two."""

QUICK: Final = {HAPROXY: 500, WEBSOCKIFY: 50, PORTICO: 2_000}
TLS_STREAMS: Final = 500
SETTLE_S: Final = 2.0

_DESCRIPTORS: Final = 2
"""Of a stream: the client's and the app's."""


def measure_idle(bridge: Bridge, number: int) -> tuple[float, int, list[str]]:
    """Open streams; return memory for each in KiB, how many answered afterwards, and why others were refused."""
    with Fleet(bridge) as fleet:
        fleet.open(10, first=number)
        fleet.pump(lambda: False, SETTLE_S)
        before = bridge.read_pss_bytes()
        fleet.open(number)
        fleet.pump(lambda: False, SETTLE_S)
        memory = bridge.read_pss_bytes() - before
        opened = len(fleet.members) - 10
        answered = fleet.count_answering() - 10
    return memory / 1024 / max(opened, 1), answered, fleet.refused


def measure(run: Run) -> list[Figure]:
    """Measure one bridge after the other: memory has no noise that a round would cancel."""
    most = (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 200) // _DESCRIPTORS
    memory: dict[str, dict[str, list[float]]] = {"plain": {}, "TLS to the client": {}}
    failures: dict[str, dict[str, list[float]]] = {"plain": {}, "TLS to the client": {}}
    with app_started(run.place), all_started(run.place) as bridges:
        for bridge in bridges:
            if bridge.tcp or bridge.name not in STREAMS:
                continue
            kind = "TLS to the client" if bridge.tls else "plain"
            wanted = (QUICK if run.quick else STREAMS)[bridge.name]
            number = min(TLS_STREAMS, wanted) if bridge.tls else min(wanted, most)
            begin = time.monotonic()
            per_stream, answered, refused = measure_idle(bridge, number)
            memory[kind][bridge.name] = [per_stream]
            failures[kind][bridge.name] = [number - answered]
            run.notes.append(
                f"idle, {kind}: {bridge.name} had {number:,} streams at once for {time.monotonic() - begin:.0f} s."
                + (f" {wanted:,} were wanted; the descriptor limit of this machine allows no more." * (number == most))
                + (f" Refused: {refused[0]}" if refused else "")
            )
    return [
        figure
        for kind in memory
        for figure in (
            Figure(
                "idle",
                f"{kind}, memory for each",
                "KiB",
                memory[kind],
                digits=1,
                limit=4.0 if kind == "plain" else None,
            ),
            Figure("idle", f"{kind}, streams that did not answer afterwards", "", failures[kind], limit=0),
        )
    ]
