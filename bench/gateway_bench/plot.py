"""The figures as one SVG, drawn by hand: a panel for each thing that matters, a bar for each peer, targets as marks.

It has its own background and both sets of colours, so that it is readable on light and on dark pages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import Final

from gateway_bench.figures import PORTICO, Figure, Report, Spread

WIDTH: Final = 980
_COLUMNS: Final = 2
_PANEL: Final = WIDTH // _COLUMNS
_LABEL: Final = 118
_BAR: Final = _PANEL - _LABEL - 118
_TEXT: Final = 90
_ROW: Final = 22
_HEAD: Final = 46
_TOP: Final = 64
_BREAK: Final = 6.0
"""A bar that is so many times as long as the next one is broken off."""

_LIGHT: Final = (
    "--paper: #ffffff; --ink: #1f2933; --soft: #5b6770; --line: #d9dee2; --goal: #b3261e;"
    " --ours: #0b6e8f; --ours2: #7fb8cb; --peer: #9aa5ad; --peer2: #cfd6da"
)
_DARK: Final = (
    "--paper: #14191d; --ink: #e7ecef; --soft: #a3b0b8; --line: #37424a; --goal: #ff8a80;"
    " --ours: #4fb3d4; --ours2: #2a6a80; --peer: #76838c; --peer2: #4a555d"
)
_STYLE: Final = f"""
svg {{ {_LIGHT} }}
@media (prefers-color-scheme: dark) {{ svg {{ {_DARK} }} }}
text {{ font: 13px system-ui, 'DejaVu Sans', sans-serif; fill: var(--ink) }}
.soft {{ fill: var(--soft); font-size: 12px; font-weight: 400 }} .small {{ font-size: 10.5px }}
.title {{ font-size: 19px; font-weight: 600 }} .head {{ font-size: 14px; font-weight: 600 }} .own {{ font-weight: 600 }}
.paper {{ fill: var(--paper) }} .ours {{ fill: var(--ours) }} .ours2 {{ fill: var(--ours2) }}
.peer {{ fill: var(--peer) }} .peer2 {{ fill: var(--peer2) }} .base {{ stroke: var(--line) }}
.goal {{ stroke: var(--goal); stroke-width: 2; stroke-dasharray: 4 2 }} .spread {{ stroke: var(--ink) }}
.cut {{ stroke: var(--paper); stroke-width: 4 }}
"""


@dataclass(frozen=True)
class Bar:
    """One bar: its label, its value, a longer and paler one behind it where there is a second value, and the goal."""

    label: str
    value: Spread
    text: str
    is_ours: bool
    behind: Spread | None = None
    goal: float | None = None


def draw(report: Report) -> str:
    """Return the picture; empty where nothing of it was measured."""
    panels = [panel for panel in _list_panels(report) if panel[2]]
    if not panels:
        return ""
    rows = [panels[at : at + _COLUMNS] for at in range(0, len(panels), _COLUMNS)]
    parts, top = [], _TOP
    for row in rows:
        for column, (title, hint, bars) in enumerate(row):
            parts.append(_draw_panel(column * _PANEL + 14, top, title, hint, bars))
        top += _HEAD + _ROW * max(len(bars) for _, _, bars in row) + 22
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top + 24}" role="img" '
        f'aria-label="The gateway beside its peers"><style>{_STYLE}</style>'
        f'<rect class="paper" width="{WIDTH}" height="{top + 24}" rx="8"/>'
        '<text class="title" x="14" y="30">Portico’s gateway beside its peers</text>'
        '<text class="soft" x="14" y="50">Medians, with the quartiles of the rounds as a thin line; '
        "a dashed mark is what Portico should reach</text>"
        f'{"".join(parts)}<text class="soft small" x="14" y="{top + 2}">{escape(report.about["machine"])}</text>'
        f'<text class="soft small" x="14" y="{top + 17}">{escape(report.about["peers"])}</text></svg>\n'
    )


def _list_panels(report: Report) -> list[tuple[str, str, list[Bar]]]:
    unix, small = "app on a Unix socket", "body of 128 bytes"
    echo = _make_bars(report, "echo", "plain, p50", behind="plain, p99")
    per_s = _make_bars(report, "http", small, "requests/s", scale=1000, digits=1)
    tls = _make_bars(report, "http", f"TLS, {small}", "requests/s", scale=1000, digits=1)
    return [
        ("Desktop stream, MB/s", "more is better", _make_bars(report, "stream", unix, "MB/s")),
        ("Desktop stream, CPU s/GB", "less is better", _make_bars(report, "stream", unix, "CPU s/GB")),
        ("Echo of an input event, µs", "p50; p99 pale; less is better", echo),
        ("Memory of an idle stream, KiB", "less is better", _make_bars(report, "idle", "plain, memory for each")),
        (
            "HTTP to an app, 1,000 requests/s",
            "more is better",
            [*per_s, *(replace(bar, label=f"{bar.label}, TLS") for bar in tls)],
        ),
        ("Added to a new stream, ms", "p50; p99 pale; less is better", _make_added(report)),
    ]


def _find(report: Report, part: str, what: str, unit: str = "") -> Figure | None:
    found = (one for one in report.figures if (one.part, one.what) == (part, what) and unit in ("", one.unit))
    return next(found, None)


def _make_bars(
    report: Report, part: str, what: str, unit: str = "", behind: str = "", scale: float = 1, digits: int | None = None
) -> list[Bar]:
    """Return a bar for each peer, Portico's last; its goal is the strictest of the figure's."""
    figure = _find(report, part, what, unit)
    if figure is None or PORTICO not in figure.values:
        return []
    second = _find(report, part, behind, unit) if behind else None
    goals = [ratio * figure.find_value(peer).median for peer, ratio in figure.ratios.items() if peer in figure.values]
    goals += [figure.limit] if figure.limit is not None else []
    goal = (max if figure.more_is_better else min)(goals, default=None)
    peers = sorted(figure.values, key=lambda peer: peer == PORTICO)
    bars = []
    for peer in peers:
        if peer == "none":
            continue
        value = _scale(figure.find_value(peer), scale)
        other = _scale(second.find_value(peer), scale) if second and peer in second.values else None
        places = figure.digits if digits is None else digits
        text = f"{value.median:,.{places}f}" + (f" / {other.median:,.{places}f}" if other else "")
        ours = peer == PORTICO
        bars.append(Bar(peer, value, text, ours, other, goal / scale if ours and goal is not None else None))
    return bars


def _make_added(report: Report) -> list[Bar]:
    bars = []
    for figure in report.figures:
        what, _, rest = figure.what.partition(": ")
        if figure.part == "authorise" and rest == "added, p50":
            p99 = _find(report, "authorise", f"{what}: added, p99")
            value, tail = figure.find_value(PORTICO), p99.find_value(PORTICO) if p99 else None
            text = f"{value.median:.2f}" + (f" / {tail.median:.2f}" if tail else "")
            label = what.replace("gateway alone", "gateway").replace("whole Portico", "all")
            bars.append(Bar(label, value, text, True, tail, figure.limit))
    return bars


def _scale(spread: Spread, scale: float) -> Spread:
    return Spread(*(value / scale for value in spread))


def _find_longest(bars: Sequence[Bar]) -> float:
    """Return what the full width means: the largest value, unless it would leave nothing to see of the others."""
    ends = sorted(
        max(bar.value.high, bar.behind.high if bar.behind else 0, bar.goal or 0) for bar in bars
    )  # fmt: skip
    if len(ends) > 1 and ends[-1] > _BREAK * ends[-2]:
        return ends[-2] * 1.3
    return ends[-1] or 1.0


def _draw_panel(x: float, y: float, title: str, hint: str, bars: Sequence[Bar]) -> str:
    longest = _find_longest(bars)
    left, top = x + _LABEL, y + _HEAD - 14
    parts = [
        f'<text class="head" x="{x}" y="{y + 16}">{escape(title)}'
        f'<tspan class="soft" dx="8">{escape(hint)}</tspan></text>'
    ]
    for number, bar in enumerate(bars):
        parts.append(_draw_bar(left, top + number * _ROW, bar, longest))
    end = top + len(bars) * _ROW
    parts.append(f'<line class="base" x1="{left}" x2="{left}" y1="{top - 2}" y2="{end}"/>')
    return "".join(parts)


def _draw_bar(left: float, top: float, bar: Bar, longest: float) -> str:
    kind, middle = "ours" if bar.is_ours else "peer", top + _ROW / 2 - 2

    def place(value: float) -> float:
        return left + min(value / longest, 1.0) * _BAR

    own = ' class="own"' if bar.is_ours else ""
    parts = [f'<text{own} x="{left - 8}" y="{middle + 4}" text-anchor="end">{escape(_shorten(bar.label))}</text>']
    end = place(bar.value.median)
    if bar.behind:
        parts.append(_draw_rect(f"{kind}2", left, place(bar.behind.median), top, _ROW - 5))
        end = max(end, place(bar.behind.median))
    parts.append(_draw_rect(kind, left, place(bar.value.median), top + 1, _ROW - 7))
    if bar.value.median > longest:  # broken off
        parts.append(f'<line class="cut" x1="{end - 22}" x2="{end - 14}" y1="{top + _ROW - 4}" y2="{top - 1}"/>')
    elif bar.value.low != bar.value.high:
        low, high = place(bar.value.low), place(bar.value.high)
        parts.append(f'<line class="spread" x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}"/>')
        end = max(end, high)
    if bar.goal is not None:
        at = place(bar.goal)
        parts.append(f'<line class="goal" x1="{at:.1f}" x2="{at:.1f}" y1="{top - 3}" y2="{top + _ROW - 3}"/>')
        end = max(end, at) if at < end + _TEXT else end
    parts.append(f'<text{own} x="{end + 7:.1f}" y="{middle + 4}">{escape(bar.text)}</text>')
    return "".join(parts)


def _draw_rect(kind: str, left: float, right: float, top: float, height: float) -> str:
    width = max(1.0, right - left)
    return f'<rect class="{kind}" x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height}"/>'


def _shorten(label: str) -> str:
    return label.replace("configurable-http-proxy", "CHP")
