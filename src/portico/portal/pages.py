"""The pages: server-rendered, usable without scripts but for terminal and desktop, which are scripts by nature."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final
from urllib.parse import quote, urlsplit

from fastapi import APIRouter, Depends, Form, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse

from portico.accounts import Permission, may, require
from portico.errors import Invalid, NotFound, PorticoError
from portico.model import FieldKind, Identity, Role, SessionState
from portico.portal.api import remove_with_sessions, render_link
from portico.portal.context import get_address, get_context, identify_browser, in_thread
from portico.portal.guard import ENTRY, render_connect_csp
from portico.portal.rendering import render
from portico.sessions.doors import find_cookie_name

Who = Annotated[Identity, Depends(identify_browser)]
Text = Annotated[str, Form(max_length=1024)]

public = APIRouter(include_in_schema=False)
router = APIRouter(include_in_schema=False)

HEARTBEAT_S: Final = 15.0
LIVE: Final = (SessionState.QUEUED, SessionState.STARTING, SessionState.READY)


def find_safe_path(wanted: str) -> str:
    """Return ``wanted`` if it is a path on this portal as browsers read it, else the home page.

    Browsers take a backslash for a slash, and drop tabs and line breaks before they look (WHATWG URL, 4.4).
    """
    if not wanted.startswith("/") or wanted[1:2] in ("/", "\\") or any(ord(c) <= 32 or c == "\\" for c in wanted):
        return "/"
    parts = urlsplit(wanted)
    return wanted if not parts.scheme and not parts.netloc and len(wanted) < 500 else "/"


def _see(path: str) -> RedirectResponse:
    return RedirectResponse(path, status_code=303)


# signing in


@public.get("/sign-in")
async def show_sign_in(request: Request, next: str = "/") -> Response:
    """Show the form."""
    try:
        await identify_browser(request)
    except PorticoError:
        return render(request, "sign_in.html", None, next=find_safe_path(next))
    return _see(find_safe_path(next))


@public.post("/sign-in")
async def sign_in(request: Request, name: Text = "", password: Text = "", next: Text = "/") -> Response:
    """Sign in."""
    context = get_context(request)
    try:
        browser = request.headers.get("user-agent", "")[:200]
        _, token = await in_thread(context.accounts.sign_in, name.strip(), password, get_address(request), browser)
    except PorticoError as error:
        return render(request, "sign_in.html", None, error=error, name=name[:64], next=find_safe_path(next))
    answer = _see(find_safe_path(next))
    answer.set_cookie(
        find_cookie_name(context.config),
        token,
        max_age=int(context.config.sign_in_hours * 3600),
        httponly=True,
        samesite="lax",
        secure=context.config.scheme == "https",
    )
    return answer


@router.post("/sign-out")
async def sign_out(request: Request, who: Who) -> Response:
    """Sign out; streams of this browser end."""
    context = get_context(request)
    await in_thread(context.accounts.sign_out, who)
    answer = _see("/sign-in")
    answer.delete_cookie(find_cookie_name(context.config), httponly=True, secure=context.config.scheme == "https")
    return answer


@public.get("/enrol")
async def show_enrol(request: Request) -> Response:
    """Show the form for a password; the one-time code is in the fragment, which only the browser sees."""
    return render(request, "enrol.html", None, min_length=get_context(request).config.password_min_length)


@public.post("/enrol")
async def enrol(request: Request, code: Text = "", password: Text = "", again: Text = "") -> Response:
    """Set a password with a one-time code."""
    context = get_context(request)
    try:
        if password != again:
            raise Invalid("The two passwords are not the same.", field="again")
        user = await in_thread(context.accounts.enrol, code.strip(), password, get_address(request))
    except PorticoError as error:
        return render(
            request, "enrol.html", None, error=error, code=code[:100], min_length=context.config.password_min_length
        )
    return await sign_in(request, user.name, password, "/")


# work


@router.get("/")
async def show_home(request: Request, who: Who) -> Response:
    """Show apps, sessions and what colleagues share."""
    context = get_context(request)
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
    )


_WITH_LOG: Final = frozenset({"failed", "never-ready", "not-started", "out-of-memory"})


@router.get("/apps/{app_id}")
async def show_app(request: Request, who: Who, app_id: str) -> Response:
    """Show an app's form."""
    return await _show_form(request, who, app_id, None, {})


