"""REST API of events, for organisers. What participants do has pages only."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import PlainTextResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from portico.errors import NotFound
from portico.events.seats import SeatView
from portico.events.sheet import render_invitation
from portico.events.steering import Action
from portico.model import Event, EventApp, EventField, EventSettings, FieldKind, Identity
from portico.portal.context import get_context, identify

Who = Annotated[Identity, Depends(identify)]

router = APIRouter(prefix="/api/v1", dependencies=[Depends(identify)])


class Shape(BaseModel):
    """A shape of the API; unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class AppShape(Shape):
    """An app that an event offers; what is left out has the app's default."""

    app_id: str
    cores: float | None = None
    memory_gb: float | None = None
    hours: float | None = None
    image: str = Field("", max_length=200)


class FieldShape(Shape):
    """A field of the registration."""

    name: str
    label: str
    kind: FieldKind = FieldKind.TEXT
    required: bool = False
    choices: list[str] = Field(default_factory=list, max_length=50)


class TextShape(Shape):
    """A text that participants accept, in Markdown."""

    name: str
    text: str


class SettingsShape(Shape):
    """What an organiser decides of an event; the welcome text is Markdown."""

    welcome: str = ""
    colour: str = EventSettings.colour
    second_colour: str = EventSettings.second_colour
    registration: bool = True
    apps: list[AppShape] = Field(default_factory=list, max_length=50)
    cluster: str = Field("", max_length=32)
    placement: dict[str, str] = Field(default_factory=dict, max_length=8)
    fields_: list[FieldShape] = Field(default_factory=list, max_length=50, alias="fields")
    texts: list[TextShape] = Field(default_factory=list, max_length=20)
    start_command: str = ""
    fetch_hours: float = EventSettings.fetch_hours
    wall: bool = False
    archive: bool = True
    entry_code: str = Field("", max_length=100)

    def read(self) -> EventSettings:
        """Return it as the events' service takes it."""
        values = self.model_dump(exclude={"apps", "fields_", "texts"})
        return EventSettings(
            **values,
            apps=tuple(EventApp(**app.model_dump()) for app in self.apps),
            fields=tuple(
                EventField(**{**field.model_dump(), "choices": tuple(field.choices)}) for field in self.fields_
            ),
            texts=tuple((text.name, text.text) for text in self.texts),
        )


class EventRequest(Shape):
    """A new event; times with their zone."""

    slug: str = Field(max_length=64)
    title: str = Field(max_length=200)
    begins: datetime
    ends: datetime
    seats: int = 0
    organiser_name: str = Field("", max_length=32)
    settings: SettingsShape = Field(default_factory=lambda: SettingsShape.model_validate({}))


class EventChange(Shape):
    """A change of an event; what is left out stays."""

    title: str | None = Field(None, max_length=200)
    begins: datetime | None = None
    ends: datetime | None = None
    settings: SettingsShape | None = None


class SeatsRequest(Shape):
    """How many seats to add."""

    count: int


class SecretsRequest(Shape):
    """Which seats get new secrets; none named: all that nobody has taken."""

    names: list[str] = Field(default_factory=list, max_length=1000)


class ActRequest(Shape):
    """What to do to all seats, or to those named: `warm`, `stop` or `extend`."""

    action: Action
    app_id: str = Field("", max_length=64)
    names: list[str] = Field(default_factory=list, max_length=1000)


class MessageRequest(Shape):
    """A message to all participants, or to those on some seats."""

    text: str = Field(max_length=1000)
    names: list[str] = Field(default_factory=list, max_length=1000)


class ListRequest(Shape):
    """A token list: CSV with ``account`` and ``password``."""

    list: str


def _render(request: Request, event: Event) -> dict[str, Any]:
    return {
        "slug": event.slug,
        "title": event.title,
        "organiser_name": event.organiser_name,
        "state": event.state,
        "created": event.created,
        "begins": event.begins,
        "ends": event.ends,
        "ended": event.ended,
        "fetch_until": event.fetch_until,
        "summary": event.summary,
        "settings": asdict(event.settings)
        | {"texts": [{"name": name, "text": text} for name, text in event.settings.texts]},
        "link": f"{get_context(request).config.portal_origin}/e/{event.slug}",
        "invitation": render_invitation(get_context(request).config.portal_origin, event),
        "archiving": get_context(request).events.archives.find_progress(event),
    }


def _render_seat(view: SeatView) -> dict[str, Any]:
    return {
        "name": view.seat.name,
        "state": view.seat.state,
        "has_secret": view.seat.has_secret,
        "trouble": view.seat.trouble,
        "taken": view.seat.taken,
        "registered": view.registration.at if view.registration else None,
        "answers": view.registration.answers if view.registration else {},
        "last_seen": view.last_seen,
        "sessions": [{"id": one.id, "app_id": one.app_id, "state": one.state} for one in view.sessions],
    }


@router.get("/events")
async def list_events(request: Request, who: Who) -> list[dict[str, Any]]:
    """List one's own events; an admin sees all."""
    return [_render(request, event) for event in await get_context(request).events.list_events(who)]


@router.post("/events", status_code=201)
async def create_event(request: Request, who: Who, body: EventRequest) -> dict[str, Any]:
    """Make an event, a draft, with seats that are made from now on."""
    event = await get_context(request).events.create(
        who, body.slug, body.title, body.begins, body.ends, body.settings.read(), body.seats, body.organiser_name
    )
    return _render(request, event)


@router.get("/events/{slug}")
async def read_event(request: Request, who: Who, slug: str) -> dict[str, Any]:
    """Describe an event."""
    return _render(request, await get_context(request).events.get_event(who, slug))


