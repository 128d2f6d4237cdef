"""The public keys on one's account page: a form to add one, and a button to remove one."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import File, Form, Request, UploadFile
from fastapi.responses import Response

from portico.errors import Invalid, PorticoError
from portico.model import Identity
from portico.portal.context import RowId, get_context, in_thread
from portico.portal.pages.people import render_account
from portico.portal.pages.routers import Text, Who, router, see
from portico.ssh.keys import decode_key_file, parse_public_key

ENDS: Final = ("0", "30", "365")
"""Days that the form offers; ``days`` for a number of one's own."""


@router.post("/account/keys")
async def add_key(
    request: Request,
    who: Who,
    key: Annotated[str, Form()] = "",
    file: Annotated[UploadFile | None, File()] = None,
    label: Text = "",
    source: Text = "everywhere",
    networks: Annotated[str, Form()] = "",
    ends: Text = "0",
    days: Text = "",
) -> Response:
    """Add a public key that was pasted or uploaded."""
    given = {"label": label, "source": source, "networks": networks, "ends": ends, "days": days}
    try:
        # First of all: what is no public key may be a private one, and is not sent back into the page.
        text = await _read_key(key, file)
        given["key"] = parse_public_key(text).line
        sources = _read_sources(who, source, networks)
        await get_context(request).ssh_keys.add(who, text, label, sources, _read_days(ends, days))
    except PorticoError as error:
        return await render_account(request, who, error=error, about="keys", given=given)
    return see("/account#keys")


async def _read_key(key: str, file: UploadFile | None) -> str:
    uploaded = decode_key_file(await file.read()) if file is not None else ""
    if key.strip() and uploaded.strip():
        raise Invalid("This is a pasted key and a file.", hint="Bring one of them.", field="key")
    return uploaded or key


def _read_sources(who: Identity, source: str, networks: str) -> tuple[str, ...]:
    """Return from where a key shall be good; what was written and then not chosen is not dropped in silence."""
    if source == "networks":
        return (networks,)
    if source not in ("everywhere", "here"):
        raise Invalid("From where is the key good?", field="sources")
    if networks.strip():
        raise Invalid("Networks are written, but not chosen.", hint="Choose them, or empty the field.", field="sources")
    return (who.address,) if source == "here" else ()


def _read_days(ends: str, days: str) -> int:
    if ends in ENDS:
        if days.strip():
            raise Invalid("Days are written, but not chosen.", hint="Choose them, or empty the field.", field="days")
        return int(ends)
    if ends != "days" or not days.strip().isdecimal() or int(days) == 0:
        raise Invalid("After how many days does it end?", hint="Write a number, or choose never.", field="days")
    return int(days)


@router.post("/account/keys/{key_id}/remove")
async def remove_key(request: Request, who: Who, key_id: RowId) -> Response:
    """Remove a public key."""
    await in_thread(get_context(request).ssh_keys.remove, who, key_id)
    return see("/account#keys")
