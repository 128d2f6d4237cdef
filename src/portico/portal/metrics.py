"""Figures for Prometheus: the portal's own, counted here, and those of all gateways, asked when somebody looks.

docs/metrics.md has a row for each; a test compares. Never a user's name, a session's id or an address in a label:
whoever may see figures may not see who did what, and each label is a series for ever.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from portico.portal.gateway_figures import iter_gateways

Json = dict[str, Any]

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
LAG_EVERY_S: Final = 0.5
REQUEST_BUCKETS_S: Final = (0.005, 0.02, 0.1, 0.5, 2.0, 10.0)
LAG_BUCKETS_S: Final = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0)

OF_CLUSTERS: Final = {
    "cores": "Cores that a cluster has.",
    "cores_held": "Cores that are held.",
    "memory_bytes": "Memory that a cluster has.",
    "memory_held_bytes": "Memory that is held.",
    "jobs_running": "Jobs that run.",
    "jobs_queued": "Jobs that wait for their turn.",
}


@dataclass(frozen=True)
class Figures:
    """What is read, and not counted, each time that somebody looks.

    ``sessions`` are counted by (state, app); ``clusters`` has for each what :data:`OF_CLUSTERS` names.
    """

    sessions: Mapping[tuple[str, str], int]
    sign_ins: int
    feeds: int
    agents: int
    clusters: Mapping[str, Mapping[str, float]]


class Metrics:
    """The portal's own counters; each portal has its own registry, so that tests may have several."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for each counter, of no use to Prometheus' text format
        self.registry = CollectorRegistry()
        ProcessCollector(namespace="portico", registry=self.registry)
        self.sign_ins = Counter(
            "portico_sign_ins", "Sign-ins that were tried, by result.", ["result"], registry=self.registry
        )
        self.requests = Counter(
            "portico_requests", "Requests that the portal answered.", ["route", "method", "status"],
            registry=self.registry,
        )  # fmt: skip
        self.latency = Histogram(
            "portico_request_seconds", "Time until an answer of the portal begins.", ["route"],
            buckets=REQUEST_BUCKETS_S, registry=self.registry,
        )  # fmt: skip
        self.lag = Histogram(
            "portico_event_loop_lag_seconds", "How late the portal's event loop was.",
            buckets=LAG_BUCKETS_S, registry=self.registry,
        )  # fmt: skip
        self.ask_gateways: Callable[[], Awaitable[Mapping[int, Json | None]]] = _ask_nobody

    async def watch_lag(self) -> None:
        """Measure the event loop's lag, until cancelled."""
        while True:
            begin = time.monotonic()
            await asyncio.sleep(LAG_EVERY_S)
            self.lag.observe(max(0.0, time.monotonic() - begin - LAG_EVERY_S))

    def render(self, figures: Figures, gateways: Mapping[int, Json | None]) -> bytes:
        """Return all in Prometheus' text format.

        Args:
            figures: Of the portal.
            gateways: What each gateway answered, by pid; None where it did not.

        """
        scrape = CollectorRegistry()
        scrape.register(_Scrape([*iter_figures(figures), *iter_gateways(gateways)]))
        return generate_latest(self.registry) + generate_latest(scrape)


async def _ask_nobody() -> Mapping[int, Json | None]:
    return {}


class _Scrape(Collector):
    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def iter_figures(figures: Figures) -> Iterator[Metric]:
    """Yield what is read from the portal."""
    sessions = GaugeMetricFamily(
        "portico_sessions", "Sessions, ended ones too while they are kept.", labels=["state", "app"]
    )
    for (state, app), count in sorted(figures.sessions.items()):
        sessions.add_metric([state, app], count)
    yield sessions
    yield GaugeMetricFamily("portico_sign_ins_open", "Browsers that are signed in.", figures.sign_ins)
    yield GaugeMetricFamily("portico_event_feeds", "Event feeds of pages that are open.", figures.feeds)
    yield GaugeMetricFamily("portico_agents", "Agents of users that are at work.", figures.agents)
    for name, text in OF_CLUSTERS.items():
        family = GaugeMetricFamily(f"portico_cluster_{name}", text, labels=["cluster"])
        for cluster, values in figures.clusters.items():
            family.add_metric([cluster], values[name])
        yield family


class Meter:
    """ASGI middleware that counts requests and the time until their answers begin, by route and never by path."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and count."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begin = time.monotonic()

        async def count_and_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = find_route(scope)
                self._metrics.latency.labels(route).observe(time.monotonic() - begin)
                self._metrics.requests.labels(route, find_method(scope), str(message["status"])).inc()
            await send(message)

        await self._app(scope, receive, count_and_send)


METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def find_method(scope: Scope) -> str:
    """Return a request's method; anything uncommon is ``other``."""
    return scope["method"] if scope["method"] in METHODS else "other"


def find_route(scope: Scope) -> str:
    """Return the route's own pattern, such as ``/sessions/{session_id}``; ``/static`` for files, else ``none``."""
    if path := getattr(scope.get("route"), "path", ""):
        return str(path)
    return "/static" if scope.get("path", "").startswith("/static/") else "none"
