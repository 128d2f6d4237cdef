"""People: one's own account, and administration: users, what runs, who is signed in, the audit log."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Form, Query, Request
from fastapi.responses import HTMLResponse, Response

from portico.accounts import Permission, require
from portico.errors import Conflict, Invalid, PorticoError
from portico.model import Identity, Role, SessionState, now
from portico.portal.api import remove_with_sessions, render_link
from portico.portal.context import RowId, get_context, in_thread
from portico.portal.pages.routers import Text, Who, find_safe_path, router, see
from portico.portal.pages.work import LIVE
from portico.portal.rendering import render
from portico.ssh.keys import KIND_NAMES


async def render_account(request: Request, who: Identity, **values: Any) -> HTMLResponse:
    """Return the account page; with ``about="keys"``, an error stands beside the keys."""
    context = get_context(request)
    accounts = context.accounts
    return render(
        request,
        "account.html",
        who,
        sign_ins=await in_thread(accounts.list_sign_ins, who),
        tokens=await in_thread(accounts.list_api_tokens, who),
        ssh_certificates=await in_thread(context.ssh_certificates.list_certificates, who),
        keys=await in_thread(context.ssh_keys.list_keys, who),
        key_kinds=KIND_NAMES,
        at=now(),
        min_length=context.config.password_min_length,
        **{"about": "", **values},
    )


@router.get("/account")
async def show_account(request: Request, who: Who) -> Response:
    """Show password, sign-ins and tokens."""
    return await render_account(request, who)


@router.post("/account/password")
async def change_password(request: Request, who: Who, old: Text = "", new: Text = "", again: Text = "") -> Response:
    """Change one's own password."""
    try:
        if new != again:
            raise Invalid("The two new passwords are not the same.", field="again")
        await in_thread(get_context(request).accounts.change_password, who, old, new)
    except PorticoError as error:
        return await render_account(request, who, error=error)
    return await render_account(request, who, done="Your password is changed. Your other sign-ins have ended.")


@router.post("/account/tokens")
async def make_token(request: Request, who: Who, label: Text = "", days: Annotated[int, Form()] = 90) -> Response:
    """Make an API token."""
    try:
        token = await in_thread(get_context(request).accounts.make_api_token, who, label, days)
    except PorticoError as error:
        return await render_account(request, who, error=error)
    return await render_account(request, who, token=token)


@router.post("/account/tokens/{token_id}/revoke")
async def revoke_token(request: Request, who: Who, token_id: RowId) -> Response:
    """End an API token."""
    await in_thread(get_context(request).accounts.revoke_api_token, who, token_id)
    return see("/account")


@router.post("/sign-ins/{sign_in_id}/revoke")
async def revoke_sign_in(request: Request, who: Who, sign_in_id: RowId, back: Text = "/account") -> Response:
    """End a sign-in."""
    await in_thread(get_context(request).accounts.revoke_sign_in, who, sign_in_id)
    return see(find_safe_path(back))


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
    except (Invalid, Conflict) as error:
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
    return see("/admin/users")


@router.post("/admin/users/{name}/lock")
async def lock_user(request: Request, who: Who, name: str) -> Response:
    """Lock a user."""
    await get_context(request).accounts.lock_user(who, name)
    return see("/admin/users")


@router.post("/admin/users/{name}/unlock")
async def unlock_user(request: Request, who: Who, name: str) -> Response:
    """Unlock a user."""
    await get_context(request).accounts.unlock_user(who, name)
    return see("/admin/users")


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
    return see("/admin/users")


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
    request: Request, who: Who, before: Annotated[RowId | None, Query()] = None, actor: str = ""
) -> Response:
    """Show the audit log."""
    entries = await in_thread(get_context(request).accounts.read_audit, who, 100, before, actor[:32])
    older = f"/admin/audit?before={entries[-1].id}&actor={quote(actor)}" if len(entries) == 100 else ""
    return render(request, "admin_audit.html", who, entries=entries, older=older, actor=actor)
