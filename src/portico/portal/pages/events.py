"""Events for organisers: the list, the form, one event with its seats, what is printed, and the removal."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final
from urllib.parse import quote

from fastapi import Form, Request
from fastapi.responses import Response, StreamingResponse
from starlette.datastructures import UploadFile

from portico.errors import Conflict, Invalid, NotFound, PorticoError, TooMany
from portico.events.plots import render_plots
from portico.events.seat_secrets import make_code
from portico.events.settings import parse_fields, render_fields
from portico.events.sheet import render_invitation, render_link, render_qr, render_sheet
from portico.events.steering import Action
from portico.model import Event, EventApp, EventSettings, Identity, SeatState, now
from portico.portal.context import get_context, in_thread
from portico.portal.events_api import describe_archive
from portico.portal.pages.routers import Text, Who, find_safe_path, router, see
from portico.portal.rendering import render
from portico.sessions import Reservation, Sessions
from portico.sessions.images import find_field

TEXTS: Final = ("Terms of use", "Privacy", "Licence")
CSV: Final = "text/csv; charset=utf-8"


@router.get("/events")
async def show_events(request: Request, who: Who) -> Response:
    """Show one's events."""
    return render(request, "events.html", who, events=await get_context(request).events.list_events(who))


# the form


@router.get("/events/new")
async def show_new_event(request: Request, who: Who) -> Response:
    """Show the form of a new event."""
    await get_context(request).events.list_events(who)  # who may
    tomorrow = (now() + timedelta(days=1)).replace(hour=8, minute=0)
    given = {"begins": _render_time(tomorrow), "ends": _render_time(tomorrow + timedelta(hours=9)), "seats": "20"}
    return await _show_form(request, who, None, given | _render_settings(EventSettings()))


@router.get("/events/{slug}/edit")
async def show_event_form(request: Request, who: Who, slug: str) -> Response:
    """Show the form of an event."""
    event = await get_context(request).events.get_event(who, slug)
    given = {"slug": slug, "title": event.title, "begins": _render_time(event.begins), "ends": _render_time(event.ends)}
    return await _show_form(request, who, event, given | _render_settings(event.settings))


async def _show_form(
    request: Request, who: Identity, event: Event | None, given: dict[str, str], error: PorticoError | None = None
) -> Response:
    sessions = get_context(request).sessions
    apps = [app for app in await in_thread(sessions.catalog.list_apps) if not (app.missing and app.hidden)]
    images = {app.id: find_field(app) for app in apps}
    return render(
        request,
        "event_form.html",
        who,
        event=event,
        given=given,
        error=error,
        apps=apps,
        images=images if any(images.values()) else {},
        clusters=sessions.clusters,
        reservations=await _list_reservations(sessions),
        texts=len(TEXTS),
        code=make_code(),
    )


async def _list_reservations(sessions: Sessions) -> list[tuple[str, list[Reservation]]]:
    """Return the clusters that have reservations, and these; one that does not answer has none now."""
    found = []
    for cluster in sessions.clusters:
        with contextlib.suppress(PorticoError):
            if listed := await sessions.list_reservations(cluster.name):
                found.append((cluster.title, listed))
    return found


