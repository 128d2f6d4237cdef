"""SSH certificates: where a person confirms a login that a terminal began, and takes certificates back.

The user code is typed, or stands in the fragment of the link, which browsers send to nobody. The device code, which is
the secret, never comes here.
"""

from __future__ import annotations

import pwd
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from portico.accounts.ssh_certificates import Asked
from portico.errors import NotFound, PorticoError, TooMany
from portico.model import Identity
from portico.portal.context import RowId, get_context, in_thread
from portico.portal.pages.routers import Text, Who, router, see
from portico.portal.rendering import render
from portico.portal.ssh_login_api import PAGE


def _show(request: Request, who: Identity, **values: Any) -> Response:
    known = {"asked": None, "account": "", "code": "", "hours": get_context(request).config.ssh_certificate_hours}
    return render(request, "ssh_login.html", who, **{**known, **values})


async def _find_account(asked: Asked) -> str:
    """Return the name of the account of this machine that asked; its number, where it has none."""
    if asked.uid < 0:
        return ""
    try:
        return (await in_thread(pwd.getpwuid, asked.uid)).pw_name
    except KeyError:
        return str(asked.uid)


@router.get(PAGE)
async def show_login(request: Request, who: Who) -> Response:
    """Ask for the code that the terminal shows."""
    return _show(request, who)


@router.post(PAGE)
async def describe_login(request: Request, who: Who, user_code: Text = "") -> Response:
    """Show what is to be confirmed."""
    try:
        asked = await in_thread(get_context(request).ssh_certificates.describe, who, user_code)
    except (NotFound, TooMany) as error:
        return _show(request, who, error=error, code=user_code[:20])
    return _show(request, who, asked=asked, account=await _find_account(asked))


@router.post(f"{PAGE}/confirm")
async def confirm_login(request: Request, who: Who, user_code: Text = "") -> Response:
    """Have the terminal's key signed."""
    try:
        row = await get_context(request).ssh_certificates.confirm(who, user_code)
    except PorticoError as error:
        return _show(request, who, error=error, code=user_code[:20])
    return _show(request, who, done="Done; go back to your terminal.", until=row.expires)


@router.post(f"{PAGE}/refuse")
async def refuse_login(request: Request, who: Who, user_code: Text = "") -> Response:
    """Refuse it."""
    try:
        await in_thread(get_context(request).ssh_certificates.refuse, who, user_code)
    except (NotFound, TooMany) as error:
        return _show(request, who, error=error, code=user_code[:20])
    return _show(request, who, done="Refused. Nothing was signed.", until=None)


@router.post("/account/ssh-certificates/{serial}/revoke")
async def revoke_certificate(request: Request, who: Who, serial: RowId) -> Response:
    """Take back a certificate of one's own."""
    await in_thread(get_context(request).ssh_certificates.revoke, who, serial)
    return see("/account")
