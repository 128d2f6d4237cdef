"""How the command line shows things: tables for people, JSON for programs, errors on stderr. No command's logic."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from portico.errors import PorticoError

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs instead of a table for people.")]

out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 200)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def show(data: Any, as_json: bool, columns: Mapping[str, str], *, empty: str = "None.") -> None:
    """Print a list of objects as a table, one object as lines, or either as JSON.

    Args:
        data: What the API answered.
        as_json: Whether to print JSON.
        columns: Heading of each column and the key it shows.
        empty: What to say where the list is empty.

    """
    if as_json:
        sys.stdout.write(json.dumps(data, indent=2, ensure_ascii=False) + "\n")
        return
    if isinstance(data, list):
        if not data:
            err.print(empty, markup=False)
            return
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in columns:
            table.add_column(heading, overflow="fold")
        for row in data:
            table.add_row(*(Text(render_value(key, row.get(key))) for key in columns.values()))
        out.print(table, soft_wrap=False)
        return
    width = max(len(heading) for heading in columns) + 2
    for heading, key in columns.items():
        if (text := render_value(key, data.get(key))) != "":
            out.print(f"{heading:<{width}}{text}", markup=False)


def tell(sentence: str) -> None:
    """Print a sentence about what was done: to stderr, so that stdout stays for data."""
    err.print(sentence, markup=False)


def render_value(key: str, value: Any) -> str:
    """Return a value as people read it: sizes in GB, times from now. Control characters never reach a terminal."""
    if value is None or value == "":
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if key.endswith("_bytes") and isinstance(value, (int, float)):
        return f"{value / 1e9:.3g} GB"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, str):
        if (at := _parse_time(value)) is not None:
            return render_time(at, datetime.now(UTC))
        return "".join(
            character if character.isprintable() or character == "\n" else "\N{REPLACEMENT CHARACTER}"
            for character in value
        )
    if isinstance(value, Sequence):
        return ", ".join(render_value("", item) for item in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={render_value('', item)}" for name, item in value.items())
    return str(value)


def render_time(at: datetime, now: datetime) -> str:
    """Return ``in 3 h 12 min``, ``5 min ago``, or the date where it is far away."""
    distance = abs(at - now)
    if distance > timedelta(days=7):
        return f"{at.astimezone():%Y-%m-%d %H:%M}"
    minutes = round(distance.total_seconds() / 60)
    if minutes == 0:
        return "now"
    days, rest = divmod(minutes, 24 * 60)
    hours, minutes = divmod(rest, 60)
    parts = [f"{days} d"] if days else []
    parts += [f"{hours} h"] if hours else []
    parts += [f"{minutes} min"] if minutes and not days else []
    return f"in {' '.join(parts)}" if at > now else f"{' '.join(parts)} ago"


def _parse_time(text: str) -> datetime | None:
    if len(text) < 19 or text[4:5] != "-" or text[10:11] not in ("T", " "):
        return None
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return at if at.tzinfo else at.replace(tzinfo=UTC)


@contextmanager
def errors_told() -> Iterator[None]:
    """Turn a PorticoError into its three sentences on stderr and exit status 1."""
    try:
        yield
    except PorticoError as error:
        show_error(error)
        raise SystemExit(1) from None


def show_error(error: PorticoError) -> None:
    """Print what happened, why, and what to do next."""
    err.print(Text(error.message, style="bold red"))
    for part in (error.why, error.hint):
        if part:
            err.print(f"  {part}", markup=False)
