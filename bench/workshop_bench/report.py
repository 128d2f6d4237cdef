"""What a workshop's figures say: tables with ratios, as Markdown, and everything as JSON."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from gateway_bench.figures import PORTICO, Figure, Spread, find_percentile

from workshop_bench.kill import TARGET_S, Killing
from workshop_bench.load import Round
from workshop_bench.registration import Registration

CLASSICAL: Final = "classical"
NONE: Final = "none"

PERCENTS: Final = (50, 95, 99)
TIMED: Final = {
    "picture": "click to first picture",
    "key": "key to pixel",
    "scroll": "turn of the wheel to pixel",
    "window": "command to window",
    "browser picture": "Chromium: page asked for to first picture",
    "browser key": "Chromium: key to pixel",
}


@dataclass
class Result:
    """A whole run.

    Args:
        about: What it depends on.
        registration: How the seats were taken.
        start_s: From the first desktop asked for until the last had its terminal.
        ready_s: The same for each desktop by itself.
        rounds: By bridge.
        killing: Where it was asked for.
    """

    about: dict[str, str]
    registration: Registration = field(default_factory=Registration)
    start_s: float = 0.0
    ready_s: list[float] = field(default_factory=list)
    rounds: dict[str, list[Round]] = field(default_factory=dict)
    killing: Killing | None = None


def list_figures(result: Result) -> list[Figure]:
    """Return what was measured with each bridge; a ratio is made within a round."""
    rounds, figures = result.rounds, []
    for what, title in TIMED.items():
        for percent in PERCENTS:
            values = {
                name: [find_percentile(times, percent) for one in them if (times := one.list_times_ms(what))]
                for name, them in rounds.items()
            }
            values = {name: found for name, found in values.items() if len(found) == len(rounds[name])}
            if values:
                figures.append(Figure("workshop", f"{title}, p{percent}", "ms", values, digits=1))
    for name, title in {"bridge": "CPU of the bridge", "portal": "CPU of the portal"}.items():
        figures.append(Figure("workshop", title, "% of a core", _pick(rounds, "cpu", name, 100), digits=1))
    for name, title in {"bridge": "memory of the bridge (PSS)", "portal": "memory of the portal (PSS)"}.items():
        figures.append(Figure("workshop", title, "MB", _pick(rounds, "memory_mb", name, 1)))
    keys = {name: [float(len(one.list_times_ms("key"))) for one in them] for name, them in rounds.items()}
    failures = {name: [float(len(one.list_failures())) for one in them] for name, them in rounds.items()}
    figures.append(Figure("workshop", "keys typed", "", keys))
    for name, title in {"desktops": "the desktops", "clients": "the clients", "others": "what else ran here"}.items():
        figures.append(Figure("workshop", f"CPU of {title}", "% of a core", _pick(rounds, "cpu", name, 100)))
    figures.append(Figure("workshop", "failures", "", failures))
    return [figure for figure in figures if figure.values]


def _pick(rounds: dict[str, list[Round]], of: str, name: str, factor: float) -> dict[str, list[float]]:
    return {
        bridge: [getattr(one, of)[name] * factor for one in them]
        for bridge, them in rounds.items()
        if all(name in getattr(one, of) for one in them)
    }


def render(result: Result) -> str:
    """Return everything as Markdown."""
    lines = [
        "| measured on | |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in result.about.items()),
        "",
    ]
    slowest, median = max(result.ready_s), find_percentile(result.ready_s, 50)
    lines += [
        _render_registration(result.registration),
        "",
        f"All {len(result.ready_s)} desktops were there, each with its terminal, after {result.start_s:.0f} s; "
        f"one took {median:.1f} s (median), the slowest {slowest:.1f} s.",
        "",
        *_render_table(list_figures(result), list(result.rounds)),
        *_render_failures(result.rounds),
    ]
    if result.killing:
        lines += ["", _render_killing(result.killing)]
    return "\n".join(lines)


def _render_registration(one: Registration) -> str:
    p50, p95, most = (find_percentile(one.took_s, 50) * 1000, find_percentile(one.took_s, 95) * 1000, max(one.took_s))
    met = one.seated == one.different and one.waiting == 1 and not one.failures
    failures = f" Failures: {', '.join(one.failures)}." if one.failures else " Failures: none." if met else ""
    return (
        f"{len(one.took_s)} people registered through the pages within {one.sent_s:.1f} s: {one.seated} got a seat, "
        f"{one.different} different ones, and {one.waiting} waits for one. An answer took {p50:.0f} ms (median), "
        f"{p95:.0f} ms (p95), {most * 1000:.0f} ms (slowest). The seats had been made in {one.seats_s:.0f} s.{failures}"
    )


def _render_table(figures: list[Figure], bridges: list[str]) -> list[str]:
    peers = [name for name in bridges if name != PORTICO]
    head = ["figure", "unit", *peers, f"**{PORTICO}**", *(f"{PORTICO} / {peer}" for peer in peers)]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join(["---"] * len(head)) + " |"]
    for one in figures:
        cells = [_render_spread(one.find_value(peer), one.digits) if peer in one.values else "–" for peer in peers]
        own = _render_spread(one.find_value(PORTICO), one.digits) if PORTICO in one.values else "–"
        ratios = [_render_spread(ratio, 2) if (ratio := one.find_ratio(peer)) else "–" for peer in peers]
        lines.append("| " + " | ".join([one.what, one.unit, *cells, f"**{own}**", *ratios]) + " |")
    return lines


def _render_spread(spread: Spread, digits: int) -> str:
    low, median, high = (f"{value:,.{digits}f}" for value in spread)
    return median if low == high else f"{median} ({low}–{high})"


def _render_failures(rounds: dict[str, list[Round]]) -> list[str]:
    counted = {
        name: Counter(f"{event.what}: {event.why}".rstrip(": ") for one in them for event in one.list_failures())
        for name, them in rounds.items()
    }
    told = [
        f"- {name}: {', '.join(f'{n} {what}' for what, n in them.items())}." for name, them in counted.items() if them
    ]
    return ["", "Failures:", "", *told] if told else []


def _render_killing(killing: Killing) -> str:
    back = sorted(killing.back_s)
    if not back:
        return "**Nobody came back after kill -9.**"
    met = not killing.missing and back[-1] <= TARGET_S
    sentence = (
        f"kill -9 of all of Portico: it was ready again after {killing.up_s:.1f} s; {len(back)} of "
        f"{len(back) + len(killing.missing)} people had their picture again after {back[len(back) // 2]:.1f} s "
        f"(median) and {back[-1]:.1f} s (last); the target of {TARGET_S:g} s is {'met' if met else '**not met**'}."
    )
    windows = f" Seats with other windows than before: {len(killing.moved)}. Failures later: {len(killing.late)}."
    return sentence + windows


def make_json(result: Result) -> dict[str, Any]:
    """Return everything, events among it."""
    return asdict(result)
