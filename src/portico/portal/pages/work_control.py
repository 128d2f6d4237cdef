"""Control: a viewer asks for it, the owner says yes or no, and either ends it (docs/sharing.md)."""

from __future__ import annotations

from typing import Annotated

from fastapi import Form, Request
from fastapi.responses import Response

from portico.portal.context import RowId, get_context
from portico.portal.pages.routers import Text, Who, find_safe_path, router, see

AskId = Annotated[RowId, Form()]
ShareId = Annotated[RowId, Form()]


@router.post("/shared/{session_id}/control")
async def ask_control(request: Request, who: Who, session_id: str) -> Response:
    """Ask the owner for control."""
    await get_context(request).sessions.control.ask(who, session_id)
    return see(f"/shared/{session_id}")


@router.post("/shared/{session_id}/control/end")
async def give_control_up(request: Request, who: Who, session_id: str, back: Text = "") -> Response:
    """End one's control, or ask no more."""
    await get_context(request).sessions.control.give_up(who, session_id)
    return see(find_safe_path(back or f"/shared/{session_id}"))


@router.post("/sessions/{session_id}/control/agree")
async def agree_to_control(request: Request, who: Who, session_id: str, ask_id: AskId, back: Text = "/") -> Response:
    """Say yes to one question."""
    await get_context(request).sessions.control.agree(who, session_id, ask_id)
    return see(find_safe_path(back))


@router.post("/sessions/{session_id}/control/refuse")
async def refuse_control(request: Request, who: Who, session_id: str, ask_id: AskId, back: Text = "/") -> Response:
    """Say no to one question."""
    await get_context(request).sessions.control.refuse(who, session_id, ask_id)
    return see(find_safe_path(back))


@router.post("/sessions/{session_id}/control/allow")
async def allow_control(request: Request, who: Who, session_id: str, share_id: ShareId) -> Response:
    """Let a viewer control one's session, unasked."""
    await get_context(request).sessions.control.allow(who, session_id, share_id)
    return see(f"/sessions/{session_id}/share")


@router.post("/sessions/{session_id}/control/stop")
async def stop_control(request: Request, who: Who, session_id: str, share_id: ShareId, back: Text = "/") -> Response:
    """Take control back."""
    await get_context(request).sessions.control.stop(who, session_id, share_id)
    return see(find_safe_path(back))
