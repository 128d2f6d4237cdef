"""The REST API: the verbs of the pages, as JSON. Decides nothing itself: accounts and sessions do.

Shapes are pydantic models here, values of portico.model inside.
"""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from portico.accounts import Permission, may, require
from portico.model import App, Identity, Role, Session, Share, SignIn, now
from portico.portal.context import Context, RowId, get_context, identify, in_thread
from portico.portal.metrics import CONTENT_TYPE, Figures
from portico.sessions.reasons import describe_end

Who = Annotated[Identity, Depends(identify)]

public = APIRouter(prefix="/api/v1")
router = APIRouter(prefix="/api/v1", dependencies=[Depends(identify)])


class Shape(BaseModel):
    """A shape of the API; unknown fields are refused, so that a typing error does not pass in silence."""

    model_config = ConfigDict(extra="forbid")


class SessionRequest(Shape):
    """What to start; what is left out has the app's default."""

    app_id: str = Field(max_length=64)
    cores: float | None = None
    memory_gb: float | None = None
    hours: float | None = None
    values: dict[str, str] = Field(default_factory=dict, max_length=64)
    title: str = Field("", max_length=100)
    cluster: str = Field("", max_length=32)
    placement: dict[str, str] = Field(default_factory=dict, max_length=8)


class UserRequest(Shape):
    """A new user."""

    name: str = Field(max_length=64)
    role: Role = Role.USER


class RoleRequest(Shape):
    """A change of role."""

    role: Role


class ShareRequest(Shape):
    """Who may look."""

    viewer_name: str = Field(max_length=64)
    control: bool = False
    """Whether they may type and point as well, for a while."""


class AnswerRequest(Shape):
    """Yes or no to who asks for control."""

    agree: bool


class TokenRequest(Shape):
    """A new API token."""

    label: str = Field(max_length=100)
    days: int = 90


class PasswordRequest(Shape):
    """A change of one's own password."""

    old: str = Field(max_length=1024)
    new: str = Field(max_length=1024)


def render_session(session: Session) -> dict[str, Any]:
    """Return a session as the API tells it; times in ISO 8601, UTC."""
    sentence, hint = describe_end(session)
    left = session.get_time_left(now())
    return {
        "id": session.id,
        "user_name": session.user_name,
        "app_id": session.app_id,
        "title": session.title,
        "cluster": session.cluster,
        "placement": session.placement,
        "node_name": session.node_name,
        "position": session.position,
        "expected_start": session.expected_start,
        "restarts": session.restarts,
        "put_back": session.put_back,
        "reach": session.reach,
        "cores": session.cores,
        "memory_bytes": session.memory_bytes,
        "hours": session.hours,
        "values": session.values,
        "state": session.state,
        "waiting_for": session.waiting_for,
        "reason": session.reason,
        "detail": session.detail,
        "ended_because": sentence,
        "hint": hint,
        "created": session.created,
        "started": session.started,
        "ready": session.ready,
        "ends": session.ends,
        "ended": session.ended,
        "time_left_s": int(left.total_seconds()) if left is not None else None,
        "page": f"/sessions/{session.id}",
    }


def _render_share(share: Share) -> dict[str, Any]:
    return {
        "id": share.id,
        "session_id": share.session_id,
        "owner_name": share.owner_name,
        "viewer_name": share.viewer_name,
        "created": share.created,
        "control_until": share.control_until,
    }


def _render_sign_in(sign_in: SignIn, who: Identity) -> dict[str, Any]:
    return {
        "id": sign_in.id,
        "user_name": sign_in.user_name,
        "created": sign_in.created,
        "last_seen": sign_in.last_seen,
        "expires": sign_in.expires,
        "address": sign_in.address,
        "browser": sign_in.browser,
        "this": sign_in.id == who.sign_in_id,
    }