async def _show_form(
    request: Request, who: Identity, app_id: str, error: PorticoError | None, given: dict[str, str]
) -> Response:
    context = get_context(request)
    app = await in_thread(context.sessions.catalog.get, app_id)
    cores, memory_gb, hours = await context.sessions.get_limits(app)
    return render(
        request,
        "app.html",
        who,
        app=app,
        numbers=[
            ("cores", "Cores", cores, "1"),
            ("memory_gb", "Memory (GB)", memory_gb, "any"),
            ("hours", "Hours", hours, "any"),
        ],
        given=given,
        error=error,
        capacity=await context.sessions.get_capacity(),
    )


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
        )
    except NotFound:
        raise
    except PorticoError as error:
        return await _show_form(request, who, app_id, error, form)
    return _see(f"/sessions/{session.id}")


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
    return render(
        request,
        "session.html",
        who,
        session=session,
        own=own,
        log=log,
        shares=await context.sessions.list_shares(who, session_id) if own else [],
        capacity=await context.sessions.get_capacity(),
    )


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
    return _see(find_safe_path(back or f"/sessions/{session_id}"))


@router.post("/sessions/{session_id}/extend")
async def extend_session(request: Request, who: Who, session_id: str, back: Text = "") -> Response:
    """Give a session more time."""
    await get_context(request).sessions.extend(who, session_id)
    return _see(find_safe_path(back or f"/sessions/{session_id}"))


@router.post("/sessions/{session_id}/forget")
async def forget_session(request: Request, who: Who, session_id: str) -> Response:
    """Remove an ended session."""
    await get_context(request).sessions.forget(who, session_id)
    return _see("/")


@router.post("/sessions/{session_id}/share")
async def share_session(request: Request, who: Who, session_id: str, viewer_name: Text = "") -> Response:
    """Let a colleague look."""
    context = get_context(request)
    try:
        await context.sessions.share(who, session_id, viewer_name.strip())
    except Invalid as error:
        session = await context.sessions.get_session(who, session_id)
        shares = await context.sessions.list_shares(who, session_id)
        return render(request, "share.html", who, session=session, shares=shares, error=error)
    return _see(f"/sessions/{session_id}/share")


@router.get("/sessions/{session_id}/share")
async def show_shares(request: Request, who: Who, session_id: str) -> Response:
    """Show who may look."""
    context = get_context(request)
    session = await context.sessions.get_session(who, session_id)
    shares = await context.sessions.list_shares(who, session_id)
    return render(request, "share.html", who, session=session, shares=shares)


@router.post("/sessions/{session_id}/unshare")
async def unshare_session(request: Request, who: Who, session_id: str, share_id: Annotated[int, Form()]) -> Response:
    """Take a share back."""
    await get_context(request).sessions.unshare(who, session_id, share_id)
    return _see(f"/sessions/{session_id}/share")


@router.get("/shared/{session_id}")
async def show_shared(request: Request, who: Who, session_id: str) -> Response:
    """Show a colleague's desktop or terminal; the gateway lets nothing through but looking."""
    share, session = await get_context(request).sessions.get_shared(who, session_id)
    return render(request, "shared.html", who, share=share, session=session)


