"""An event's numbers and lines as HTML and SVG: for its page, and as a page of its own for who takes them away.

The page has no script and asks for nothing; its one stylesheet stands in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from html import escape
from typing import Final

from portico.events.summary import Summary
from portico.jobs.samples import draw_line
from portico.model import Event, Line, Plot

WIDTH: Final = 600
HEIGHT: Final = 120


def render_plot(plot: Plot) -> str:
    """Return a plot as a figure; its colours are the stylesheet's, the names of its lines stand beside their colour."""
    most = max(max(line.values) for line in plot.lines)
    step = (plot.ends - plot.begins) / max(len(plot.lines[0].values) - 1, 1)
    lines = "".join(
        f'<polyline class="line-{number}" points="{_draw(line, plot.begins, step, most)}"/>'
        for number, line in enumerate(plot.lines)
    )
    label = escape(f"{plot.title}: {'; '.join(map(_describe, plot.lines))}")
    names = "".join(
        f'<li><svg class="key" viewBox="0 0 20 4" aria-hidden="true"><path class="line-{number}" d="M0 2h20"/></svg>'
        f"{escape(_describe(line))}</li>"
        for number, line in enumerate(plot.lines)
    )
    times = "".join(
        f'<time datetime="{time.isoformat()}">{time:%Y-%m-%d %H:%M} UTC</time>' for time in (plot.begins, plot.ends)
    )
    return (
        f'<figure class="chart plot"><h3>{escape(plot.title)}</h3><div class="frame"><span class="most">{most}</span>'
        f'<svg viewBox="0 -3 {WIDTH} {HEIGHT + 6}" preserveAspectRatio="none" role="img" aria-label="{label}">'
        f"{lines}</svg></div>"
        f'<div class="span">{times}</div><figcaption><ul>{names}</ul></figcaption></figure>'
    )


def _draw(line: Line, begins: datetime, step: timedelta, most: float) -> str:
    points = [(begins + number * step, float(value)) for number, value in enumerate(line.values)]
    return draw_line(points, most, WIDTH, HEIGHT)


def _describe(line: Line) -> str:
    most, last = max(line.values), line.values[-1]
    return f"{line.name} {last}" if most == last else f"{line.name} {last}, at most {most}"


def render_plots(plots: Sequence[Plot]) -> str:
    """Return plots as figures, one below the other."""
    return "".join(render_plot(plot) for plot in plots)


def render_page(event: Event, summary: Summary) -> bytes:
    """Return a summary as a page of its own, which a browser shows without Portico."""
    title = escape(event.title)
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{value}</td></tr>" for name, value in summary.numbers.items())
    dates = f"{event.begins:%Y-%m-%d %H:%M} to {event.ends:%Y-%m-%d %H:%M} UTC"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{_STYLE}</style></head><body><h1>{title}</h1><p>{dates}</p>"
        f"{render_plots(summary.plots)}<table>{rows}</table></body></html>\n"
    ).encode()


_STYLE: Final = """
:root { color-scheme: light dark; --ink: #1b1f27; --paper: #fff; --line: #d5d9e0;
  --c0: #2059bd; --c1: #b3500b; --c2: #17743c; --c3: #8b3fb0; --c4: #8a6400; --c5: #b3265e; --c6: #5b6472; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --paper: #14171c; --line: #3a414d;
  --c0: #7fadff; --c1: #f0a261; --c2: #6fcf93; --c3: #d3a1ee; --c4: #e0c15a; --c5: #f592b8; --c6: #aab3c0; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 720px;
  margin: 2rem auto; padding: 0 1rem; }
figure { margin: 0 0 2rem; } h3 { margin: 0 0 .3rem; font-size: 1rem; }
.frame { position: relative; } .most { position: absolute; left: .4rem; top: .1rem; font-size: .8rem; }
.frame svg { display: block; width: 100%; height: 140px; border: 1px solid var(--line); border-radius: 6px; }
polyline, path { fill: none; stroke-width: 2; vector-effect: non-scaling-stroke; }
.line-0 { stroke: var(--c0); } .line-1 { stroke: var(--c1); } .line-2 { stroke: var(--c2); }
.line-3 { stroke: var(--c3); } .line-4 { stroke: var(--c4); } .line-5 { stroke: var(--c5); }
.line-6 { stroke: var(--c6); }
.span { display: flex; justify-content: space-between; font-size: .8rem; }
ul { list-style: none; padding: 0; margin: .3rem 0 0; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem;
  font-size: .9rem; }
.key { width: 20px; height: 4px; margin-right: .4rem; vertical-align: middle; }
th { text-align: left; font-weight: normal; padding-right: 2rem; } td { text-align: right; }
"""