async def _render_app(request: Request, who: Identity, app: App, cluster: str = "") -> dict[str, Any]:
    sessions = get_context(request).sessions
    cores, memory_gb, hours = await sessions.get_limits(who, app, cluster)
    choices = await sessions.find_choices(who, cluster)

    def render(limits: Any) -> dict[str, float]:
        return {"default": limits.default, "minimum": limits.minimum, "maximum": limits.maximum}

    fields = [
        {
            "name": field.name,
            "label": field.label,
            "kind": field.kind,
            "default": field.default,
            "choices": list(field.choices),
            "help": field.help,
        }
        for field in app.fields
    ]
    return {
        "id": app.id,
        "name": app.name,
        "summary": app.summary,
        "reach": app.reach,
        "missing": app.missing,
        "install_hint": app.install_hint,
        "cores": render(cores),
        "memory_gb": render(memory_gb),
        "hours": render(hours),
        "fields": fields,
        "placements": [
            {
                "partition": one.partition,
                "accounts": one.accounts,
                "qos": one.qos,
                "reservations": one.reservations,
                "closed": one.closed,
            }
            for one in choices
        ],
    }


@public.get("/health")
async def read_health() -> dict[str, str]:
    """Say that the portal answers."""
    return {"status": "ok"}


@router.get("/me")
async def read_me(request: Request, who: Who) -> dict[str, Any]:
    """Say who is asking, and what they may."""
    return {
        "name": who.user_name,
        "role": who.role,
        "via": who.via,
        "permissions": sorted(permission for permission in Permission if may(who, permission)),
        "portal_origin": get_context(request).config.portal_origin,
    }


@router.get("/apps")
async def list_apps(request: Request, who: Who) -> list[dict[str, Any]]:
    """List apps; one that is not installed is listed for administrators only."""
    sessions = get_context(request).sessions
    diagnoses = may(who, Permission.APP_DIAGNOSE)
    apps = await in_thread(sessions.catalog.list_apps)
    return [await _render_app(request, who, app) for app in apps if diagnoses or not app.missing]


@router.get("/apps/{app_id}")
async def read_app(request: Request, who: Who, app_id: str, cluster: str = "") -> dict[str, Any]:
    """Describe an app, with what its form offers on a cluster, the default one where none is named."""
    app = await in_thread(get_context(request).sessions.catalog.get, app_id)
    return await _render_app(request, who, app, cluster)


@router.get("/catalog/errors")
async def list_catalog_errors(request: Request, who: Who) -> list[dict[str, Any]]:
    """List catalog files that can't be used, and why."""
    require(who, Permission.APP_DIAGNOSE)
    return [{"path": path, **error.to_wire()} for path, error in get_context(request).sessions.catalog.errors]


@router.get("/capacity")
async def read_capacity(request: Request, who: Who) -> dict[str, Any]:
    """Say what the machine offers to sessions, and what is held."""
    capacity = await get_context(request).sessions.get_capacity()
    return {
        "cores": capacity.cores,
        "cores_held": capacity.cores_held,
        "memory_bytes": capacity.memory_bytes,
        "memory_held_bytes": capacity.memory_held_bytes,
        "running": capacity.running,
        "queued": capacity.queued,
    }


@router.get("/sessions")
async def list_sessions(request: Request, who: Who, everyone: bool = False) -> list[dict[str, Any]]:
    """List one's own sessions, the newest first; or everyone's."""
    found = await get_context(request).sessions.list_sessions(who, everyone)
    return [render_session(session) for session in found]


@router.post("/sessions", status_code=201)
async def start_session(request: Request, who: Who, body: SessionRequest) -> dict[str, Any]:
    """Start an app."""
    session = await get_context(request).sessions.start(
        who,
        body.app_id,
        cores=body.cores,
        memory_gb=body.memory_gb,
        hours=body.hours,
        values=body.values,
        title=body.title,
        cluster=body.cluster,
        placement=body.placement,
    )
    return render_session(session)