@router.post("/sessions/{session_id}/connect")
async def connect(request: Request, who: Who, session_id: str) -> Response:
    """Give a page whose form carries a one-time ticket to the app's own origin: in a body, so in no URL or log."""
    context = get_context(request)
    ticket = await context.doors.make_ticket(who, session_id)
    origin = context.config.get_apps_origin(session_id)
    host = request.headers.get("host", "")
    name = host.rpartition(":")[0] or host
    if not context.config.public_url and not context.config.apps_domain and name in ("127.0.0.1", "[::1]"):
        origin = f"{context.config.scheme}://{name}:{context.config.apps_port}"
    answer = render(request, "connect.html", who, action=f"{origin}{ENTRY}", ticket=ticket)
    answer.headers["Content-Security-Policy"] = render_connect_csp(context.config, origin)
    return answer


@public.post(ENTRY)
async def enter(request: Request, ticket: Text = "") -> Response:
    """Turn a ticket into the app's cookie, on the app's origin."""
    context = get_context(request)
    session_id, name, value = await context.doors.redeem_ticket(ticket, request.headers.get("host", "").lower())
    answer = _see(f"/s/{session_id}/")
    answer.set_cookie(
        name,
        value,
        path=f"/s/{session_id}/",
        httponly=True,
        samesite="lax",
        secure=context.config.scheme == "https",
    )
    return answer


