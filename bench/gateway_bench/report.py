"""How figures are told: a table in Markdown for people, JSON for programs."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Final

from gateway_bench.figures import PORTICO, Figure, Report, Spread

BEGIN: Final = "<!-- figures: written by bench/gateway.py -->"
END: Final = "<!-- end of figures -->"

TITLES: Final = {
    "stream": "Desktop stream: bulk from the app to one client",
    "echo": "Echo of an input event of 6 bytes",
    "idle": "Idle desktop streams",
    "http": "HTTP to an app",
    "authorise": "What authorisation adds to a new stream",
    "revoke": "From a cut to the closed connection",
}


def render_report(report: Report) -> str:
    """Return everything as Markdown: what it was measured on, the targets, then all figures."""
    lines = ["| measured on | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in report.about.items())]
    lines += ["", "### Targets", "", *_render_targets(report.figures)]
    for part, title in TITLES.items():
        figures = [one for one in report.figures if one.part == part]
        notes = [f"- {note}" for note in report.notes if note.startswith(part)]
        if figures or notes:
            lines += ["", f"### {title}", "", *_render_part(figures), "", *notes]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def _render_targets(figures: list[Figure]) -> list[str]:
    lines = [_render_row(["figure", PORTICO, "beside", "ratio", "target", "met"]), _render_row(["---"] * 6)]
    for one in figures:
        for peer, bound, met in one.list_targets():
            own = f"{_render_spread(one.find_value(PORTICO), one.digits)} {one.unit}".strip()
            ratio = one.find_ratio(peer) if peer else None
            sign, digits = "≥" if one.more_is_better else "≤", 2 if peer else one.digits
            unit = f" {one.unit}".rstrip() if not peer else " times"
            theirs = f"{peer}: {_render_spread(one.find_value(peer), one.digits)}" if peer else ""
            lines.append(
                _render_row(
                    [f"{one.part}: {one.what}", own, theirs, _render_spread(ratio, 2) if ratio else "",
                     f"{sign} {bound:,.{digits}f}{unit}", "**no**" if met == "no" else met]
                )
            )  # fmt: skip
    return lines


def _render_part(figures: list[Figure]) -> list[str]:
    if not figures:
        return []
    peers = list(dict.fromkeys(peer for one in figures for peer in one.values if peer != PORTICO))
    compared = [peer for peer in peers if any(one.find_ratio(peer) for one in figures)]
    head = ["figure", "unit", *peers, f"**{PORTICO}**", *(f"{PORTICO} / {peer}" for peer in compared)]
    lines = [_render_row(head), _render_row(["---"] * len(head))]
    for one in figures:
        cells = [_render_value(one, peer) for peer in peers]
        cells.append(f"**{_render_value(one, PORTICO)}**")
        for peer in compared:
            ratio = one.find_ratio(peer)
            cells.append(_render_spread(ratio, 2) if ratio else "–")
        lines.append(_render_row([one.what, one.unit, *cells]))
    return lines


def _render_value(figure: Figure, peer: str) -> str:
    return _render_spread(figure.find_value(peer), figure.digits) if peer in figure.values else "–"


def _render_row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _render_spread(spread: Spread, digits: int) -> str:
    low, median, high = (f"{value:,.{digits}f}" for value in spread)
    return median if low == high else f"{median} ({low}–{high})"


def render_json(report: Report) -> str:
    """Return everything, every round's value among it."""
    return json.dumps(asdict(report), indent=1, ensure_ascii=False) + "\n"


def parse_json(text: str) -> Report:
    """Return what :func:`render_json` has written."""
    data = json.loads(text)
    return Report(data["about"], [Figure(**one) for one in data["figures"]], data["notes"])


def write_docs(page: Path, text: str) -> None:
    """Put ``text`` between the page's markers."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n\n{text}\n{END}{after}")