@router.get("/sessions/{session_id}")
async def read_session(request: Request, who: Who, session_id: str) -> dict[str, Any]:
    """Describe a session."""
    return render_session(await get_context(request).sessions.get_session(who, session_id))


@router.delete("/sessions/{session_id}", status_code=204)
async def forget_session(request: Request, who: Who, session_id: str) -> None:
    """Remove an ended session, with its folder."""
    await get_context(request).sessions.forget(who, session_id)


@router.post("/sessions/{session_id}/stop")
async def stop_session(request: Request, who: Who, session_id: str) -> dict[str, Any]:
    """Stop a session."""
    return render_session(await get_context(request).sessions.stop(who, session_id))


@router.post("/sessions/{session_id}/extend")
async def extend_session(request: Request, who: Who, session_id: str) -> dict[str, Any]:
    """Give a session more time."""
    return render_session(await get_context(request).sessions.extend(who, session_id))


@router.get("/sessions/{session_id}/log")
async def read_log(
    request: Request, who: Who, session_id: str, lines: Annotated[int, Query(ge=1, le=500)] = 40
) -> dict[str, str]:
    """Return the last lines of what a session wrote."""
    return {"text": await get_context(request).sessions.read_log(who, session_id, lines)}


@router.get("/sessions/{session_id}/shares")
async def list_shares(request: Request, who: Who, session_id: str) -> list[dict[str, Any]]:
    """List who may look at a session."""
    return [_render_share(share) for share in await get_context(request).sessions.list_shares(who, session_id)]


@router.post("/sessions/{session_id}/shares", status_code=201)
async def add_share(request: Request, who: Who, session_id: str, body: ShareRequest) -> dict[str, Any]:
    """Let a colleague look; with `control` also type and point, for a while."""
    sessions = get_context(request).sessions
    share = await sessions.share(who, session_id, body.viewer_name)
    if body.control:
        share = await sessions.control.allow(who, session_id, share.id)
    return _render_share(share)


@router.delete("/sessions/{session_id}/shares/{share_id}", status_code=204)
async def delete_share(request: Request, who: Who, session_id: str, share_id: RowId) -> None:
    """Take a share back."""
    await get_context(request).sessions.unshare(who, session_id, share_id)


@router.post("/sessions/{session_id}/shares/{share_id}/control")
async def allow_control(request: Request, who: Who, session_id: str, share_id: RowId) -> dict[str, Any]:
    """Let a viewer type and point, for a while, or for longer."""
    return _render_share(await get_context(request).sessions.control.allow(who, session_id, share_id))


@router.delete("/sessions/{session_id}/shares/{share_id}/control", status_code=204)
async def stop_control(request: Request, who: Who, session_id: str, share_id: RowId) -> None:
    """Take control back; the viewer goes on looking."""
    await get_context(request).sessions.control.stop(who, session_id, share_id)


@router.get("/controls")
async def list_controls(request: Request, who: Who) -> dict[str, list[dict[str, Any]]]:
    """List who asks to control a session of one's own, and who does."""
    controls = await get_context(request).sessions.control.list_mine(who)
    return {
        "asks": [asdict(ask) | {"title": session.title} for ask, session in controls.asks],
        "shares": [_render_share(share) | {"title": session.title} for share, session in controls.shares],
    }


@router.post("/sessions/{session_id}/asks/{ask_id}", status_code=204)
async def answer_ask(request: Request, who: Who, session_id: str, ask_id: RowId, body: AnswerRequest) -> None:
    """Say yes or no to somebody who asks for control."""
    control = get_context(request).sessions.control
    await (control.agree if body.agree else control.refuse)(who, session_id, ask_id)


@router.post("/shared/{session_id}/control", status_code=201)
async def ask_control(request: Request, who: Who, session_id: str) -> dict[str, Any]:
    """Ask the owner of a session that one may look at for control."""
    return asdict(await get_context(request).sessions.control.ask(who, session_id))


