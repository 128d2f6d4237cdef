"""REST API of one's own public keys for SSH."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from portico.model import Identity, SshKey
from portico.portal.context import RowId, get_context, identify, in_thread

Who = Annotated[Identity, Depends(identify)]

router = APIRouter(prefix="/api/v1", dependencies=[Depends(identify)])


class KeyRequest(BaseModel):
    """A public key, as a .pub file has it. No ``sources``: from everywhere. ``days`` is 0 for no end."""

    model_config = ConfigDict(extra="forbid")

    key: str
    label: str = ""
    sources: list[str] = Field(default_factory=list)
    days: int = 0


def _render_key(key: SshKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "label": key.label,
        "kind": key.kind,
        "bits": key.bits,
        "fingerprint": key.fingerprint,
        "sources": list(key.sources),
        "created": key.created,
        "expires": key.expires,
        "last_used": key.last_used,
        "last_address": key.last_address,
    }


@router.get("/keys")
async def list_keys(request: Request, who: Who) -> list[dict[str, Any]]:
    """List one's own public keys."""
    return [_render_key(key) for key in await in_thread(get_context(request).ssh_keys.list_keys, who)]


@router.post("/keys", status_code=201)
async def add_key(request: Request, who: Who, body: KeyRequest) -> dict[str, Any]:
    """Add a public key of one's own; not with an API token."""
    return _render_key(await get_context(request).ssh_keys.add(who, body.key, body.label, body.sources, body.days))


@router.delete("/keys/{key_id}", status_code=204)
async def remove_key(request: Request, who: Who, key_id: RowId) -> None:
    """Remove a public key; connections that came in with it end."""
    await in_thread(get_context(request).ssh_keys.remove, who, key_id)