def _render_time(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M")


def _parse_time(form: dict[str, str], name: str) -> datetime:
    try:
        return datetime.fromisoformat(form.get(name, "")).replace(tzinfo=UTC)
    except ValueError:
        raise Invalid("This is no date and time.", field=name) from None


def _render_settings(settings: EventSettings) -> dict[str, str]:
    given = {
        "welcome": settings.welcome,
        "colour": settings.colour,
        "second_colour": settings.second_colour,
        "registration": "1" if settings.registration else "",
        "wall": "1" if settings.wall else "",
        "archive": "1" if settings.archive else "",
        "entry_code": settings.entry_code,
        "cluster": settings.cluster,
        "reservation": settings.placement.get("reservation", ""),
        "fields": render_fields(settings.fields),
        "start_command": settings.start_command,
        "fetch_hours": f"{settings.fetch_hours:g}",
    }
    texts = dict(settings.texts)
    names = [*texts, *(name for name in TEXTS if name not in texts)][: max(len(TEXTS), len(texts))]
    for number, name in enumerate(names):
        given |= {f"text-name-{number}": name, f"text-{number}": texts.get(name, "")}
    for app in settings.apps:
        given[f"app-{app.app_id}"] = "1"
        given[f"image-{app.app_id}"] = app.image
        for part in ("cores", "memory_gb", "hours"):
            value = getattr(app, part)
            given[f"{part}-{app.app_id}"] = f"{value:g}" if value is not None else ""
    return given


def _parse_settings(form: dict[str, str], before: EventSettings) -> EventSettings:
    def number(name: str) -> float | None:
        text = form.get(name, "").strip().replace(",", ".")
        try:
            return float(text) if text else None
        except ValueError:
            raise Invalid(f"{text[:20]!r} is not a number.", field=name) from None

    ids = [name.removeprefix("app-") for name in form if name.startswith("app-")]
    apps = [
        EventApp(
            i,
            number(f"cores-{i}"),
            number(f"memory_gb-{i}"),
            number(f"hours-{i}"),
            image=form.get(f"image-{i}", "").strip(),
        )
        for i in ids
    ]
    texts = [(form.get(f"text-name-{n}", "").strip(), form.get(f"text-{n}", "")) for n in range(8)]
    return replace(
        before,
        welcome=form.get("welcome", ""),
        colour=form.get("colour", before.colour),
        second_colour=form.get("second_colour", before.second_colour),
        registration="registration" in form,
        wall="wall" in form,
        archive="archive" in form,
        entry_code=form.get("entry_code", "").strip(),
        apps=tuple(apps),
        cluster=form.get("cluster", ""),
        placement=_parse_placement(form, before.placement),
        fields=parse_fields(form.get("fields", "")),
        texts=tuple((name, text) for name, text in texts if text.strip()),
        start_command=form.get("start_command", "").replace("\r\n", "\n"),
        fetch_hours=number("fetch_hours") or 0,
    )


def _parse_placement(form: dict[str, str], before: dict[str, str]) -> dict[str, str]:
    """Return what was chosen of the cluster; of its parts the form has only the reservation."""
    reservation = form.get("reservation", before.get("reservation", "")).strip()
    others = {name: value for name, value in before.items() if name != "reservation"}
    return others | ({"reservation": reservation} if reservation else {})


async def _read_form(request: Request) -> dict[str, str]:
    return {name: value for name, value in (await request.form()).items() if isinstance(value, str)}


@router.post("/events")
async def create_event(request: Request, who: Who) -> Response:
    """Make an event."""
    events, form = get_context(request).events, await _read_form(request)
    await events.list_events(who)  # who may
    try:
        seats = form.get("seats", "").strip() or "0"
        event = await events.create(
            who,
            form.get("slug", "").strip(),
            form.get("title", ""),
            _parse_time(form, "begins"),
            _parse_time(form, "ends"),
            _parse_settings(form, EventSettings()),
            int(seats) if seats.isdecimal() and len(seats) < 6 else -1,
        )
    except PorticoError as error:
        return await _show_form(request, who, None, form, error)
    return see(f"/events/{event.slug}")


@router.post("/events/{slug}")
async def change_event(request: Request, who: Who, slug: str) -> Response:
    """Change an event."""
    events, form = get_context(request).events, await _read_form(request)
    event = await events.get_event(who, slug)
    try:
        settings = _parse_settings(form, event.settings)
        times = _parse_time(form, "begins"), _parse_time(form, "ends")
        await events.change(who, slug, form.get("title", ""), *times, settings)
    except PorticoError as error:
        return await _show_form(request, who, event, form | {"slug": slug}, error)
    return see(f"/events/{slug}")


# one event


@router.get("/events/{slug}")
async def show_event(request: Request, who: Who, slug: str) -> Response:
    """Show an event with its seats, as they are now."""
    return await _show_event(request, who, slug)


async def _show_event(request: Request, who: Identity, slug: str, **values: Any) -> Response:
    context = get_context(request)
    events = context.events
    event = await events.get_event(who, slug)
    views = await events.seats.list_seats(who, slug)
    counts = {state: sum(view.seat.state is state for view in views) for state in SeatState}
    registrations = await events.list_registrations(who, slug)
    summary = await events.archives.summarise(who, slug)
    link = render_invitation(context.config.portal_origin, event)
    return render(
        request,
        "event.html",
        who,
        event=event,
        views=views,
        counts=counts,
        waiting=[one for one in registrations if not one.seat_name],
        handouts=await events.list_handouts(who, slug),
        has_logo=await events.read_logo(event) is not None,
        link=link,
        qr=render_qr(link),
        summary=summary,
        plots=render_plots(summary.plots),
        archiving=events.archives.find_progress(event),
        **values,
    )


@router.post("/events/{slug}/do/{step}")
async def step_event(request: Request, who: Who, slug: str, step: str) -> Response:
    """Open, close or end an event."""
    events = get_context(request).events
    steps = {"open": events.open, "close": events.close, "end": events.end}
    if step not in steps:
        raise NotFound("There is no such step.")
    await steps[step](who, slug)
    return see(f"/events/{slug}")


@router.post("/events/{slug}/seats")
async def add_seats(request: Request, who: Who, slug: str, count: Annotated[int, Form()] = 1) -> Response:
    """Add seats."""
    await get_context(request).events.seats.add(who, slug, count)
    return see(f"/events/{slug}")


@router.post("/events/{slug}/seats/{name}/remove")
async def remove_seat(request: Request, who: Who, slug: str, name: str) -> Response:
    """Remove a seat."""
    await get_context(request).events.seats.remove(who, slug, name)
    return see(f"/events/{slug}")


@router.post("/events/{slug}/seats/{name}/secret")
async def renew_seat_secret(request: Request, who: Who, slug: str, name: str) -> Response:
    """Give a seat a new secret, and show its card, this once."""
    context = get_context(request)
    made = (await context.events.seats.renew_secrets(who, slug, [name]))[0]
    event = await context.events.get_event(who, slug)
    link = render_link(context.config.portal_origin, event, made.name, made.secret)
    return await _show_event(request, who, slug, card=made, card_qr=render_qr(link))


@router.post("/events/{slug}/import")
async def import_seats(request: Request, who: Who, slug: str) -> Response:
    """Add the seats of a token list."""
    text = (await _read_form(request)).get("list", "")
    try:
        names = await get_context(request).events.seats.import_list(who, slug, text)
    except Invalid as error:
        return await _show_event(request, who, slug, error=error, list=text[:20_000])
    return await _show_event(request, who, slug, done=f"{len(names)} seats are being made.")


@router.post("/events/{slug}/list")
async def export_token_list(request: Request, who: Who, slug: str) -> Response:
    """Return the token list, with new secrets for seats that nobody has taken."""
    text = await get_context(request).events.seats.export_list(who, slug)
    return _attach(text.encode(), CSV, f"{slug}-list.csv")


@router.get("/events/{slug}/seats.csv")
async def export_seats(request: Request, who: Who, slug: str) -> Response:
    """Return who sits where, and what they answered."""
    text = await get_context(request).events.seats.export_seats(who, slug)
    return _attach(text.encode(), CSV, f"{slug}-seats.csv")


@router.get("/events/{slug}/archive")
async def fetch_archive(request: Request, who: Who, slug: str) -> Response:
    """Send the homes of all seats as one archive, while it is being made."""
    pieces = await get_context(request).events.archives.open(who, slug)
    return StreamingResponse(pieces, media_type="application/zip", headers=describe_archive(slug))


@router.post("/events/{slug}/sheet")
async def print_sheet(request: Request, who: Who, slug: str) -> Response:
    """Return the seat sheet, with new secrets for seats that nobody has taken."""
    context = get_context(request)
    cards = await context.events.seats.renew_secrets(who, slug)
    event = await context.events.get_event(who, slug)
    content = await in_thread(render_sheet, context.config.portal_origin, event, cards)
    return _attach(content, "application/pdf", f"{slug}-seats.pdf")


def _attach(content: bytes, media_type: str, name: str) -> Response:
    return Response(content, media_type=media_type, headers={"Content-Disposition": f"attachment; filename={name}"})


# while it goes on


@router.post("/events/{slug}/all/{action}")
async def act_on_all(request: Request, who: Who, slug: str, action: Action, app_id: Text = "") -> Response:
    """Start an app on all seats, stop all sessions, or extend them."""
    done = await get_context(request).events.steering.act(who, slug, action, app_id)
    said = f"{_DONE[action]} {done.count}. {' '.join(done.troubles)}".strip()
    return await _show_event(request, who, slug, done=said)


_DONE: Final = {Action.WARM: "Started:", Action.STOP: "Stopping:", Action.EXTEND: "Extended:"}


@router.post("/events/{slug}/seats/{name}/restart")
async def restart_seat(request: Request, who: Who, slug: str, name: str) -> Response:
    """Stop what runs on a seat, and start the same again."""
    again = await get_context(request).events.steering.restart(who, slug, name)
    return await _show_event(request, who, slug, done=f"Started again on {name}: {', '.join(again) or 'nothing'}.")


@router.post("/events/{slug}/seats/{name}/help")
async def help_seat(
    request: Request, who: Who, slug: str, name: str, session_id: Text = "", back: Text = ""
) -> Response:
    """Ask a participant to let one type and point on their desktop."""
    try:
        session = await get_context(request).events.steering.help(who, slug, name, session_id)
    except (Conflict, TooMany) as error:
        return await _show_event(request, who, slug, error=error)
    return see(f"/shared/{session.id}?back={quote(find_safe_path(back or f'/events/{slug}'))}")


@router.post("/events/{slug}/message")
async def send_message(request: Request, who: Who, slug: str, text: Text = "", name: Text = "") -> Response:
    """Show a message to all participants, or to one."""
    try:
        count = await get_context(request).events.steering.tell(who, slug, text, [name] if name else [])
    except Invalid as error:
        return await _show_event(request, who, slug, error=error)
    return await _show_event(
        request, who, slug, done=f"Told {count} {'participant' if count == 1 else 'participants'}."
    )


@router.get("/events/{slug}/wall")
async def show_wall(request: Request, who: Who, slug: str) -> Response:
    """Show all desktops, small and live; the gateway lets nothing through but looking."""
    events = get_context(request).events
    event = await events.get_event(who, slug)
    return render(request, "event_wall.html", who, event=event, tiles=await events.steering.list_wall(who, slug))


# files


async def _read_file(request: Request, who: Identity, slug: str) -> tuple[str, bytes]:
    """Return the name and content of the form's file, after it is known whose event it is."""
    await get_context(request).events.get_event(who, slug)
    async with request.form(max_files=1, max_fields=5) as form:
        file = form.get("file")
        return (file.filename or "", await file.read()) if isinstance(file, UploadFile) else ("", b"")


@router.post("/events/{slug}/logo")
async def set_logo(request: Request, who: Who, slug: str) -> Response:
    """Set the logo, or take it away with an empty form."""
    _, content = await _read_file(request, who, slug)
    try:
        await get_context(request).events.set_logo(who, slug, content)
    except Invalid as error:
        return await _show_event(request, who, slug, error=error)
    return see(f"/events/{slug}")


@router.post("/events/{slug}/handouts")
async def add_handout(request: Request, who: Who, slug: str) -> Response:
    """Add a hand-out."""
    name, content = await _read_file(request, who, slug)
    try:
        await get_context(request).events.add_handout(who, slug, name, content)
    except Invalid as error:
        return await _show_event(request, who, slug, error=error)
    return see(f"/events/{slug}")


@router.post("/events/{slug}/handouts/remove")
async def remove_handout(request: Request, who: Who, slug: str, name: Text = "") -> Response:
    """Remove a hand-out."""
    await get_context(request).events.remove_handout(who, slug, name)
    return see(find_safe_path(f"/events/{slug}"))


# removal


@router.get("/events/{slug}/remove")
async def show_event_removal(request: Request, who: Who, slug: str) -> Response:
    """Show what would go."""
    events = get_context(request).events
    event, removal = await events.get_event(who, slug), await events.list_removal(who, slug)
    return render(request, "event_remove.html", who, event=event, removal=removal)


@router.post("/events/{slug}/remove")
async def remove_event(request: Request, who: Who, slug: str, early: Text = "") -> Response:
    """Remove accounts, homes, answers and texts of an event."""
    await get_context(request).events.remove(who, slug, early=early == "1")
    return see(f"/events/{slug}")