@router.delete("/shared/{session_id}/control", status_code=204)
async def give_control_up(request: Request, who: Who, session_id: str) -> None:
    """End one's control of a colleague's session, or ask for it no more."""
    await get_context(request).sessions.control.give_up(who, session_id)


@router.get("/notices")
async def list_notices(request: Request, who: Who) -> list[dict[str, Any]]:
    """List what one is told of one's sessions, the newest first."""
    return [asdict(notice) for notice in await get_context(request).sessions.notices.list_notices(who)]


@router.delete("/notices/{notice_id}", status_code=204)
async def forget_notice(request: Request, who: Who, notice_id: RowId) -> None:
    """Remove a notice."""
    await get_context(request).sessions.notices.forget(who, notice_id)


@router.get("/shared")
async def list_shared(request: Request, who: Who) -> list[dict[str, Any]]:
    """List what colleagues let one look at."""
    found = await get_context(request).sessions.list_shared_with(who)
    return [{**_render_share(share), "title": session.title, "state": session.state} for share, session in found]


@router.get("/users")
async def list_users(request: Request, who: Who) -> list[dict[str, Any]]:
    """List users."""
    users = await in_thread(get_context(request).accounts.list_users, who)
    return [{"name": u.name, "role": u.role, "state": u.state, "created": u.created} for u in users]


async def _render_user(request: Request, who: Identity, name: str) -> dict[str, Any]:
    require(who, Permission.USER_LIST)
    user = await in_thread(get_context(request).accounts.get_user, name)
    return {"name": user.name, "role": user.role, "state": user.state, "created": user.created}


@router.get("/users/{name}")
async def read_user(request: Request, who: Who, name: str) -> dict[str, Any]:
    """Describe a user."""
    return await _render_user(request, who, name)


@router.post("/users", status_code=201)
async def add_user(request: Request, who: Who, body: UserRequest) -> dict[str, Any]:
    """Add a user; ``link`` sets their password, once, and is told only now."""
    context = get_context(request)
    code = await in_thread(context.accounts.add_user, who, body.name, body.role)
    return {**await _render_user(request, who, body.name), "link": render_link(context.config.portal_origin, code)}


def render_link(origin: str, code: str) -> str:
    """Return the link for a one-time code; it stands in the fragment, which browsers send to nobody."""
    return f"{origin}/enrol#{code}"


@router.patch("/users/{name}")
async def change_user(request: Request, who: Who, name: str, body: RoleRequest) -> dict[str, Any]:
    """Change a user's role."""
    await in_thread(get_context(request).accounts.set_role, who, name, body.role)
    return await _render_user(request, who, name)


@router.post("/users/{name}/code", status_code=201)
async def renew_code(request: Request, who: Who, name: str) -> dict[str, Any]:
    """Make a new one-time link, for a forgotten password."""
    context = get_context(request)
    code = await in_thread(context.accounts.renew_code, who, name)
    return {"name": name, "link": render_link(context.config.portal_origin, code)}


@router.post("/users/{name}/lock")
async def lock_user(request: Request, who: Who, name: str) -> dict[str, Any]:
    """Lock a user."""
    await get_context(request).accounts.lock_user(who, name)
    return await _render_user(request, who, name)


@router.post("/users/{name}/unlock")
async def unlock_user(request: Request, who: Who, name: str) -> dict[str, Any]:
    """Unlock a user."""
    await get_context(request).accounts.unlock_user(who, name)
    return await _render_user(request, who, name)


@router.delete("/users/{name}", status_code=204)
async def remove_user(request: Request, who: Who, name: str, remove_home: bool = False) -> None:
    """Remove a user with all that runs; the home only if asked."""
    await remove_with_sessions(request, who, name, remove_home)


