"""Work: the home page, apps and their forms, sessions, what is shared, and the feed that moves all of these."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import Form, Request
from fastapi.responses import HTMLResponse, Response

from portico.accounts import Permission, may, require
from portico.errors import Conflict, Invalid, NotFound, PorticoError, Unavailable
from portico.model import FieldKind, Identity, Range, Reach, Role, Session, SessionState, now
from portico.portal.context import RowId, get_context, in_thread
from portico.portal.guard import render_csp
from portico.portal.pages.routers import Text, Who, find_safe_path, router, see
from portico.portal.rendering import render
from portico.sessions import LOCAL, PLACEMENT_FIELDS, Choice

LIVE: Final = (SessionState.QUEUED, SessionState.STARTING, SessionState.READY)


@router.get("/")
async def show_home(request: Request, who: Who) -> Response:
    """Show apps, sessions and what colleagues share."""
    context = get_context(request)
    if who.role is Role.PARTICIPANT and (event := await context.events.claims.find_event_of(who)):
        return see(f"/e/{event.slug}/home")
    apps = await in_thread(context.sessions.catalog.list_apps)
    diagnoses = may(who, Permission.APP_DIAGNOSE)
    sessions = await context.sessions.list_sessions(who)
    logs = {}
    for session in sessions:
        if session.state is SessionState.ENDED and session.reason and session.reason.value in _WITH_LOG:
            try:
                logs[session.id] = await context.sessions.read_log(who, session.id, 6)
            except PorticoError:
                continue
    return render(
        request,
        "home.html",
        who,
        apps=[app for app in apps if not app.missing or (diagnoses and not app.hidden)],
        optional=[app for app in apps if app.missing and app.hidden] if diagnoses else [],
        faults=context.sessions.catalog.errors if diagnoses else [],
        live=[session for session in sessions if session.state in LIVE],
        ended=[session for session in sessions if session.state is SessionState.ENDED][:10],
        logs=logs,
        shared=await context.sessions.list_shared_with(who),
        capacity=await context.sessions.get_capacity(),
        notices=await context.sessions.notices.list_notices(who),
        controls=await context.sessions.control.list_mine(who),
    )


_WITH_LOG: Final = frozenset({"failed", "never-ready", "not-started", "out-of-memory"})


@router.get("/apps/{app_id}")
async def show_app(request: Request, who: Who, app_id: str, cluster: str = "") -> Response:
    """Show an app's form, for the default cluster or another."""
    return await _show_form(request, who, app_id, None, {"cluster": cluster} if cluster else {})


async def _show_form(
    request: Request, who: Identity, app_id: str, error: PorticoError | None, given: dict[str, str]
) -> Response:
    context = get_context(request)
    app = await in_thread(context.sessions.catalog.get, app_id)
    clusters = context.sessions.clusters
    cluster = next((one for one in clusters if one.name == given.get("cluster")), clusters[0])
    limits: tuple[Range, Range, Range] | None = None
    choices: list[Choice] = []
    try:
        limits = await context.sessions.get_limits(who, app, cluster.name)
        choices = await context.sessions.find_choices(who, cluster.name)
    except Unavailable as trouble:
        error = error or trouble
    return render(
        request,
        "app.html",
        who,
        app=app,
        numbers=[(*texts, range_) for texts, range_ in zip(_NUMBERS, limits, strict=True)] if limits else [],
        given=given,
        error=error,
        clusters=clusters,
        cluster=cluster,
        choices=choices,
        capacity=await context.sessions.get_capacity() if cluster.name == LOCAL else None,
    )


_NUMBERS: Final = (("cores", "Cores", "1"), ("memory_gb", "Memory (GB)", "any"), ("hours", "Hours", "any"))


@router.post("/apps/{app_id}")
async def start_app(request: Request, who: Who, app_id: str) -> Response:
    """Start an app."""
    context = get_context(request)
    form = {name: value for name, value in (await request.form()).items() if isinstance(value, str)}
    try:
        app = await in_thread(context.sessions.catalog.get, app_id)
        values = {}
        for field in app.fields:
            if field.kind is FieldKind.CHECKBOX:
                values[field.name] = "1" if f"field-{field.name}" in form else ""
            elif f"field-{field.name}" in form:
                values[field.name] = form[f"field-{field.name}"]
        session = await context.sessions.start(
            who,
            app_id,
            cores=_parse_number(form, "cores", "Cores"),
            memory_gb=_parse_number(form, "memory_gb", "Memory"),
            hours=_parse_number(form, "hours", "Hours"),
            values=values,
            title=form.get("title", ""),
            cluster=form.get("cluster", ""),
            placement={name: form[name] for name in PLACEMENT_FIELDS if name in form},
        )
    except NotFound:
        raise
    except PorticoError as error:
        return await _show_form(request, who, app_id, error, form)
    return see(f"/sessions/{session.id}")


def _parse_number(form: dict[str, str], name: str, label: str) -> float | None:
    text = form.get(name, "").strip().replace(",", ".")
    if not text:
        return None
    try:
        return float(text)
    except ValueError:
        raise Invalid(f"{label}: this is not a number.", field=name) from None


@router.get("/apps/{app_id}/icon")
async def show_icon(request: Request, who: Who, app_id: str) -> Response:
    """Return an app's icon; the policy keeps a script in it from running."""
    svg = await in_thread(get_context(request).sessions.catalog.read_icon, app_id)
    if not svg:
        raise NotFound("This app has no icon.")
    headers = {
        "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox",
        "Cache-Control": "private, max-age=3600",
    }
    return Response(svg, media_type="image/svg+xml", headers=headers)


