"""What every request passes before anything else looks at it: where it came in, which origin sent it, and headers.

An unsafe request of a browser must say that it comes from the portal's own pages: exact Origin, and Sec-Fetch-Site
where the browser sends it. That is why no form needs a token (docs/decisions/0001-origin-instead-of-csrf-token.md).
What apps serve has another origin, so an app's page can't act as the user.
"""

from __future__ import annotations

import json
import logging
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from portico.config import LOOPBACK_HOSTS, Config

log = logging.getLogger(__name__)

SAFE_METHODS: Final = frozenset({"GET", "HEAD"})
BODY_LIMIT_BYTES: Final = 256 * 1024
API: Final = "/api/v1/"
ENTRY: Final = "/_portico/enter"


class Guard:
    """ASGI middleware; sets ``scope["portico"]`` to {listener, address, scheme, peer_uid}.

    Args:
        app: What is guarded.
        config: The settings, for the portal's origin.
    """

    def __init__(self, app: ASGIApp, config: Config) -> None:
        self._app = app
        self._config = config
        self._csp = _render_csp(config)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        arrival = scope.setdefault("portico", {"socket": "portal", "peer_uid": -1})
        arrival["listener"] = headers.get("x-portico-listener", "portal")
        arrival["address"] = headers.get("x-forwarded-for", "")[:64]
        if why := self._find_fault(scope, headers, arrival):
            status, message = why
            log.info("refused %s %s: %s", scope["method"], scope["path"][:100], message)
            await _answer(send, status, message)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self._list_headers(message["headers"])]
            await send(message)

        await self._app(scope, _bound(receive), send_with_headers)

    def _find_fault(self, scope: Scope, headers: dict[str, str], arrival: dict[str, Any]) -> tuple[int, str] | None:
        path, method = scope["path"], scope["method"]
        if int(headers.get("content-length", "0") or 0) > BODY_LIMIT_BYTES:
            return 413, "The request is too large."
        if arrival["socket"] == "api":
            return None if path.startswith(API) else (404, "Only the REST API is served here.")
        if (arrival["listener"] == "apps") != (path == ENTRY):
            return 404, "There is no such page here."
        if method in SAFE_METHODS or headers.get("authorization", "").startswith("Bearer "):
            return None
        origin = headers.get("origin", "")
        if not self._is_own(origin):
            return 403, "This request did not come from the portal's own pages."
        if arrival["listener"] == "portal" and headers.get("sec-fetch-site", "same-origin") != "same-origin":
            return 403, "This request came from another site."
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
            (b"referrer-policy", b"strict-origin"),  # no-referrer would make the Origin of our own forms null
            (b"cross-origin-opener-policy", b"same-origin"),
            (b"cross-origin-resource-policy", b"same-origin"),
            (b"cache-control", b"no-store"),
            (b"permissions-policy", b"camera=(), geolocation=(), microphone=(), payment=(), usb=()"),
        ]
        if self._config.scheme == "https":
            wanted.append((b"strict-transport-security", b"max-age=31536000"))
        return [(name, value) for name, value in wanted if name not in have]


def _bracket(name: str) -> str:
    return f"[{name}]" if ":" in name else name


def _bound(receive: Receive) -> Receive:
    taken = 0

    async def bounded() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > BODY_LIMIT_BYTES:
            return {"type": "http.disconnect"}
        return message

    return bounded


def _render_csp(config: Config, form_action: str = "'self'") -> bytes:
    # xterm.js puts its colours into a style element of its own, hence unsafe-inline for styles, and styles alone.
    # A WebSocket of one's own origin is not 'self' in every browser, hence the schemes.
    socket = config.portal_origin.replace("http", "ws", 1)
    loopback = " ws://localhost:* ws://127.0.0.1:*" if config.host in LOOPBACK_HOSTS else ""
    return (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
        f"font-src 'self'; connect-src 'self' {socket}{loopback}; form-action {form_action}; "
        "base-uri 'none'; frame-ancestors 'none'"
    ).encode()


def render_connect_csp(config: Config, apps_origin: str) -> str:
    """Return the policy of the one page whose form goes to an app's origin."""
    return _render_csp(config, apps_origin).decode()


async def _answer(send: Send, status: int, message: str) -> None:
    body = json.dumps({"error": {"code": "refused", "message": message}}).encode()
    headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