async def remove_with_sessions(request: Request, who: Identity, name: str, remove_home: bool) -> None:
    """Stop a user's sessions, then remove the user."""
    context = get_context(request)
    require(who, Permission.USER_REMOVE)
    await context.sessions.stop_all_of(who, name)
    await context.accounts.remove_user(who, name, remove_home)


@router.get("/sign-ins")
async def list_sign_ins(request: Request, who: Who, everyone: bool = False) -> list[dict[str, Any]]:
    """List the browsers in which one is signed in, or everyone is."""
    found = await in_thread(get_context(request).accounts.list_sign_ins, who, everyone)
    return [_render_sign_in(sign_in, who) for sign_in in found]


@router.delete("/sign-ins/{sign_in_id}", status_code=204)
async def revoke_sign_in(request: Request, who: Who, sign_in_id: RowId) -> None:
    """End a sign-in, and every stream that it carries."""
    await in_thread(get_context(request).accounts.revoke_sign_in, who, sign_in_id)


@router.post("/me/password", status_code=204)
async def change_password(request: Request, who: Who, body: PasswordRequest) -> None:
    """Change one's own password."""
    await in_thread(get_context(request).accounts.change_password, who, body.old, body.new)


@router.get("/tokens")
async def list_tokens(request: Request, who: Who) -> list[dict[str, Any]]:
    """List one's own API tokens."""
    return await in_thread(get_context(request).accounts.list_api_tokens, who)


@router.post("/tokens", status_code=201)
async def make_token(request: Request, who: Who, body: TokenRequest) -> dict[str, Any]:
    """Make an API token, which is told only now."""
    token = await in_thread(get_context(request).accounts.make_api_token, who, body.label, body.days)
    return {"label": body.label, "token": token}


@router.delete("/tokens/{token_id}", status_code=204)
async def revoke_token(request: Request, who: Who, token_id: RowId) -> None:
    """End an API token."""
    await in_thread(get_context(request).accounts.revoke_api_token, who, token_id)


@router.get("/feed")
async def stream_feed(request: Request, who: Who, everyone: bool = False) -> Response:
    """Send an event `change` whenever something that one sees has changed (server-sent events), `end` at the end."""
    context = get_context(request)
    if everyone:
        require(who, Permission.SESSION_LIST)
    return context.feeds.answer(context.sessions.changes, who, everyone, lambda: identify(request))


@router.get("/metrics")
async def read_metrics(request: Request, who: Who) -> Response:
    """Return the figures of the portal and of all gateways, in Prometheus' text format."""
    require(who, Permission.METRICS_READ)
    context = get_context(request)
    figures, gateways = await asyncio.gather(_read_figures(context, who), context.metrics.ask_gateways())
    return Response(context.metrics.render(figures, gateways), media_type=CONTENT_TYPE)


async def _read_figures(context: Context, who: Identity) -> Figures:
    capacity = await context.sessions.get_capacity()
    local = {
        "cores": capacity.cores,
        "cores_held": capacity.cores_held,
        "memory_bytes": capacity.memory_bytes,
        "memory_held_bytes": capacity.memory_held_bytes,
        "jobs_running": capacity.running,
        "jobs_queued": capacity.queued,
    }
    return Figures(
        sessions=await context.sessions.count_sessions(who),
        sign_ins=await in_thread(context.accounts.count_sign_ins, who),
        feeds=context.feeds.count,
        agents=context.sessions.count_agents(),
        clusters={"local": local},
    )


@router.get("/audit")
async def read_audit(
    request: Request,
    who: Who,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    before_id: RowId | None = None,
    actor: str = "",
) -> list[dict[str, Any]]:
    """Return the audit log, the newest first."""
    entries = await in_thread(get_context(request).accounts.read_audit, who, limit, before_id, actor)
    return [
        {
            "id": entry.id,
            "at": entry.at,
            "actor": entry.actor,
            "action": entry.action,
            "target": entry.target,
            "detail": entry.detail,
            "address": entry.address,
        }
        for entry in entries
    ]