@router.get("/sessions/{session_id}")
async def show_session(request: Request, who: Who, session_id: str) -> Response:
    """Show a session: its progress, then the desktop or terminal itself."""
    context = get_context(request)
    session = await context.sessions.get_session(who, session_id)
    own = session.user_name == who.user_name
    log = await context.sessions.read_log(who, session_id, 30) if own and session.state is SessionState.ENDED else ""
    answer = render(
        request,
        "session.html",
        who,
        session=session,
        own=own,
        log=log,
        shares=await context.sessions.list_shares(who, session_id) if own else [],
        capacity=await context.sessions.get_capacity() if session.cluster == LOCAL else None,
        cluster=next((one.title for one in context.sessions.clusters if one.name == session.cluster), session.cluster),
        clipboard=context.config.clipboard_limits,
    )
    return _with_terminal(request, answer, session)


def _with_terminal(request: Request, answer: HTMLResponse, session: Session) -> HTMLResponse:
    if session.reach is Reach.PTY:
        csp = render_csp(get_context(request).config, styles="'self' 'unsafe-inline'")
        answer.headers["Content-Security-Policy"] = csp
    return answer


@router.get("/sessions/{session_id}/log")
async def show_log(request: Request, who: Who, session_id: str) -> Response:
    """Show the end of a session's log."""
    context = get_context(request)
    session = await context.sessions.get_session(who, session_id)
    log = await context.sessions.read_log(who, session_id, 500)
    return render(request, "log.html", who, session=session, log=log)


@router.post("/sessions/{session_id}/stop")
async def stop_session(request: Request, who: Who, session_id: str, back: Text = "") -> Response:
    """Stop a session."""
    await get_context(request).sessions.stop(who, session_id)
    return see(find_safe_path(back or f"/sessions/{session_id}"))


@router.post("/sessions/{session_id}/extend")
async def extend_session(request: Request, who: Who, session_id: str, back: Text = "") -> Response:
    """Give a session more time."""
    await get_context(request).sessions.extend(who, session_id)
    return see(find_safe_path(back or f"/sessions/{session_id}"))


@router.post("/sessions/{session_id}/forget")
async def forget_session(request: Request, who: Who, session_id: str) -> Response:
    """Remove an ended session."""
    await get_context(request).sessions.forget(who, session_id)
    return see("/")


@router.post("/sessions/{session_id}/share")
async def share_session(request: Request, who: Who, session_id: str, viewer_name: Text = "") -> Response:
    """Let a colleague look."""
    try:
        await get_context(request).sessions.share(who, session_id, viewer_name.strip())
    except (Invalid, Conflict) as error:
        return await _show_shares(request, who, session_id, error)
    return see(f"/sessions/{session_id}/share")


@router.get("/sessions/{session_id}/share")
async def show_shares(request: Request, who: Who, session_id: str) -> Response:
    """Show who may look."""
    return await _show_shares(request, who, session_id)


async def _show_shares(request: Request, who: Identity, session_id: str, error: PorticoError | None = None) -> Response:
    context = get_context(request)
    session = await context.sessions.get_session(who, session_id)
    shares = await context.sessions.list_shares(who, session_id)
    minutes = context.config.control_minutes
    return render(request, "share.html", who, session=session, shares=shares, minutes=minutes, at=now(), error=error)


@router.post("/sessions/{session_id}/unshare")
async def unshare_session(request: Request, who: Who, session_id: str, share_id: Annotated[RowId, Form()]) -> Response:
    """Take a share back."""
    await get_context(request).sessions.unshare(who, session_id, share_id)
    return see(f"/sessions/{session_id}/share")


@router.get("/shared/{session_id}")
async def show_shared(request: Request, who: Who, session_id: str, back: str = "/") -> Response:
    """Show a colleague's desktop or terminal; the gateway lets nothing through but looking, unless it is controlled."""
    context = get_context(request)
    viewing = await context.sessions.control.view(who, session_id)
    clipboard = context.config.clipboard_limits
    answer = render(
        request,
        "shared.html",
        who,
        viewing=viewing,
        session=viewing.session,
        clipboard=clipboard,
        minutes=context.config.control_minutes,
        back=find_safe_path(back),
    )
    return _with_terminal(request, answer, viewing.session)


@router.get("/notices")
async def show_notices(request: Request, who: Who) -> Response:
    """Show what one is told of one's sessions, and asked; every page fetches it."""
    sessions = get_context(request).sessions
    notices, controls = await sessions.notices.list_notices(who), await sessions.control.list_mine(who)
    return render(request, "notices.html", who, notices=notices, controls=controls)


@router.post("/notices/{notice_id}/forget")
async def forget_notice(request: Request, who: Who, notice_id: RowId, back: Text = "/") -> Response:
    """Remove a notice."""
    await get_context(request).sessions.notices.forget(who, notice_id)
    return see(find_safe_path(back))


@router.get("/feed")
async def stream_feed(request: Request, who: Who, everyone: bool = False) -> Response:
    """Tell a page that something has changed (server-sent events); the page then looks again."""
    context = get_context(request)
    if everyone:
        require(who, Permission.SESSION_LIST)
    return context.feeds.answer(
        context.sessions.changes, who, everyone, lambda: in_thread(context.accounts.check_sign_in, who.sign_in_id)
    )
