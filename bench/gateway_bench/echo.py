"""Part ``echo``: an input event of 6 bytes goes through the bridge, and the app's answer of 6 bytes comes back."""

from __future__ import annotations

import gc
import time
from typing import NamedTuple

from gateway_bench import rfb
from gateway_bench.bridges import HAPROXY, WEBSOCKIFY, all_started, app_started
from gateway_bench.client import Client
from gateway_bench.figures import Figure, find_percentile, interleave, pick
from gateway_bench.run import Run


class Echoes(NamedTuple):
    """One round of one bridge, microseconds."""

    p50_us: float
    p99_us: float


def measure_echoes(stream: Client, number: int) -> Echoes:
    """Send events one after the other, each after the answer to the one before."""
    times = []
    gc.disable()
    for _ in range(number):
        begin = time.perf_counter_ns()
        stream.say(rfb.POINTER)
        answer = stream.read(len(rfb.POINTER))
        times.append((time.perf_counter_ns() - begin) / 1000)
        if answer != rfb.POINTER:
            raise ValueError("the bridge has changed what the app sent")
    gc.enable()
    return Echoes(find_percentile(times, 50), find_percentile(times, 99))


def measure(run: Run) -> list[Figure]:
    """Measure all bridges, interleaved; each has one stream open all the time."""
    rounds, number = (5, 200) if run.quick else (10, 500)
    figures = []
    with app_started(run.place), all_started(run.place) as bridges:
        for kind, peers in {
            "plain": [one for one in bridges if not one.tcp and not one.tls],
            "TLS to the client": [one for one in bridges if one.tls],
        }.items():
            streams = [(one.name, one.open()) for one in peers]
            try:
                for _, stream in streams:
                    measure_echoes(stream, 100)
                results = interleave(streams, rounds, lambda one: measure_echoes(one[1], number), lambda one: one[0])
            finally:
                for _, stream in streams:
                    stream.sock.close()
            target = {HAPROXY: 1.0, WEBSOCKIFY: 0.5} if kind == "plain" else {}
            figures += [
                Figure("echo", f"{kind}, p50", "µs", pick(results, lambda one: one.p50_us), ratios=target),
                Figure("echo", f"{kind}, p99", "µs", pick(results, lambda one: one.p99_us), ratios=target),
            ]
    return figures
