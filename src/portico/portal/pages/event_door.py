"""Events for participants: landing page, registration, sign-in, card, their home, files. All work without scripts."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.datastructures import UploadFile

from portico.errors import Conflict, Invalid, NotFound, PorticoError, TooMany
from portico.events.claims import Claim
from portico.events.seat_secrets import TOKEN
from portico.events.sheet import render_link, render_qr
from portico.model import Event, Identity, Role
from portico.portal.context import get_address, get_context, identify_browser
from portico.portal.pages.routers import Text, Who, public, router, see
from portico.portal.rendering import render
from portico.sessions.doors import find_cookie_name, parse_cookies

FORM_COOKIE: Final = "portico-form"
FORM_COOKIE_S: Final = 7 * 24 * 3600
FILES_AT_ONCE: Final = 20


async def _find_event(request: Request, slug: str) -> Event:
    """Return an event that whoever asks may see: a draft only its organiser."""
    events = get_context(request).events
    try:
        return await events.claims.get_event(slug)
    except NotFound:
        who = await _find_who(request)
        if who is None:
            raise
        return await events.get_event(who, slug)


async def _find_who(request: Request) -> Identity | None:
    try:
        return await identify_browser(request)
    except PorticoError:
        return None


async def _find_seat(request: Request, who: Identity | None, event: Event) -> str:
    if who is None or who.role is not Role.PARTICIPANT:
        return ""
    own = await get_context(request).events.claims.find_event_of(who)
    return who.user_name if own and own.id == event.id else ""


def _find_token(request: Request) -> str:
    token = parse_cookies(request.headers.get("cookie", "")).get(FORM_COOKIE, "")
    return token if TOKEN.match(token) else ""


def _sign_in(request: Request, answer: Response, claim: Claim) -> Response:
    config = get_context(request).config
    if claim.cookie:
        answer.set_cookie(
            find_cookie_name(config),
            claim.cookie,
            max_age=int(config.sign_in_hours * 3600),
            httponly=True,
            samesite="lax",
            secure=config.scheme == "https",
        )
    return answer


@public.get("/e/{slug}")
async def show_landing(request: Request, slug: str) -> Response:
    """Show an event to whoever has its link."""
    event = await _find_event(request, slug)
    who = await _find_who(request)
    seat = await _find_seat(request, who, event)
    has_logo = await get_context(request).events.read_logo(event) is not None
    return render(request, "event_landing.html", who, event=event, seat=seat, has_logo=has_logo)


@public.get("/e/{slug}/theme.css")
async def show_theme(request: Request, slug: str) -> Response:
    """Return an event's two colours as a stylesheet: no page has styles of its own (Content-Security-Policy)."""
    settings = (await _find_event(request, slug)).settings
    first, second = settings.colour, settings.second_colour
    text = (
        f":root {{ --event: {first}; --on-event: {find_ink(first)}; "
        f"--event-second: {second}; --on-event-second: {find_ink(second)}; }}\n"
    )
    return Response(text, media_type="text/css")


def find_ink(colour: str) -> str:
    """Return black or white, whichever reads better on a colour ``#rrggbb`` (WCAG 2.2, relative luminance)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return "#000000" if (light + 0.05) / 0.05 > 1.05 / (light + 0.05) else "#ffffff"


@public.get("/e/{slug}/logo")
async def show_logo(request: Request, slug: str) -> Response:
    """Return an event's logo, of the type that it was found to be; a browser guesses none (nosniff)."""
    logo = await get_context(request).events.read_logo(await _find_event(request, slug))
    if logo is None:
        raise NotFound("This event has no logo.")
    headers = {"Content-Security-Policy": "default-src 'none'; sandbox", "Cache-Control": "private, max-age=60"}
    return Response(logo[1], media_type=logo[0], headers=headers)


# registration


@public.get("/e/{slug}/register")
async def show_registration(request: Request, slug: str) -> Response:
    """Show the form, or what it has led to already."""
    context = get_context(request)
    event, who, token = await context.events.claims.get_event(slug), await _find_who(request), _find_token(request)
    seat = await _find_seat(request, who, event)
    if seat and (await context.events.desk.view(_known(who), slug)).registered:
        return see(f"/e/{slug}/card")
    claim = await context.events.claims.find_claim(slug, token) if token and not seat else None
    if claim:
        return _show_waiting(request, event, claim, token)
    return _show_form(request, event, who, seat, token)


def _known(who: Identity | None) -> Identity:
    assert who is not None
    return who


def _show_form(
    request: Request,
    event: Event,
    who: Identity | None,
    seat: str,
    token: str,
    given: Mapping[str, str] | None = None,
    error: PorticoError | None = None,
) -> Response:
    token = token or secrets.token_urlsafe(32)
    answer = render(
        request, "event_register.html", who, event=event, seat=seat, token=token, given=given or {}, error=error
    )
    return _keep_token(request, answer, event.slug, token)


def _keep_token(request: Request, answer: Response, slug: str, token: str) -> Response:
    """Keep the form token in the browser: another tab has the same form then, and the card can be shown again."""
    secure = get_context(request).config.scheme == "https"
    answer.set_cookie(
        FORM_COOKIE, token, max_age=FORM_COOKIE_S, path=f"/e/{slug}", httponly=True, samesite="lax", secure=secure
    )
    return answer


def _show_waiting(request: Request, event: Event, claim: Claim, token: str) -> Response:
    return render(request, "event_waiting.html", None, event=event, claim=claim, token=token)


