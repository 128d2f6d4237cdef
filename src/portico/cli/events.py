"""``portico event``: workshops with seats made ahead, for organisers and admins.

On the machine itself only root is more than a plain user; an organiser uses a token: ``portico login``.
"""

from __future__ import annotations

import json
import sys
import tomllib
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from portico.cli import show
from portico.cli.client import Client
from portico.cli.event_archive import fetch_archive
from portico.cli.show import AsJson
from portico.errors import Invalid

event = typer.Typer(no_args_is_help=True, help="Workshops with seats made ahead (for organisers).")

Slug = Annotated[str, typer.Argument(help="The event's name in its address.", metavar="EVENT")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")]

event.command("archive")(fetch_archive)

LIST_COLUMNS = {"Event": "slug", "Title": "title", "State": "state", "Begins": "begins", "Ends": "ends"}
ONE_COLUMNS = LIST_COLUMNS | {
    "Organiser": "organiser_name", "Link": "invitation", "Fetch until": "fetch_until", "Summary": "summary",
}  # fmt: skip
SEAT_COLUMNS = {
    "Seat": "name", "State": "state", "Taken": "taken", "Last seen": "last_seen", "Answers": "answers",
    "Trouble": "trouble",
}  # fmt: skip


@event.command("list")
def list_events(context: typer.Context, as_json: AsJson = False) -> None:
    """List your events."""
    data = Client(context.obj).ask("GET", "/events")
    show.show(data, as_json, LIST_COLUMNS, empty="No events. Make one: portico event create EVENT")


@event.command("show")
def show_event(context: typer.Context, slug: Slug, as_json: AsJson = False) -> None:
    """Show one event."""
    show.show(Client(context.obj).ask("GET", f"/events/{slug}"), as_json, ONE_COLUMNS)


@event.command("create")
def create_event(
    context: typer.Context,
    slug: Slug,
    begins: Annotated[str, typer.Option(help="When its apps can be started: 2027-03-01T09:00, your time.")],
    ends: Annotated[str, typer.Option(help="When all ends.")],
    title: Annotated[str, typer.Option(help="What people call it; by default its name.")] = "",
    seats: Annotated[int, typer.Option(help="How many seats.", min=0, max=1000)] = 0,
    app: Annotated[list[str] | None, typer.Option("--app", help="An app that it offers; may be repeated.")] = None,
    settings: Annotated[
        Path | None, typer.Option(help="TOML or JSON file with settings, as docs/events.md lists them.")
    ] = None,
    organiser: Annotated[str, typer.Option(help="Whose it is to be (for admins).")] = "",
    as_json: AsJson = False,
) -> None:
    """Make an event: a draft, which `portico event open` shows to people."""
    chosen = _read_settings(settings) if settings else {}
    if app:
        chosen["apps"] = [*chosen.get("apps", []), *({"app_id": name} for name in app)]
    body = {
        "slug": slug,
        "title": title or slug,
        "begins": _parse_time(begins),
        "ends": _parse_time(ends),
        "seats": seats,
        "organiser_name": organiser,
        "settings": chosen,
    }
    show.show(Client(context.obj).ask("POST", "/events", body), as_json, ONE_COLUMNS)


def _parse_time(text: str) -> str:
    try:
        return datetime.fromisoformat(text).astimezone().isoformat()
    except ValueError:
        raise Invalid(f"{text!r} is no date and time.", hint="For example 2027-03-01T09:00") from None


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text()
        found = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError) as error:
        raise Invalid(f"{path} can't be read.", why=str(error)) from error
    if not isinstance(found, dict):
        raise Invalid(f"{path} is no table.")
    return found


