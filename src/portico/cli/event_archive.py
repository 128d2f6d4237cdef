"""``portico event archive``: all seats' homes into one file, which has its name only when it is whole."""

from __future__ import annotations

import contextlib
import os
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.text import Text

from portico.cli import show
from portico.cli.client import Client
from portico.errors import Conflict, PorticoError, Unavailable

POLL_S: Final = 1.0
LINE_S: Final = 5.0
"""Between two lines of progress where nobody looks at a terminal."""


def fetch_archive(
    context: typer.Context,
    slug: Annotated[str, typer.Argument(help="The event's name in its address.", metavar="EVENT")],
    file: Annotated[Path | None, typer.Argument(help="Where to; by default EVENT-archive.zip.", metavar="FILE")] = None,
    seat: Annotated[list[str] | None, typer.Option("--seat", help="Only this seat; may be repeated.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Although the file is there already.")] = False,
) -> None:
    """Fetch the homes of all seats, who sat where, and the summary, as one zip archive.

    A seat that can't be read is named, in the archive and here, with status 1; the rest is whole, and --seat fetches
    that seat again. Ctrl-C leaves nothing.
    """
    path = file or Path(f"{slug}-archive.zip")
    if path.exists() and not force:
        raise Conflict(f"{path} is there already.", hint="Name another file, or add --force.")
    part = path.with_name(f"{path.name}.part")
    try:
        with _show_progress(Client(context.obj), slug) as count, _open(part) as out:
            query = {"seat": seat} if seat else {}
            for data in Client(context.obj).stream(f"/events/{slug}/archive", query):
                out.write(data)
                count(len(data))
        problems = _find_problems(part)
        os.replace(part, path)
    except OSError as error:
        raise Unavailable(f"{path} can't be written.", why=error.strerror or str(error)) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    show.tell(f"{path}: {path.stat().st_size / 1e6:.1f} MB.")
    if problems:
        again = " ".join(f"--seat {name}" for name in problems)
        raise Unavailable(
            f"{len(problems)} of its seats are not whole.",
            why="; ".join(f"{name}: {said}" for name, said in problems.items())[:2000],
            hint=f"Try those again: portico event archive {slug} again.zip {again}",
        )


def _open(part: Path) -> Any:
    """Open a new file for its owner alone."""
    return os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "wb")


def _find_problems(path: Path) -> dict[str, str]:
    """Return the seats that are not whole, and why.

    Raises:
        Unavailable: The archive itself is not whole.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            if "PROBLEMS.txt" not in archive.namelist():
                return {}
            lines = archive.read("PROBLEMS.txt").decode(errors="replace").splitlines()
    except (zipfile.BadZipFile, EOFError) as error:
        raise Unavailable("The archive was broken off.", why=str(error), hint="Fetch it again.") from error
    return {name: said for name, _, said in (line.partition(": ") for line in lines)}


@contextlib.contextmanager
def _show_progress(client: Client, slug: str) -> Iterator[Any]:
    """Show which seat is being read and how much has come; yield what is told of each piece's size."""
    state = {"bytes": 0, "told": time.monotonic()}
    ended = threading.Event()
    with show.err.status("Packing begins", spinner="dots") as status:

        def look() -> None:
            while not ended.wait(POLL_S):
                with contextlib.suppress(PorticoError):
                    found = client.ask("GET", f"/events/{slug}")["archiving"]
                    line = f"{state['bytes'] / 1e6:.1f} MB"
                    if found and found["seat_name"]:
                        line = f"{found['seat_name']}, seat {found['number']} of {found['of']}, {line}"
                    status.update(Text(line))
                    if not show.err.is_terminal and time.monotonic() - state["told"] > LINE_S:
                        state["told"] = time.monotonic()
                        show.tell(line)

        def count(size: int) -> None:
            state["bytes"] += size

        looking = threading.Thread(target=look, daemon=True)
        looking.start()
        try:
            yield count
        finally:
            ended.set()
            looking.join()
            client.close()
