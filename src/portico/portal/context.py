"""What pages and API share: who is asking, and the objects that answer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, ParamSpec, TypeVar

from fastapi import Request
from pydantic import Field

from portico.accounts import Accounts, SshCertificates, SshKeys
from portico.accounts.ssh_guide import SshGuide
from portico.config import Config
from portico.errors import NotSignedIn
from portico.events import Events
from portico.jobs import Jobs
from portico.model import Identity
from portico.portal.feeds import Feeds
from portico.portal.guard import find_bearer
from portico.portal.metrics import Metrics
from portico.portal.participants import require_open
from portico.sessions import Doors, Sessions
from portico.sessions.doors import find_cookie_name, parse_cookies
from portico.sessions.vnc import VncDoors

RowId = Annotated[int, Field(ge=1, lt=2**63)]
"""A row's number as requests name it; what SQLite can't hold is refused here."""

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True)
class Services:
    """What the portal shows and does, made by ``cli``."""

    config: Config
    accounts: Accounts
    sessions: Sessions
    doors: Doors
    jobs: Jobs
    events: Events
    ssh_keys: SshKeys
    ssh_certificates: SshCertificates
    guide: SshGuide
    vnc: VncDoors


@dataclass(frozen=True)
class Context(Services):
    """All that pages and API share. ``version`` stands in the URL of static files."""

    version: str
    feeds: Feeds = field(default_factory=Feeds)
    metrics: Metrics = field(default_factory=Metrics)


def get_context(request: Request) -> Context:
    """Return the portal's objects."""
    context: Context = request.app.state.context
    return context


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call something that may wait for the disk or hash a password, without holding up others."""
    return await asyncio.to_thread(function, *args, **kwargs)


def get_address(request: Request) -> str:
    """Return the address that the request came from, as the gateway says."""
    return str(request.scope["portico"]["address"])


async def identify_browser(request: Request) -> Identity:
    """Return who is signed in in this browser.

    Raises:
        NotSignedIn: Nobody.
        Forbidden: A participant of an event, for whom this is not.
    """
    context = get_context(request)
    token = parse_cookies(request.headers.get("cookie", "")).get(find_cookie_name(context.config), "")
    if not token:
        raise NotSignedIn("You are not signed in.")
    return _check(request, await in_thread(context.accounts.authenticate, token, get_address(request)))


def _check(request: Request, who: Identity) -> Identity:
    require_open(who, request.method, request.url.path)
    return who


async def identify(request: Request) -> Identity:
    """Return who is asking the API: by API token, by browser, or by the uid of a process of this machine.

    Raises:
        NotSignedIn: Nobody that we know.
    """
    context, arrival = get_context(request), request.scope["portico"]
    token = find_bearer(request.headers.get("authorization", ""))
    if token is not None:
        return _check(request, await in_thread(context.accounts.authenticate_api_token, token, get_address(request)))
    if arrival["socket"] == "api":
        return _check(request, await in_thread(context.accounts.identify_uid, int(arrival["peer_uid"])))
    return await identify_browser(request)