@public.post("/e/{slug}/register")
async def register(request: Request, slug: str) -> Response:
    """Take a registration: a seat, or a place in the waiting list."""
    context = get_context(request)
    event = await context.events.claims.get_event(slug)
    form = {name: value for name, value in (await request.form()).items() if isinstance(value, str)}
    who, token = await _find_who(request), form.get("token", "")
    answers = {name.removeprefix("field-"): value for name, value in form.items() if name.startswith("field-")}
    accepted = {name for number, (name, _) in enumerate(event.settings.texts) if f"accept-{number}" in form}
    browser = request.headers.get("user-agent", "")[:200]
    try:
        claim = await context.events.claims.register(
            slug, token, answers, accepted, get_address(request), browser, who, form.get("code", "")
        )
    except (Invalid, TooMany) as error:
        seat = await _find_seat(request, who, event)
        return _show_form(request, event, who, seat, token if TOKEN.match(token) else "", form, error)
    if not claim.seat_name:
        return _keep_token(request, _show_waiting(request, event, claim, token), slug, token)
    answer = _keep_token(request, see(f"/e/{slug}/card"), slug, token) if claim.cookie else see(f"/e/{slug}/card")
    return _sign_in(request, answer, claim)


# signing in


@public.get("/e/{slug}/sign-in")
async def show_seat_sign_in(request: Request, slug: str) -> Response:
    """Show the form for name and secret; a card's link has both in its fragment, which only the browser sees."""
    event = await get_context(request).events.claims.get_event(slug)
    return render(request, "event_sign_in.html", None, event=event)


@public.post("/e/{slug}/sign-in")
async def sign_in_to_seat(request: Request, slug: str, name: Text = "", secret: Text = "") -> Response:
    """Sign a participant in."""
    context = get_context(request)
    event = await context.events.claims.get_event(slug)
    browser = request.headers.get("user-agent", "")[:200]
    try:
        claim = await context.events.claims.sign_in(slug, name, secret, get_address(request), browser)
    except Conflict:
        raise
    except PorticoError as error:
        context.metrics.sign_ins.labels(error.code).inc()
        return render(request, "event_sign_in.html", None, event=event, error=error, name=name[:64])
    context.metrics.sign_ins.labels("ok").inc()
    return _sign_in(request, see(f"/e/{slug}/home"), claim)


# the seat


@router.get("/e/{slug}/card")
async def show_card(request: Request, who: Who, slug: str) -> Response:
    """Show what a participant keeps."""
    context = get_context(request)
    card = await context.events.claims.get_card(who, slug, _find_token(request))
    origin = context.config.portal_origin
    link = render_link(origin, card.event, card.seat.name, card.secret)
    return render(
        request,
        "event_card.html",
        who,
        event=card.event,
        name=card.seat.name,
        secret=card.secret,
        link=f"{origin}/e/{slug}",
        qr=render_qr(link),
    )


@router.get("/e/{slug}/home")
async def show_seat(request: Request, who: Who, slug: str) -> Response:
    """Show what a participant can do."""
    return await _show_seat(request, who, slug)


async def _show_seat(request: Request, who: Identity, slug: str, **values: Any) -> Response:
    view = await get_context(request).events.desk.view(who, slug)
    if not view.registered and not view.closed:
        return see(f"/e/{slug}/register")
    sessions = get_context(request).sessions
    notices, controls = await sessions.notices.list_notices(who), await sessions.control.list_mine(who)
    return render(
        request, "event_home.html", who, event=view.event, view=view, notices=notices, controls=controls, **values
    )


@router.post("/e/{slug}/apps/{app_id}")
async def start_seat_app(request: Request, who: Who, slug: str, app_id: str) -> Response:
    """Start an app of the event, or go on with it."""
    session = await get_context(request).events.desk.start(who, slug, app_id)
    return see(f"/sessions/{session.id}")


@router.post("/e/{slug}/files")
async def put_files(
    request: Request, who: Who, slug: str, name: str = "", upload: str = "", offset: int = 0, last: bool = True
) -> Response:
    """Take files: a form with some, or a part of one as it is, whose name then stands in the query."""
    desk = get_context(request).events.desk
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        path = await desk.put(who, slug, name, await request.body(), upload=upload, offset=offset, last=last)
        return JSONResponse({"path": path})
    kept = []
    async with request.form(max_files=FILES_AT_ONCE, max_fields=FILES_AT_ONCE) as form:
        try:
            for file in form.getlist("file"):
                if isinstance(file, UploadFile) and file.filename:
                    part = secrets.token_hex(8)
                    content = await file.read()
                    kept.append(await desk.put(who, slug, file.filename, content, upload=part, offset=0, last=True))
        except PorticoError as error:
            return await _show_seat(request, who, slug, error=error)
    return await _show_seat(request, who, slug, done=f"Kept: {', '.join(kept)}." if kept else "No file was chosen.")


@router.get("/e/{slug}/archive")
async def fetch_archive(request: Request, who: Who, slug: str) -> Response:
    """Send everything in a participant's home as one archive, while it is being made."""
    pieces: AsyncIterator[bytes] = await get_context(request).events.desk.archive(who, slug)
    name = quote(f"{who.user_name}.tar.gz")
    headers = {"Content-Disposition": f"attachment; filename={name}", "X-Accel-Buffering": "no"}
    return StreamingResponse(pieces, media_type="application/gzip", headers=headers)