@router.patch("/events/{slug}")
async def change_event(request: Request, who: Who, slug: str, body: EventChange) -> dict[str, Any]:
    """Change an event; settings are replaced as a whole."""
    events = get_context(request).events
    event = await events.get_event(who, slug)
    changed = await events.change(
        who,
        slug,
        event.title if body.title is None else body.title,
        body.begins or event.begins,
        body.ends or event.ends,
        body.settings.read() if body.settings else event.settings,
    )
    return _render(request, changed)


@router.post("/events/{slug}/do/{step}")
async def step_event(request: Request, who: Who, slug: str, step: str) -> dict[str, Any]:
    """Open, close or end an event; `step` is `open`, `close` or `end`."""
    events = get_context(request).events
    steps = {"open": events.open, "close": events.close, "end": events.end}
    if step not in steps:
        raise NotFound("There is no such step.", hint=f"One of {', '.join(steps)}.")
    return _render(request, await steps[step](who, slug))


@router.get("/events/{slug}/seats")
async def list_seats(request: Request, who: Who, slug: str) -> list[dict[str, Any]]:
    """List an event's seats, who sits there, and what runs."""
    return [_render_seat(view) for view in await get_context(request).events.seats.list_seats(who, slug)]


@router.post("/events/{slug}/seats", status_code=201)
async def add_seats(request: Request, who: Who, slug: str, body: SeatsRequest) -> list[str]:
    """Add seats; return their names."""
    return await get_context(request).events.seats.add(who, slug, body.count)


@router.delete("/events/{slug}/seats/{name}", status_code=204)
async def remove_seat(request: Request, who: Who, slug: str, name: str) -> None:
    """Remove a seat with its sessions, account and home."""
    await get_context(request).events.seats.remove(who, slug, name)


@router.post("/events/{slug}/secrets", status_code=201)
async def renew_secrets(request: Request, who: Who, slug: str, body: SecretsRequest) -> list[dict[str, str]]:
    """Give seats new secrets, which are told only now."""
    made = await get_context(request).events.seats.renew_secrets(who, slug, body.names)
    return [{"name": one.name, "secret": one.secret} for one in made]


@router.post("/events/{slug}/import", status_code=201)
async def import_seats(request: Request, who: Who, slug: str, body: ListRequest) -> list[str]:
    """Add the seats of a token list; return their names."""
    return await get_context(request).events.seats.import_list(who, slug, body.list)


@router.post("/events/{slug}/export", response_class=PlainTextResponse)
async def export_list(request: Request, who: Who, slug: str) -> PlainTextResponse:
    """Return the token list as CSV, with new secrets for seats that nobody has taken."""
    return PlainTextResponse(await get_context(request).events.seats.export_list(who, slug))


@router.get("/events/{slug}/registrations", response_class=PlainTextResponse)
async def export_seats(request: Request, who: Who, slug: str) -> PlainTextResponse:
    """Return who sits where and what they answered, as CSV."""
    return PlainTextResponse(await get_context(request).events.seats.export_seats(who, slug))


@router.get("/events/{slug}/summary")
async def read_summary(request: Request, who: Who, slug: str) -> dict[str, Any]:
    """Return an event's numbers and lines over time, without names: as it is now, or as it was at its end."""
    return asdict(await get_context(request).events.archives.summarise(who, slug))


@router.get("/events/{slug}/archive", response_class=StreamingResponse)
async def fetch_archive(
    request: Request, who: Who, slug: str, seat: Annotated[list[str] | None, Query(max_length=1000)] = None
) -> StreamingResponse:
    """Send the homes of all seats, or of those named, as a zip archive, while it is being made."""
    pieces = await get_context(request).events.archives.open(who, slug, seat or [])
    return StreamingResponse(pieces, media_type="application/zip", headers=describe_archive(slug))


def describe_archive(slug: str) -> dict[str, str]:
    """Return the headers of an archive: its name, and that a front server shall hold nothing back."""
    return {"Content-Disposition": f"attachment; filename={slug}-archive.zip", "X-Accel-Buffering": "no"}


@router.post("/events/{slug}/act")
async def act_on_seats(request: Request, who: Who, slug: str, body: ActRequest) -> dict[str, Any]:
    """Start an app on all seats, stop all sessions, or extend them; of some seats, where they are named."""
    done = await get_context(request).events.steering.act(who, slug, body.action, body.app_id, body.names)
    return asdict(done)


@router.post("/events/{slug}/seats/{name}/help", status_code=201)
async def help_seat(request: Request, who: Who, slug: str, name: str) -> dict[str, str]:
    """Ask a participant to let one control their desktop; `link` is where it will be."""
    context = get_context(request)
    session = await context.events.steering.help(who, slug, name)
    return {"session_id": session.id, "link": f"{context.config.portal_origin}/shared/{session.id}"}


@router.post("/events/{slug}/message")
async def send_message(request: Request, who: Who, slug: str, body: MessageRequest) -> dict[str, int]:
    """Show a message to all participants, or to those on some seats; say to how many."""
    return {"count": await get_context(request).events.steering.tell(who, slug, body.text, body.names)}


@router.get("/events/{slug}/removal")
async def read_removal(request: Request, who: Who, slug: str) -> dict[str, Any]:
    """Say what the removal of an event would take away."""
    return asdict(await get_context(request).events.list_removal(who, slug))


@router.delete("/events/{slug}")
async def remove_event(request: Request, who: Who, slug: str, early: bool = False) -> dict[str, Any]:
    """Remove an event's accounts, homes, files, answers and texts."""
    return _render(request, await get_context(request).events.remove(who, slug, early=early))
