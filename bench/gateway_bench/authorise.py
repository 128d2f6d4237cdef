"""Part ``authorise``: what the gateway adds until a new stream's first byte, beside a client at the app's own socket.

Asked: a desktop's stream, for which the portal decides each time. Kept: a WebSocket of an HTTP app whose decision the
gateway keeps. Both with a portal that answers at once, so that the gateway's share is seen, and with a whole Portico.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from gateway_bench import client, real, rfb
from gateway_bench.app import GREETING
from gateway_bench.bridges import NONE, app_started, gateway_started, portal_started
from gateway_bench.figures import PORTICO, Figure, find_percentile, interleave
from gateway_bench.processes import wait_for
from gateway_bench.run import Run

ASKED_MS: Final = 5.0
KEPT_MS: Final = 1.0

Opening = Callable[[], None]


def time_opening(open_stream: Opening) -> float:
    """Return how many milliseconds a stream takes until its first byte."""
    begin = time.perf_counter_ns()
    open_stream()
    return (time.perf_counter_ns() - begin) / 1e6


def compare(what: str, direct: Opening, through: Opening, limit_ms: float, times: int) -> list[Figure]:
    """Open streams in turn without and with the gateway; return p50 and p99 of both, and of their difference."""
    ways = [(NONE, direct), (PORTICO, through)]
    for _, way in ways * 5:
        way()
    found = interleave(ways, times, lambda one: time_opening(one[1]), lambda one: one[0])
    added = [ours - theirs for ours, theirs in zip(found[PORTICO], found[NONE], strict=True)]
    return [
        Figure(
            "authorise",
            f"{what}: first byte, p50",
            "ms",
            {name: [find_percentile(one, 50)] for name, one in found.items()},
            digits=2,
        ),
        Figure("authorise", f"{what}: added, p50", "ms", {PORTICO: _split(added)}, digits=2, limit=limit_ms),
        Figure("authorise", f"{what}: added, p99", "ms", {PORTICO: [find_percentile(added, 99)]}, digits=2),
    ]


def _split(values: Sequence[float], parts: int = 10) -> list[float]:
    """Return the medians of ten parts, which show how much it changes."""
    size = max(1, len(values) // parts)
    return [find_percentile(values[at : at + size], 50) for at in range(0, size * parts, size)]


def open_rfb(address: client.Address) -> None:
    """Read the first message of an RFB server."""
    with client.connect(address) as sock:
        if client.PlainClient(sock).read(len(rfb.VERSION)) != rfb.VERSION:
            raise ValueError("no RFB")


def open_rfb_stream(port: int, path: str = "/stream/0", headers: str = "") -> None:
    """Read it through the gateway."""
    with client.connect(("127.0.0.1", port)) as sock:
        stream = client.WebSocketClient(sock, f"localhost:{port}", path, headers)
        if stream.read(len(rfb.VERSION)) != rfb.VERSION:
            raise ValueError("no RFB")


def open_websocket(address: client.Address, host: str, path: str = "/s/websocket/", headers: str = "") -> None:
    """Read the first message of a WebSocket server, or of an app through the gateway."""
    with client.connect(address) as sock:
        stream = client.WebSocketClient(sock, host, path, headers, protocol="")
        if stream.read(1) != GREETING[2:]:
            raise ValueError("no greeting")


def measure(run: Run) -> list[Figure]:
    """Measure the gateway alone, then a whole Portico where one can be started."""
    times = 100 if run.quick else 500
    place = run.place
    figures = []
    with app_started(place), portal_started(place), gateway_started(place) as (port, running):
        wait_for(lambda: open_rfb_stream(port), PORTICO, running)
        apps, host = ("127.0.0.1", port + 1), f"localhost:{port + 1}"
        websocket = str(place.folder / "websocket.sock")
        figures += compare(
            "gateway alone, kept",
            lambda: open_websocket(websocket, host),
            lambda: open_websocket(apps, host),
            KEPT_MS,
            times,
        )
        figures += compare(
            "gateway alone, asked", lambda: open_rfb(place.app), lambda: open_rfb_stream(port), ASKED_MS, times
        )
    if reason := real.find_reason_to_skip():
        run.notes.append(f"authorise: a whole Portico was left out: {reason}.")
        return figures
    with real.started(place.folder) as scene:
        kept, asked, host = scene.make_app_headers(), scene.make_stream_headers(), f"localhost:{scene.apps[1]}"
        rfb_socket, websocket = scene.find_socket("rfb"), scene.find_socket("websocket")
        figures += compare(
            "whole Portico, kept",
            lambda: open_websocket(websocket, host),
            lambda: open_websocket(scene.apps, host, scene.app_path, kept),
            KEPT_MS,
            times,
        )
        figures += compare(
            "whole Portico, asked",
            lambda: open_rfb(rfb_socket),
            lambda: open_rfb_stream(scene.portal[1], scene.stream_path, asked),
            ASKED_MS,
            times,
        )
    return figures
