"""The doors: who may go where. The one choke point for every stream and every request to an app.

The target comes from the session's row, never from the request. Whatever is not explicitly let in is refused.
docs/protocol.md, "Gateway and portal", is normative.
"""

from __future__ import annotations

import asyncio
import html
import math
import os
import re
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any, Final
from urllib.parse import urlsplit

from portico.accounts import Accounts
from portico.accounts.passwords import hash_token, make_token
from portico.config import Config
from portico.errors import Forbidden, NotFound, NotSignedIn, PorticoError
from portico.model import SESSION_ID, Identity, Reach, Session, SessionState, Share, UserState, Via, now
from portico.sessions.changes import Changes
from portico.sessions.rows import Rows
from portico.store import Store, Transaction

Json = dict[str, Any]

TICKET_LIFE: Final = timedelta(seconds=60)
CACHE_S: Final = 5
TOLD_MOST: Final = 10_000
RETRY_S: Final = 2
STREAM_PATH: Final = re.compile(r"/(sessions|shared)/([a-z][a-z0-9]{11})/stream\Z")
APP_PATH: Final = re.compile(r"/s/([a-z][a-z0-9]{11})/")
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})


def find_cookie_name(config: Config) -> str:
    """Return the name of the portal's cookie; ``__Host-`` (RFC 6265bis, 4.1.3.2) wherever browsers take it."""
    return "__Host-portico" if config.scheme == "https" else "portico"


def parse_cookies(header: str) -> dict[str, str]:
    """Return the cookies of a Cookie header; none of a malformed one. Of two of one name, neither."""
    found: dict[str, str] = {}
    doubled = set()
    for part in header.split(";"):
        name, separator, value = part.strip().partition("=")
        if not separator:
            continue
        if name in found:
            doubled.add(name)
        found[name] = value.strip('"')
    return {name: value for name, value in found.items() if name not in doubled}


