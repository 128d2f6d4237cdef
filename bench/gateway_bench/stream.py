"""Part ``stream``: bulk from the app to a client, as fast as it goes: MB/s, and the bridge's CPU time for it."""

from __future__ import annotations

import time
from typing import NamedTuple

from gateway_bench import client, rfb
from gateway_bench.bridges import HAPROXY, NONE, WEBSOCKIFY, Bridge, all_started, app_started
from gateway_bench.figures import Figure, find_spread, interleave, pick
from gateway_bench.processes import Running
from gateway_bench.run import Run

CHECKED_MIB = 8
"""So much is looked at byte for byte before anything is measured."""


class Bulk(NamedTuple):
    """One round of one bridge."""

    mb_per_s: float
    cpu_s_per_gb: float
    busy: float
    load_busy: float


def measure_bulk(bridge: Bridge, app: Running, mib: int) -> Bulk:
    """Carry so many MiB through a new stream."""
    stream = bridge.open()
    with stream.sock:
        cpu_s, load_s, begin = bridge.read_cpu_s(), app.read_cpu_s() + time.process_time(), time.perf_counter()
        stream.say(rfb.render_bulk_request(mib))
        stream.skip(mib * rfb.MIB)
        took_s = time.perf_counter() - begin
        cpu_s, load_s = bridge.read_cpu_s() - cpu_s, app.read_cpu_s() + time.process_time() - load_s
    size = mib * rfb.MIB
    return Bulk(size / 1e6 / took_s, cpu_s / (size / 1e9), cpu_s / took_s, load_s / took_s)


def measure(run: Run) -> list[Figure]:
    """Measure all bridges, interleaved."""
    rounds, mib = (6, 64) if run.quick else (25, 256)
    figures = []
    with app_started(run.place) as app, all_started(run.place) as bridges:
        for bridge in bridges:
            stream = bridge.open()
            with stream.sock:
                client.check_bulk(stream, CHECKED_MIB)
        kinds = {
            "app on a Unix socket": [one for one in bridges if not one.tcp and not one.tls],
            "app on TCP": [one for one in bridges if one.tcp],
            "TLS to the client": [one for one in bridges if one.tls],
        }
        for kind, peers in kinds.items():
            results = interleave(peers, rounds, lambda one: measure_bulk(one, app, mib), lambda one: one.name)
            bridged = {name: found for name, found in results.items() if name != NONE}
            target = kind == "app on a Unix socket"
            figures += [
                Figure("stream", kind, "MB/s", pick(results, lambda one: one.mb_per_s), more_is_better=True,
                       ratios={HAPROXY: 1.5, WEBSOCKIFY: 1.5} if target else {}),
                Figure("stream", kind, "CPU s/GB", pick(bridged, lambda one: one.cpu_s_per_gb), digits=3,
                       ratios={HAPROXY: 0.5, WEBSOCKIFY: 1 / 3} if target else {}),
            ]  # fmt: skip
            told = ", ".join(
                f"{name} {_find_median(found, 'busy'):.0%} and {_find_median(found, 'load_busy'):.0%}"
                for name, found in bridged.items()
            )
            run.notes.append(f"stream, {kind}: CPU that the bridge, and app with client, used of a core: {told}.")
    return figures


def _find_median(found: list[Bulk], name: str) -> float:
    return find_spread([getattr(one, name) for one in found]).median
