"""What every request passes before anything else looks at it: where it came in, which origin sent it, and headers.

An unsafe request of a browser must say that it comes from the portal's own pages: exact Origin, and Sec-Fetch-Site
where the browser sends it. That is why no form needs a token (docs/decisions/0001-origin-instead-of-csrf-token.md).
What apps serve has another origin, so an app's page can't act as the user. This module never learns who is asking.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from typing import Any, Final

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from portico.config import LOOPBACK_HOSTS, Config
from portico.errors import Forbidden, Invalid, NotFound, PorticoError

log = logging.getLogger(__name__)

SAFE_METHODS: Final = frozenset({"GET", "HEAD"})
BODY_LIMIT_BYTES: Final = 256 * 1024
UPLOAD_LIMIT_BYTES: Final = 15_500_000
"""Below the gateway's own limit (gateway/limits.py), with room for a form's parts around the file."""
UPLOAD: Final = re.compile(r"/e/[a-z0-9-]+/files|/events/[a-z0-9-]+/(?:handouts|logo)")
API: Final = "/api/v1/"
ENTRY: Final = "/_portico/enter"

ShowError = Callable[[Request, PorticoError, int], Awaitable[Response]]


def find_bearer(authorization: str) -> str | None:
    """Return the token of an Authorization header, or None where it is of another scheme (RFC 9110, 11.1)."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


class Guard:
    """ASGI middleware; sets ``scope["portico"]`` to {socket, peer_uid, listener, address}.

    Args:
        app: What is guarded.
        config: The settings, for the portal's origin.
        show_error: Says what is wrong, as a page or as JSON, with this status.
    """

    def __init__(self, app: ASGIApp, config: Config, show_error: ShowError) -> None:
        self._app = app
        self._config = config
        self._show_error = show_error
        self._csp = render_csp(config).encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = parse_headers(scope["headers"])
        arrival = scope.setdefault("portico", {"socket": "portal", "peer_uid": -1})
        # Only the gateway can connect to the portal's socket. To that of the API everybody can: no header is believed.
        trusted = arrival["socket"] == "portal"
        arrival["listener"] = headers.get("x-portico-listener", "portal") if trusted else "portal"
        arrival["address"] = headers.get("x-forwarded-for", "")[:64] if trusted else ""

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self._list_headers(message["headers"])]
            await send(message)

        fault, body = self._find_fault(scope, headers, arrival), b""
        is_upload = scope["method"] == "POST" and UPLOAD.fullmatch(scope["path"]) is not None
        if not fault and not is_upload:
            try:
                body = await _read_body(receive)
            except Invalid as error:
                fault = 413, error
            except ClientDisconnect:
                return
        if fault:
            log.info("refused %s %r: %s", scope["method"], scope["path"][:100], fault[1])
            # The app is what the templates and the API's errors hang on; the request itself goes nowhere.
            answer = await self._show_error(Request({**scope, "app": self._app}), fault[1], fault[0])
            await answer(scope, receive, send_with_headers)
            return
        # A file is taken by its page once that knows who sends it, so that nobody fills the memory with nothing.
        await self._app(scope, _count(receive) if is_upload else _replay(body, receive), send_with_headers)

    def _find_fault(
        self, scope: Scope, headers: dict[str, str], arrival: dict[str, Any]
    ) -> tuple[int, PorticoError] | None:
        path, method = scope["path"], scope["method"]
        if arrival["socket"] == "api":
            return None if path.startswith(API) else (404, NotFound("Only the REST API is served here."))
        if (arrival["listener"] == "apps") != (path == ENTRY):
            return 404, NotFound("There is no such page here.")
        is_api = path.startswith(API)
        if method in SAFE_METHODS or (is_api and find_bearer(headers.get("authorization", "")) is not None):
            return None
        site = headers.get("sec-fetch-site", "same-origin")
        is_entry = arrival["listener"] == "apps"  # the one form that goes from the portal's origin to the apps'
        if not self._is_own(headers.get("origin", "")) or (site != "same-origin" and not is_entry):
            return 403, Forbidden(
                "This request did not come from the portal's own pages.",
                why="Its Origin is missing, or another one.",
                hint="Open the portal anew and try again. A program sends an API token instead.",
            )
        return None

    def _is_own(self, origin: str) -> bool:
        if origin == self._config.portal_origin:
            return True
        # On loopback the machine has several names, and the gateway lets each in.
        loopback = {f"{self._config.scheme}://{_bracket(name)}:{self._config.port}" for name in LOOPBACK_HOSTS}
        return self._config.host in LOOPBACK_HOSTS and not self._config.public_url and origin in loopback

    def _list_headers(self, present: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        have = {name.lower() for name, _ in present}
        wanted = [
            (b"content-security-policy", self._csp),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"same-origin"),  # no-referrer would make the Origin of our own forms null
            (b"cross-origin-opener-policy", b"same-origin"),
            (b"cross-origin-resource-policy", b"same-origin"),
            (b"cache-control", b"no-store"),
            (b"permissions-policy", b"camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
        ]
        if self._config.scheme == "https":
            wanted.append((b"strict-transport-security", b"max-age=31536000"))
        return [(name, value) for name, value in wanted if name not in have]


def parse_headers(raw: list[tuple[bytes, bytes]]) -> dict[str, str]:
    """Return headers by small name; two of one name as one value, which then equals nothing that is believed."""
    headers: dict[str, str] = {}
    for name_bytes, value in raw:
        name = name_bytes.decode("latin-1").lower()
        headers[name] = f"{headers[name]}, {value.decode('latin-1')}" if name in headers else value.decode("latin-1")
    return headers


def _bracket(name: str) -> str:
    return f"[{name}]" if ":" in name else name


async def _read_body(receive: Receive) -> bytes:
    """Return the whole body.

    Raises:
        Invalid: It is beyond the limit.
        ClientDisconnect: It was cut short.
    """
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body += message.get("body", b"")
        if len(body) > BODY_LIMIT_BYTES:
            raise Invalid("The request is too large.", why=f"The limit is {BODY_LIMIT_BYTES // 1024} KiB.")
        if not message.get("more_body"):
            return bytes(body)


def _count(receive: Receive) -> Receive:
    taken = 0

    async def count() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > UPLOAD_LIMIT_BYTES:
            raise Invalid("The file is too large.", why=f"The limit is {UPLOAD_LIMIT_BYTES // 1_000_000} MB.")
        return message

    return count


def _replay(body: bytes, receive: Receive) -> Receive:
    given = False

    async def replay() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


def render_csp(config: Config, *, form_action: str = "'self'", styles: str = "'self'") -> str:
    """Return the Content-Security-Policy of a page: nothing but what the portal itself serves, and no inline script.

    Args:
        config: The settings.
        form_action: Where its forms may go; the page that leads into an app says the app's origin.
        styles: Where its styles come from; xterm.js puts its colours into a style element of its own, so the pages
            with a terminal, and they alone, add ``'unsafe-inline'``.
    """
    # A WebSocket of one's own origin is not 'self' in every browser, hence the schemes.
    sockets = [config.portal_origin.replace("http", "ws", 1)]
    if config.host in LOOPBACK_HOSTS and not config.public_url:
        scheme = sockets[0].partition(":")[0]
        sockets += [f"{scheme}://{name}:{config.port}" for name in ("localhost", "127.0.0.1")]
    return (
        f"default-src 'none'; script-src 'self'; style-src {styles}; img-src 'self' data: blob:; font-src 'self'; "
        f"connect-src 'self' {' '.join(dict.fromkeys(sockets))}; form-action {form_action}; base-uri 'none'; "
        "frame-ancestors 'none'"
    )