@router.get("/events")
async def stream_events(request: Request, who: Who, everyone: bool = False) -> Response:
    """Tell a page that something has changed (server-sent events); the page then looks again."""
    context = get_context(request)
    if everyone:
        require(who, Permission.SESSION_LIST)

    async def listen() -> AsyncIterator[bytes]:
        with context.sessions.changes.subscribe(None if everyone else who.user_name) as news:
            yield b"retry: 1000\n\nevent: hello\ndata: 1\n\n"
            while True:
                try:
                    await asyncio.wait_for(news.wait(), HEARTBEAT_S)
                except TimeoutError:
                    try:
                        await in_thread(context.accounts.check_sign_in, who.sign_in_id)
                    except PorticoError:
                        yield b"event: end\ndata: 1\n\n"
                        return
                    yield b": still here\n\n"
                    continue
                news.clear()
                yield b"event: change\ndata: 1\n\n"
                await asyncio.sleep(0.1)  # a burst of changes is one piece of news

    return StreamingResponse(listen(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


# one's own account


async def _show_account(request: Request, who: Identity, **values: Any) -> HTMLResponse:
    accounts = get_context(request).accounts
    return render(
        request,
        "account.html",
        who,
        sign_ins=await in_thread(accounts.list_sign_ins, who),
        tokens=await in_thread(accounts.list_api_tokens, who),
        min_length=get_context(request).config.password_min_length,
        **values,
    )


@router.get("/account")
async def show_account(request: Request, who: Who) -> Response:
    """Show password, sign-ins and tokens."""
    return await _show_account(request, who)


@router.post("/account/password")
async def change_password(request: Request, who: Who, old: Text = "", new: Text = "", again: Text = "") -> Response:
    """Change one's own password."""
    try:
        if new != again:
            raise Invalid("The two new passwords are not the same.", field="again")
        await in_thread(get_context(request).accounts.change_password, who, old, new)
    except PorticoError as error:
        return await _show_account(request, who, error=error)
    return await _show_account(request, who, done="Your password is changed. Your other sign-ins have ended.")


@router.post("/account/tokens")
async def make_token(request: Request, who: Who, label: Text = "", days: Annotated[int, Form()] = 90) -> Response:
    """Make an API token."""
    try:
        token = await in_thread(get_context(request).accounts.make_api_token, who, label, days)
    except PorticoError as error:
        return await _show_account(request, who, error=error)
    return await _show_account(request, who, token=token)


@router.post("/account/tokens/{token_id}/revoke")
async def revoke_token(request: Request, who: Who, token_id: int) -> Response:
    """End an API token."""
    await in_thread(get_context(request).accounts.revoke_api_token, who, token_id)
    return _see("/account")


@router.post("/sign-ins/{sign_in_id}/revoke")
async def revoke_sign_in(request: Request, who: Who, sign_in_id: int, back: Text = "/account") -> Response:
    """End a sign-in."""
    await in_thread(get_context(request).accounts.revoke_sign_in, who, sign_in_id)
    return _see(find_safe_path(back))


# administration


async def _show_users(request: Request, who: Identity, **values: Any) -> HTMLResponse:
    users = await in_thread(get_context(request).accounts.list_users, who)
    return render(request, "admin_users.html", who, users=users, **values)


@router.get("/admin/users")
async def show_users(request: Request, who: Who) -> Response:
    """Show users."""
    return await _show_users(request, who)


@router.post("/admin/users")
async def add_user(request: Request, who: Who, name: Text = "", role: Annotated[Role, Form()] = Role.USER) -> Response:
    """Add a user, and show the link that is told only now."""
    context = get_context(request)
    try:
        code = await in_thread(context.accounts.add_user, who, name.strip(), role)
    except Invalid as error:
        return await _show_users(request, who, error=error, name=name[:64])
    return await _show_users(request, who, link=render_link(context.config.portal_origin, code), link_name=name.strip())


@router.post("/admin/users/{name}/link")
async def renew_link(request: Request, who: Who, name: str) -> Response:
    """Make a new one-time link."""
    context = get_context(request)
    code = await in_thread(context.accounts.renew_code, who, name)
    return await _show_users(request, who, link=render_link(context.config.portal_origin, code), link_name=name)


@router.post("/admin/users/{name}/role")
async def set_role(request: Request, who: Who, name: str, role: Annotated[Role, Form()]) -> Response:
    """Change a role."""
    await in_thread(get_context(request).accounts.set_role, who, name, role)
    return _see("/admin/users")


@router.post("/admin/users/{name}/lock")
async def lock_user(request: Request, who: Who, name: str) -> Response:
    """Lock a user."""
    await get_context(request).accounts.lock_user(who, name)
    return _see("/admin/users")


@router.post("/admin/users/{name}/unlock")
async def unlock_user(request: Request, who: Who, name: str) -> Response:
    """Unlock a user."""
    await get_context(request).accounts.unlock_user(who, name)
    return _see("/admin/users")


@router.get("/admin/users/{name}/remove")
async def show_remove(request: Request, who: Who, name: str) -> Response:
    """Ask whether to remove a user, and what goes with them."""
    require(who, Permission.USER_REMOVE)
    context = get_context(request)
    user = await in_thread(context.accounts.get_user, name)
    sessions = [s for s in await context.sessions.list_sessions(who, True) if s.user_name == name and s.state in LIVE]
    return render(request, "admin_remove.html", who, user=user, sessions=sessions)


@router.post("/admin/users/{name}/remove")
async def remove_user(request: Request, who: Who, name: str, remove_home: Text = "") -> Response:
    """Remove a user."""
    await remove_with_sessions(request, who, name, remove_home == "1")
    return _see("/admin/users")


@router.get("/admin/sessions")
async def show_sessions(request: Request, who: Who) -> Response:
    """Show what runs and who is signed in."""
    context = get_context(request)
    sessions = await context.sessions.list_sessions(who, True)
    return render(
        request,
        "admin_sessions.html",
        who,
        live=[session for session in sessions if session.state in LIVE],
        ended=[session for session in sessions if session.state is SessionState.ENDED][:30],
        sign_ins=await in_thread(context.accounts.list_sign_ins, who, True),
        capacity=await context.sessions.get_capacity(),
    )


@router.get("/admin/audit")
async def show_audit(
    request: Request, who: Who, before: Annotated[int | None, Query()] = None, actor: str = ""
) -> Response:
    """Show the audit log."""
    entries = await in_thread(get_context(request).accounts.read_audit, who, 100, before, actor[:32])
    older = f"/admin/audit?before={entries[-1].id}&actor={quote(actor)}" if len(entries) == 100 else ""
    return render(request, "admin_audit.html", who, entries=entries, older=older, actor=actor)