@event.command("seats")
def show_seats(
    context: typer.Context,
    slug: Slug,
    add: Annotated[int, typer.Option("--add", help="Add so many.", min=0, max=1000)] = 0,
    remove: Annotated[list[str] | None, typer.Option("--remove", help="Remove this seat, with its files.")] = None,
    renew: Annotated[list[str] | None, typer.Option("--renew", help="Give this seat a new secret; print it.")] = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """List the seats of an event; add some, remove some, renew a secret."""
    client = Client(context.obj)
    if remove:
        _confirm(f"Remove {', '.join(remove)}, with all files there?", yes)
    if add:
        client.ask("POST", f"/events/{slug}/seats", {"count": add})
    for name in remove or []:
        client.ask("DELETE", f"/events/{slug}/seats/{name}")
    if renew:
        made = client.ask("POST", f"/events/{slug}/secrets", {"names": renew})
        show.tell("This is shown once:")
        show.show(made, as_json, {"Seat": "name", "Secret": "secret"})
        return
    show.show(client.ask("GET", f"/events/{slug}/seats"), as_json, SEAT_COLUMNS, empty="No seats.")


def _confirm(question: str, yes: bool) -> None:
    if yes:
        return
    if not sys.stdin.isatty():
        raise Invalid("Nobody is there to confirm.", hint="Add --yes.")
    typer.confirm(question, abort=True, err=True)


@event.command("open")
def open_event(context: typer.Context, slug: Slug, as_json: AsJson = False) -> None:
    """Show the landing page, and take registrations."""
    show.show(Client(context.obj).ask("POST", f"/events/{slug}/do/open"), as_json, ONE_COLUMNS)


@event.command("close")
def close_event(context: typer.Context, slug: Slug, as_json: AsJson = False) -> None:
    """Take no more registrations; participants go on."""
    show.show(Client(context.obj).ask("POST", f"/events/{slug}/do/close"), as_json, ONE_COLUMNS)


@event.command("all")
def act_on_all(
    context: typer.Context,
    slug: Slug,
    action: Annotated[str, typer.Argument(help="warm (start an app on every seat), stop or extend")],
    app: Annotated[str, typer.Option("--app", help="Which app's sessions; for warm which to start.")] = "",
    seat: Annotated[list[str] | None, typer.Option("--seat", help="Only this seat; may be repeated.")] = None,
    as_json: AsJson = False,
) -> None:
    """Start an app on all seats ahead, stop all sessions, or extend them."""
    body = {"action": action, "app_id": app, "names": seat or []}
    show.show(
        Client(context.obj).ask("POST", f"/events/{slug}/act", body), as_json, {"Done": "count", "But": "troubles"}
    )


@event.command("message")
def send_message(
    context: typer.Context,
    slug: Slug,
    text: Annotated[str, typer.Argument(help="What participants are told, on whatever page they are.")],
    seat: Annotated[list[str] | None, typer.Option("--seat", help="Only this seat; may be repeated.")] = None,
    as_json: AsJson = False,
) -> None:
    """Tell all participants something."""
    body = {"text": text, "names": seat or []}
    show.show(Client(context.obj).ask("POST", f"/events/{slug}/message", body), as_json, {"Told": "count"})


@event.command("help")
def help_seat(
    context: typer.Context,
    slug: Slug,
    seat: Annotated[str, typer.Argument(help="On which seat.", metavar="SEAT")],
    as_json: AsJson = False,
) -> None:
    """Ask a participant to let you type and point on their desktop; print where it will be."""
    data = Client(context.obj).ask("POST", f"/events/{slug}/seats/{seat}/help")
    show.show(data, as_json, {"Session": "session_id", "Open": "link"})


@event.command("end")
def end_event(context: typer.Context, slug: Slug, yes: Yes = False, as_json: AsJson = False) -> None:
    """End an event: all sessions stop; participants can still fetch their files for a while."""
    _confirm(f"End {slug}? All its sessions stop now.", yes)
    show.show(Client(context.obj).ask("POST", f"/events/{slug}/do/end"), as_json, ONE_COLUMNS)


@event.command("summary")
def show_summary(context: typer.Context, slug: Slug, as_json: AsJson = False) -> None:
    """Show numbers of an event, without names: as it is now, or as it was at its end; with --json over time."""
    data = Client(context.obj).ask("GET", f"/events/{slug}/summary")
    numbers = data["numbers"]
    show.show(data if as_json else numbers, as_json, {name.capitalize(): name for name in numbers})


@event.command("export")
def export(
    context: typer.Context,
    slug: Slug,
    participants: Annotated[
        bool, typer.Option("--participants", help="Who sits where and what they answered; no secrets.")
    ] = False,
) -> None:
    """Print the token list as CSV, with new secrets for seats that nobody has taken: earlier ones end."""
    client = Client(context.obj)
    path = f"/events/{slug}/registrations" if participants else f"/events/{slug}/export"
    sys.stdout.write(str(client.ask("GET" if participants else "POST", path)))


@event.command("import")
def import_list(
    context: typer.Context,
    slug: Slug,
    file: Annotated[str, typer.Argument(help="CSV with the columns account and password; - for standard input.")],
) -> None:
    """Add the seats of a token list, each with the password that stands there."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"{file} can't be read.", why=str(error)) from error
    names = Client(context.obj).ask("POST", f"/events/{slug}/import", {"list": text})
    show.tell(f"{len(names)} seats are being made.")


@event.command("remove")
def remove_event(
    context: typer.Context,
    slug: Slug,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
    early: Annotated[bool, typer.Option("--early", help="Although participants can still fetch their files.")] = False,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Remove the accounts, homes, files and answers of an event that has ended."""
    client = Client(context.obj)
    removal = client.ask("GET", f"/events/{slug}/removal")
    columns = {"Accounts": "accounts", "Registrations": "registrations", "Files": "files", "Early": "too_early"}
    if dry_run:
        show.show(removal, as_json, columns)
        return
    if not yes:
        show.show(removal, False, columns)
    _confirm(f"Remove all this of {slug}? There is no way back.", yes)
    show.show(client.ask("DELETE", f"/events/{slug}", early=str(early).lower()), as_json, ONE_COLUMNS)
