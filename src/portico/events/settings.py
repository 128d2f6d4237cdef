"""What an organiser may decide of an event: checked here, whether it comes from a form, the API or the command line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from portico.errors import Invalid
from portico.events.seat_secrets import clean_code, make_code
from portico.model import App, EventField, EventSettings, Field, FieldKind
from portico.sessions.catalog import APP_ID, FIELD_NAME, TEXT_LIMIT, check_value
from portico.sessions.images import find_field

SLUG: Final = re.compile(r"[a-z0-9](?:[a-z0-9-]{1,38}[a-z0-9])\Z")
RESERVED_SLUGS: Final = frozenset({"new"})
COLOUR: Final = re.compile(r"#[0-9a-fA-F]{6}\Z")
TITLE_LIMIT: Final = 100
WELCOME_LIMIT: Final = 20_000
TEXT_LIMIT_EACH: Final = 50_000
COMMAND_LIMIT: Final = 2000
LONGEST: Final = timedelta(days=366)
FETCH_HOURS_MAX: Final = 24 * 60
SEATS_MAX: Final = 1000
CODE_MIN: Final = 6
CODE_LIMIT: Final = 40
FILE_NAME: Final = re.compile(r"[^\W.][\w .()+,-]{0,99}\Z")
"""Of a hand-out or an upload: letters of any language, no slash, no dot at the beginning."""


def check_slug(slug: str) -> str:
    """Return a slug that may be an event's.

    Raises:
        Invalid: It may not.
    """
    if not SLUG.match(slug) or slug in RESERVED_SLUGS:
        raise Invalid(
            f"{slug[:40]!r} can't be the name of an event in its address.",
            hint="3 to 40 small letters, digits and dashes, for example summer-school.",
            field="slug",
        )
    return slug


def check_title(title: str) -> str:
    """Return a title that may be an event's.

    Raises:
        Invalid: It may not.
    """
    title = title.strip()
    if not 1 <= len(title) <= TITLE_LIMIT or not title.isprintable():
        raise Invalid(f"A title has 1 to {TITLE_LIMIT} characters, on one line.", field="title")
    return title


def check_dates(begins: datetime, ends: datetime) -> None:
    """Do nothing if an event may last so long.

    Raises:
        Invalid: It may not.
    """
    if begins.tzinfo is None or ends.tzinfo is None:
        raise Invalid("A time needs its time zone.", hint="For example 2027-03-01T09:00Z.", field="begins")
    if not timedelta() < ends - begins <= LONGEST:
        raise Invalid("An event ends after it begins, within a year.", field="ends")


def check_file_name(name: str) -> str:
    """Return the name of a file in a seat's home.

    Raises:
        Invalid: It has path parts, or is none.
    """
    name = name.strip()
    if not FILE_NAME.match(name) or len(name.encode()) > 200:
        raise Invalid(
            f"{name[:40]!r} can't be the name of a file here.",
            hint="Letters, digits, spaces and . _ - ( ) + , without a folder and without a dot at the beginning.",
            field="file",
        )
    return name


def check_settings(settings: EventSettings, app_ids: Iterable[str]) -> EventSettings:
    """Return settings that an event may have.

    Args:
        settings: As they were asked for.
        app_ids: The apps that there are.

    Raises:
        Invalid: They may not be so; ``field`` names which.
    """
    for name in ("colour", "second_colour"):
        if not COLOUR.match(getattr(settings, name)):
            raise Invalid("A colour is written as #rrggbb.", field=name)
    _check_text("welcome", "The welcome text", settings.welcome, WELCOME_LIMIT)
    _check_text("start_command", "The start command", settings.start_command, COMMAND_LIMIT)
    _check_code(settings.entry_code)
    if not 0 <= settings.fetch_hours <= FETCH_HOURS_MAX:
        raise Invalid(f"Folders can be fetched for 0 to {FETCH_HOURS_MAX} hours.", field="fetch_hours")
    known = set(app_ids)
    wanted = [app.app_id for app in settings.apps]
    for app_id in wanted:
        if not APP_ID.match(app_id) or app_id not in known:
            raise Invalid(f"There is no app {app_id[:40]!r}.", field="apps")
    if len(set(wanted)) < len(wanted):
        raise Invalid("An app is offered once.", field="apps")
    for app in settings.apps:
        if any(number is not None and not 0 < number < 1e6 for number in (app.cores, app.memory_gb, app.hours)):
            raise Invalid(f"{app.app_id}: a limit is a number above 0.", field="apps")
    if len(settings.fields) > 20 or len({field.name for field in settings.fields}) < len(settings.fields):
        raise Invalid("A form has at most 20 fields, no two of one name.", field="fields")
    for field in settings.fields:
        _check_field(field)
    if len(settings.texts) > 8 or len({name for name, _ in settings.texts}) < len(settings.texts):
        raise Invalid("At most 8 texts are accepted, no two of one name.", field="texts")
    for name, text in settings.texts:
        if not 1 <= len(name) <= 60 or not name.isprintable():
            raise Invalid("A text to accept has a name of 1 to 60 characters.", field="texts")
        _check_text("texts", name, text, TEXT_LIMIT_EACH)
    return replace(settings, colour=settings.colour.lower(), second_colour=settings.second_colour.lower())


def check_images(settings: EventSettings, apps: Iterable[App]) -> None:
    """Do nothing if each app may run in the image that it is given.

    Raises:
        Invalid: It may not.
    """
    known = {app.id: app for app in apps}
    for wanted in settings.apps:
        if not wanted.image:
            continue
        app = known[wanted.app_id]
        field = find_field(app)
        if field is None:
            raise Invalid(f"{app.name} runs in no image.", hint="Leave its image empty.", field=f"image-{app.id}")
        try:
            check_value(field, wanted.image)
        except Invalid as error:
            raise Invalid(f"{app.name}: {error.message}", field=f"image-{app.id}") from error


def _check_code(code: str) -> None:
    if code and not (
        len(clean_code(code)) >= CODE_MIN and len(code) <= CODE_LIMIT and code.isprintable() and code == code.strip()
    ):
        raise Invalid(
            f"An entry code has {CODE_MIN} to {CODE_LIMIT} characters.",
            hint=f"For example {make_code()}",
            field="entry_code",
        )


def _check_text(field: str, label: str, text: str, limit: int) -> None:
    if len(text) > limit or "\0" in text:
        raise Invalid(f"{label} has at most {limit} characters.", field=field)


def _check_field(field: EventField) -> None:
    texts = (field.label, *field.choices)
    if not FIELD_NAME.match(field.name) or not all(1 <= len(text) <= TEXT_LIMIT for text in texts):
        raise Invalid(f"The field {field.label[:40]!r} needs a label of 1 to {TEXT_LIMIT} characters.", field="fields")
    if not all(text.isprintable() for text in texts) or (field.kind is FieldKind.CHOICE) != bool(field.choices):
        raise Invalid(f"The field {field.label[:40]!r}: a choice has some, and nothing else has.", field="fields")
    if field.kind is FieldKind.NUMBER:
        raise Invalid("A registration asks for text, a choice or a tick.", field="fields")


def check_answers(settings: EventSettings, answers: dict[str, str]) -> dict[str, str]:
    """Return the answers of a registration, those that were asked for and no others.

    Raises:
        Invalid: One is missing, or can't be taken; ``field`` names it.
    """
    found = {}
    for field in settings.fields:
        value = answers.get(field.name, "").strip()
        if not value:
            if field.required:
                raise Invalid(f"{field.label}: please fill this in.", field=field.name)
            found[field.name] = ""
            continue
        found[field.name] = check_value(Field(field.name, field.label, field.kind, choices=field.choices), value)
    return found


def parse_fields(text: str) -> tuple[EventField, ...]:
    """Return the form that an organiser writes, a field a line: ``Label``, ``Label: one, two``, ``[] Label``.

    A ``*`` behind the label makes it required.
    """
    fields: list[EventField] = []
    for number, line in enumerate((line.strip() for line in text.splitlines()), 1):
        if not line:
            continue
        tick = line.startswith("[]")
        label, _, rest = line.removeprefix("[]").strip().partition(":")
        required = label.rstrip().endswith("*")
        label = label.strip().rstrip("*").strip()
        choices = tuple(part.strip() for part in rest.split(",") if part.strip()) if not tick else ()
        kind = FieldKind.CHECKBOX if tick else FieldKind.CHOICE if choices else FieldKind.TEXT
        name = re.sub(r"[^a-z0-9]+", "_", label.lower()).strip("_")[:30]
        name = name if FIELD_NAME.match(name) else f"field_{number}"
        fields.append(EventField(name, label, kind, required, choices))
    return tuple(fields)


def render_fields(fields: Iterable[EventField]) -> str:
    """Return what :func:`parse_fields` reads."""
    lines = []
    for field in fields:
        line = f"{'[] ' if field.kind is FieldKind.CHECKBOX else ''}{field.label}{'*' if field.required else ''}"
        lines.append(f"{line}: {', '.join(field.choices)}" if field.choices else line)
    return "\n".join(lines)
