"""The REST API's word on SSH: how whoever asks comes in."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request

from portico.portal.api import Who
from portico.portal.context import get_context, identify, in_thread
from portico.ssh.client import render_known_hosts, render_ssh_config

router = APIRouter(prefix="/api/v1", dependencies=[Depends(identify)])


@router.get("/ssh")
async def read_ssh(request: Request, who: Who) -> dict[str, Any]:
    """Say how one comes in by SSH; ``config`` and ``known_hosts`` are files, made of the other values."""
    way = await in_thread(get_context(request).guide.get_way, who)
    return {
        "host": way.host,
        "port": way.port,
        "user": way.user_name,
        "connect": way.connect,
        "host_keys": way.host_keys,
        "host_ca": way.host_ca,
        "config": render_ssh_config(way),
        "known_hosts": render_known_hosts(way),
    }
