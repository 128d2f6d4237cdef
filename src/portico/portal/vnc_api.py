"""REST API of a desktop's VNC passwords."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request

from portico.portal.api import Who
from portico.portal.context import get_context, identify

router = APIRouter(prefix="/api/v1", dependencies=[Depends(identify)])


@router.get("/sessions/{session_id}/vnc-passwords")
async def read_vnc_passwords(request: Request, who: Who, session_id: str) -> dict[str, bool]:
    """Say whether a desktop has VNC passwords; what they are was told once."""
    return {"made": await get_context(request).vnc.has_passwords(who, session_id)}


@router.post("/sessions/{session_id}/vnc-passwords", status_code=201)
async def make_vnc_passwords(request: Request, who: Who, session_id: str) -> dict[str, str]:
    """Give a desktop new VNC passwords, one for all and one for looking only; they are told this once."""
    made = await get_context(request).vnc.make_passwords(who, session_id)
    return {"full": made.full, "view_only": made.view_only}


@router.delete("/sessions/{session_id}/vnc-passwords", status_code=204)
async def remove_vnc_passwords(request: Request, who: Who, session_id: str) -> None:
    """Take a desktop's VNC passwords away; viewers that came in with them are cut off."""
    await get_context(request).vnc.remove_passwords(who, session_id)
