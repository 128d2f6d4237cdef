"""What gateways count, as Prometheus has it: pure, from the answers to ``metrics`` (docs/protocol.md) to metrics.

A figure that is not in the table here, or not as the protocol says, is left out: whatever a gateway answers, the rest
is still told.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

Json = dict[str, Any]

SERIES_MAX: Final = 500
"""Of one gateway; more is a defect of it, and must not become one of the portal."""


@dataclass(frozen=True)
class Known:
    """A figure of gateways that the portal passes on: its name, what it is, its labels."""

    name: str
    text: str
    labels: tuple[str, ...] = ()


GATEWAY: Final = {
    "counters": (
        Known("connections_total", "Connections that browsers made."),
        Known("requests_total", "HTTP requests, WebSocket handshakes among them."),
        Known("bytes_total", "Bytes of bodies and streams; in is from the browser.", ("direction",)),
        Known("streams_total", "Streams that were opened.", ("kind",)),
        Known("refusals_total", "What was refused.", ("reason",)),
        Known("cuts_total", "Times that the portal took something back."),
    ),
    "gauges": (
        Known("connections_open", "Connections of browsers that are open."),
        Known("streams_open", "Streams that are open.", ("kind",)),
    ),
    "histograms": (
        Known("tls_handshake_seconds", "Time of TLS handshakes."),
        Known("authorisation_seconds", "Time until the portal said which way a request goes."),
        Known("stream_opening_seconds", "Time from a WebSocket handshake to its stream."),
        Known("event_loop_lag_seconds", "How late a gateway's event loop was."),
    ),
}
"""By the kinds of docs/protocol.md. Open ones have names of their own: OpenMetrics drops a counter's ``_total``."""

_NAME: Final = re.compile(r"([a-z][a-z_]*)(?:\{([^{}]*)\})?\Z")
_LABEL: Final = re.compile(r'([a-z][a-z_]*)="([^"\\\n]{0,100})"(?:,|\Z)')


def iter_gateways(answers: Mapping[int, Json | None]) -> Iterator[Metric]:
    """Yield what gateways answered, as far as it is what docs/protocol.md says; the rest is left out."""
    up = GaugeMetricFamily("portico_gateway_up", "Whether a connected gateway answered in time.", labels=["gateway"])
    started = GaugeMetricFamily(
        "portico_gateway_start_time_seconds", "When a gateway started, in Unix time.", labels=["gateway"]
    )
    families = {
        kind: {
            known.name: _FAMILIES[kind](f"portico_gateway_{known.name}", known.text, labels=["gateway", *known.labels])
            for known in all_known
        }
        for kind, all_known in GATEWAY.items()
    }
    for pid, answer in answers.items():
        up.add_metric([str(pid)], 0 if answer is None else 1)
        if answer is None:
            continue
        if is_number(answer.get("started")):
            started.add_metric([str(pid)], answer["started"])
        left = SERIES_MAX
        for kind, all_known in GATEWAY.items():
            labels_of = {known.name: known.labels for known in all_known}
            given = answer.get(kind)
            for text, value in given.items() if isinstance(given, dict) else ():
                name, labels = parse_name(str(text))
                if left and labels_of.get(name) == tuple(labels):
                    left -= _add(families[kind][name], [str(pid), *labels.values()], value)
    yield up
    yield started
    for by_name in families.values():
        yield from by_name.values()


_FAMILIES: Final[dict[str, type[Any]]] = {
    "counters": CounterMetricFamily,
    "gauges": GaugeMetricFamily,
    "histograms": HistogramMetricFamily,
}


def _add(family: Any, labels: list[str], value: Any) -> bool:
    """Add one series to its family; whether it could be understood."""
    if isinstance(family, HistogramMetricFamily):
        buckets = parse_buckets(value)
        if buckets is None:
            return False
        family.add_metric(labels, buckets=buckets, sum_value=value["sum"])
        return True
    if not is_number(value):
        return False
    family.add_metric(labels, value)
    return True


def parse_name(text: str) -> tuple[str, dict[str, str]]:
    """Return name and labels of ``name{label="value"}``; an empty name where it is not that."""
    match = _NAME.match(text)
    if match is None:
        return "", {}
    labels, at = {}, 0
    rest = match[2] or ""
    while at < len(rest):
        label = _LABEL.match(rest, at)
        if label is None or label[1] in ("gateway", "le"):
            return "", {}
        labels[label[1]], at = label[2], label.end()
    return match[1], labels


def parse_buckets(value: Any) -> list[tuple[str, float]] | None:
    """Return a gateway's histogram as Prometheus has it: cumulative, with a last bucket +Inf; None if it is none."""
    if not isinstance(value, dict) or not is_number(value.get("sum")):
        return None
    bounds, counts = value.get("bounds"), value.get("counts")
    if not isinstance(bounds, list) or not isinstance(counts, list) or len(counts) != len(bounds) + 1:
        return None
    if not all(map(is_number, [*bounds, *counts])) or bounds != sorted(set(bounds)) or min(counts) < 0:
        return None
    total, buckets = 0.0, []
    for bound, count in zip([*(repr(float(bound)) for bound in bounds), "+Inf"], counts, strict=True):
        total += count
        buckets.append((bound, total))
    return buckets


def is_number(value: Any) -> bool:
    """Return whether a value of JSON is a number that Prometheus can hold."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63
