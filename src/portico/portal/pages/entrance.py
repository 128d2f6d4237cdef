"""Ways in: signing in and out, the first password, and the way from the portal into an app's own origin."""

from __future__ import annotations

from fastapi import Request
from fastapi.responses import JSONResponse, Response

from portico.errors import Invalid, PorticoError
from portico.portal.context import get_address, get_context, identify_browser, in_thread
from portico.portal.guard import ENTRY, render_csp
from portico.portal.pages.routers import Text, Who, find_safe_path, public, router, see
from portico.portal.rendering import render
from portico.sessions.doors import find_cookie_name


@public.get("/sign-in")
async def show_sign_in(request: Request, next: str = "/") -> Response:
    """Show the form."""
    try:
        await identify_browser(request)
    except PorticoError:
        return render(request, "sign_in.html", None, next=find_safe_path(next))
    return see(find_safe_path(next))


@public.post("/sign-in")
async def sign_in(request: Request, name: Text = "", password: Text = "", next: Text = "/") -> Response:
    """Sign in."""
    context = get_context(request)
    try:
        browser = request.headers.get("user-agent", "")[:200]
        _, token = await in_thread(context.accounts.sign_in, name.strip(), password, get_address(request), browser)
    except PorticoError as error:
        context.metrics.sign_ins.labels(error.code).inc()
        return render(request, "sign_in.html", None, error=error, name=name[:64], next=find_safe_path(next))
    context.metrics.sign_ins.labels("ok").inc()
    answer = see(find_safe_path(next))
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
    answer = see("/sign-in")
    answer.delete_cookie(find_cookie_name(context.config), httponly=True, secure=context.config.scheme == "https")
    return answer


@public.get("/enrol")
async def show_enrol(request: Request) -> Response:
    """Show the form for a password; the one-time code is in the fragment, which only the browser sees."""
    return render(request, "enrol.html", None, min_length=get_context(request).config.password_min_length)


@public.post("/enrol/name")
async def describe_code(request: Request, code: Text = "") -> Response:
    """Say whose one-time code it is, so that its page can greet them, and a password manager learns the name."""
    user = await in_thread(get_context(request).accounts.describe_code, code.strip())
    return JSONResponse({"name": user.name})


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
    answer.headers["Content-Security-Policy"] = render_csp(context.config, form_action=origin)
    answer.headers["Referrer-Policy"] = "strict-origin"  # so that the apps' origin sees whose form it is
    return answer


@public.post(ENTRY)
async def enter(request: Request, ticket: Text = "") -> Response:
    """Turn a ticket into the app's cookie, on the app's origin."""
    context = get_context(request)
    session_id, name, value = await context.doors.redeem_ticket(ticket, request.headers.get("host", "").lower())
    answer = see(f"/s/{session_id}/")
    answer.set_cookie(
        name,
        value,
        path=f"/s/{session_id}/",
        httponly=True,
        samesite="lax",
        secure=context.config.scheme == "https",
    )
    return answer