class Doors:
    """What the gateway asks.

    Args:
        connect_app: Returns a descriptor that is connected to a session's app.
        clock: Returns the time, aware, in UTC.
    """

    def __init__(
        self,
        store: Store,
        config: Config,
        accounts: Accounts,
        connect_app: Callable[[Session], Awaitable[int]],
        clock: Callable[[], datetime] = now,
    ) -> None:
        self._rows = Rows(store, Changes())
        self._config = config
        self._accounts = accounts
        self._connect_app = connect_app
        self._clock = clock
        self._told: dict[str, tuple[Session, datetime]] = {}

    async def route(self, request: Json) -> tuple[Json, list[int]]:
        """Answer the gateway's ``route``: where this request goes, with a connected descriptor."""
        try:
            if request["listener"] == "portal":
                return await self._route_stream(request)
            return await self._route_app(request)
        except NotSignedIn as error:
            return self._refuse(request, 401, error), []
        except Forbidden as error:
            return self._refuse(request, 403, error), []
        except NotFound as error:
            return self._refuse(request, 404, error), []
        except PorticoError as error:
            refusal = self._refuse(request, 503, error)
            refusal["headers"]["Retry-After"] = str(math.ceil(error.retry_after_s or RETRY_S))
            return refusal, []

    async def connect(self, key: str) -> int:
        """Answer the gateway's ``connect``: one more connection for a decision it has kept.

        Raises:
            NotFound: The session is not ready any more.
        """
        session, until = self._told.get(key, (None, None))
        if session is None or until is None or self._clock() >= until:
            session = await self._get(str(key))
        _require_ready(session)
        if session.reach is not Reach.HTTP:  # each stream asks for itself
            raise NotFound("This app has no pages.")
        return await self._connect_app(session)

    # streams of desktops and terminals, on the portal's own origin

    async def _route_stream(self, request: Json) -> tuple[Json, list[int]]:
        session, _ = await self._allow_stream(request)
        fd, fixed = await self._connect_if(session, lambda: self._allow_stream(request))
        clipboard = self._config.clipboard_limits
        return {"kind": "stream", "protocol": session.reach.value, "clipboard": clipboard, **fixed}, [fd]

    async def _allow_stream(self, request: Json) -> tuple[Session, Json]:
        match = STREAM_PATH.match(request["target"])
        if not request["upgrade"] or match is None:
            raise NotFound("There is nothing to connect to here.")
        headers = request["headers"]
        if headers.get("origin") != self._config.portal_origin and not self._is_own_loopback(request):
            raise Forbidden("This page may not open connections here.", why="Its origin is not the portal's.")
        if headers.get("sec-fetch-site", "same-origin") != "same-origin":
            raise Forbidden("This page may not open connections here.")
        cookie = parse_cookies(headers.get("cookie", "")).get(find_cookie_name(self._config), "")
        who = await asyncio.to_thread(self._accounts.authenticate, cookie, str(request["address"]))
        session = await self._get(match[2])
        tags = [f"sign-in:{who.sign_in_id}", f"user:{who.user_name}", f"session:{session.id}"]
        view_only = match[1] == "shared"
        if view_only:
            share = await self._rows.read(lambda tx: _find_live_share(tx, session, who))
            is_controlled = share is not None and share.is_controlled(self._clock())
            if share is None or (share.brief and not is_controlled):
                raise NotFound("There is no such session.")
            tags += [f"share:{share.id}", f"user:{session.user_name}"]
            if is_controlled:
                view_only = False
                tags.append(f"control:{share.id}")
        elif session.user_name != who.user_name:
            raise NotFound("There is no such session.")
        if session.reach is Reach.HTTP:
            raise NotFound("This app has no stream.")
        _require_ready(session)
        return session, {"view_only": view_only, "tags": tags}

    async def _connect_if(
        self, session: Session, allow: Callable[[], Awaitable[tuple[Session, Json]]]
    ) -> tuple[int, Json]:
        """Connect to the app, then ask again: what was taken back meanwhile has sent its cut already.

        The second answer is the one that holds.

        Raises:
            PorticoError: It is not allowed any more, or the app does not answer.
        """
        fd = await self._connect_app(session)
        try:
            _, fixed = await allow()
        except BaseException:
            os.close(fd)
            raise
        return fd, fixed

    def _is_own_loopback(self, request: Json) -> bool:
        """Whether the origin is exactly what the Host header says, where the gateway lets several names in."""
        return str(request["headers"].get("origin")) == f"{request['scheme']}://{request['host']}"

    # apps that speak HTTP, on an origin of their own

    async def _route_app(self, request: Json) -> tuple[Json, list[int]]:
        session, _ = await self._allow_app(request)
        fd, fixed = await self._connect_if(session, lambda: self._allow_app(request))
        # For as long as the gateway may keep it, unless it is cut: what it asks for meanwhile needs no second look.
        self._told.pop(session.id, None)
        self._told[session.id] = session, self._clock() + timedelta(seconds=CACHE_S)
        while len(self._told) > TOLD_MOST:
            del self._told[next(iter(self._told))]
        return {"kind": "http", "key": session.id, "prefix": session.base_path, "cache_s": CACHE_S, **fixed}, [fd]

    async def _allow_app(self, request: Json) -> tuple[Session, Json]:
        match = APP_PATH.match(request["target"])
        if match is None:
            raise NotFound("There is no app here.", hint="Open it from the portal.")
        session_id, headers = match[1], request["headers"]
        origin = f"{request['scheme']}://{request['host']}"
        if self._config.apps_domain:
            own = urlsplit(self._config.get_apps_origin(session_id))
            if str(request["host"]).lower() not in (own.netloc, own.hostname):
                raise NotFound("There is no such app here.")
        if request["upgrade"]:
            if headers.get("origin") != origin:
                raise Forbidden("This page may not open connections here.", why="Its origin is not the app's.")
        elif request["method"] not in SAFE_METHODS and (
            headers.get("origin", origin) != origin
            or headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none")
        ):
            raise Forbidden("This request came from another site.")
        cookie = parse_cookies(headers.get("cookie", "")).get(f"portico-app-{session_id}", "")
        grant = await self._rows.read(lambda tx: tx.find_grant(hash_token(cookie), self._clock())) if cookie else None
        if grant is None or grant[0] != session_id:
            raise NotSignedIn("This app is not open in this browser.", hint="Open it from the portal.")
        who = await asyncio.to_thread(self._accounts.check_sign_in, grant[1])
        session = await self._get(session_id)
        if session.user_name != who.user_name or who.user_name != grant[2] or session.reach is not Reach.HTTP:
            raise NotFound("There is no such app here.")
        _require_ready(session)
        return session, {"tags": [f"sign-in:{who.sign_in_id}", f"user:{who.user_name}", f"session:{session.id}"]}

    async def make_ticket(self, who: Identity, session_id: str) -> str:
        """Return a one-time ticket to an http app of one's own.

        Raises:
            NotFound: There is no such session, or it is not ready.
            Forbidden: The request has no sign-in of a browser behind it.
        """
        session = await self._get(session_id)
        if session.user_name != who.user_name or session.reach is not Reach.HTTP:
            raise NotFound("There is no such session.")
        _require_ready(session)
        if who.via is not Via.COOKIE:
            raise Forbidden("Only a browser that is signed in can open an app.")
        ticket, expires = make_token(), self._clock() + TICKET_LIFE
        await self._rows.write(
            lambda tx: tx.add_ticket(hash_token(ticket), session.id, who.sign_in_id, who.user_name, expires)
        )
        return ticket

    async def redeem_ticket(self, ticket: str, host: str) -> tuple[str, str, str]:
        """Use a ticket up; return the session's id and the name and value of the cookie that it became.

        Raises:
            NotFound: It was used, has expired, never was, or is for another host.
        """

        def redeem(tx: Transaction) -> tuple[str, str] | None:
            found = tx.take_ticket(hash_token(ticket), self._clock())
            if found is None:
                return None
            session_id, sign_in_id, user_name = found
            if urlsplit(self._config.get_apps_origin(session_id)).netloc != host and not self._is_loopback(host):
                return None
            signed_in = tx.find_sign_in_by_id(sign_in_id)
            if signed_in is None or signed_in[0].state is not UserState.ACTIVE:
                return None
            value = make_token()
            tx.add_grant(hash_token(value), session_id, sign_in_id, user_name, signed_in[1].expires)
            return session_id, value

        redeemed = await self._rows.write(redeem)
        if redeemed is None:
            raise NotFound("This way in was used already, or is too old.", hint="Go back and press Connect again.")
        return redeemed[0], f"portico-app-{redeemed[0]}", redeemed[1]

    def _is_loopback(self, host: str) -> bool:
        return host in {f"{name}:{self._config.apps_port}" for name in ("localhost", "127.0.0.1", "[::1]")} and (
            self._config.bind == "127.0.0.1"
        )

    async def find_gone(self, tags: list[str]) -> list[str]:
        """Return those tags of live streams whose thing has ended while no one could be told."""

        def look(tx: Transaction) -> list[str]:
            gone = []
            shares: set[int] = set()
            controlled: set[int] | None = None
            signed_in = find_signed_in(tx, self._config, self._clock())
            for tag in tags:
                kind, _, name = tag.partition(":")
                if kind == "sign-in":
                    is_gone = not name.isdigit() or int(name) not in signed_in
                elif kind == "user":
                    user = tx.find_user(name)
                    is_gone = user is None or user.state is UserState.LOCKED
                elif kind == "session":
                    session = tx.find_session(name)
                    is_gone = session is None or session.state is SessionState.ENDED
                elif kind == "control":
                    if controlled is None:
                        controlled = tx.list_controlled_ids(self._clock())
                    is_gone = not name.isdigit() or int(name) not in controlled
                else:
                    shares = shares or tx.list_share_ids()
                    is_gone = not name.isdigit() or int(name) not in shares
                if is_gone:
                    gone.append(tag)
            return gone

        return await self._rows.read(look)

    async def _get(self, session_id: str) -> Session:
        session = None
        if SESSION_ID.match(session_id):
            session = await self._rows.read(lambda tx: tx.find_session(session_id))
        if session is None:
            raise NotFound("There is no such session.")
        return session

    def _refuse(self, request: Json, status: int, error: PorticoError) -> Json:
        headers = {"Content-Type": "text/plain; charset=utf-8", "Cache-Control": "no-store"}
        body = " ".join(part for part in (error.message, error.why, error.hint) if part) + "\n"
        match = APP_PATH.match(str(request["target"]))
        if not request["upgrade"] and request["method"] == "GET":
            link = f"{self._config.portal_origin}/sessions/{match[1]}" if match else f"{self._config.portal_origin}/"
            headers["Content-Type"] = "text/html; charset=utf-8"
            headers["Content-Security-Policy"] = "default-src 'none'; frame-ancestors 'none'"
            body = (
                f"<!doctype html><html lang=en><meta charset=utf-8><title>Portico</title>"
                f"<h1>{html.escape(error.message)}</h1><p>{html.escape(f'{error.why} {error.hint}'.strip())}</p>"
                f'<p><a href="{html.escape(link)}">To the portal</a></p></html>\n'
            )
        return {"kind": "answer", "status": status, "headers": headers, "body": body}


def _require_ready(session: Session) -> None:
    # Only after it is known that it is theirs: others don't learn that it exists.
    if session.state is not SessionState.READY:
        raise NotFound("This session is not ready.", why=f"It is {session.state}.", hint="Look at its page.")


def find_signed_in(tx: Transaction, config: Config, at: datetime) -> set[int]:
    """Return the ids of all sign-ins that hold, as Accounts.authenticate judges it."""
    idle = timedelta(hours=config.idle_hours)
    return {found.id for found in tx.list_sign_ins(at, limit=1_000_000) if at - found.last_seen < idle}


def _find_live_share(tx: Transaction, session: Session, who: Identity) -> Share | None:
    """Return the share that lets ``who`` look; a locked owner shows nothing."""
    owner = tx.find_user(session.user_name)
    return tx.find_share(session.id, who.user_name) if owner and owner.state is UserState.ACTIVE else None
