"""The few small pages that the gateway says by itself: what happened, why, and what to do next."""

from __future__ import annotations

import html
from typing import Final

from portico.errors import PorticoError
from portico.gateway.head import Header

STATUS: Final = {
    "invalid": 400,
    "not-signed-in": 401,
    "forbidden": 403,
    "not-found": 404,
    "conflict": 409,
    "too-many": 429,
    "refused": 502,
    "unavailable": 503,
    "internal": 500,
}
"""HTTP status by error code."""

_WHAT: Final = {
    400: "This request is not understood.",
    405: "This is not done here.",
    408: "The request came too slowly.",
    413: "This is too large.",
    421: "This server is not known by that name.",
    426: "This browser speaks another WebSocket version.",
    431: "The request's header is too large.",
    502: "The program behind this page did not answer properly.",
    504: "The program behind this page did not answer in time.",
}
_NEXT: Final = {
    400: "Reload the page. If it happens again, delete this site's cookies.",
    413: "Send less at once.",
    421: "Use the address that your site gave you.",
    431: "Delete this site's cookies, and reload the page.",
    502: "Reload the page. If it happens again, look at the session's log in the portal.",
    504: "It may still be at work: reload the page in a while.",
}


def render_page(status: int, reason: str) -> tuple[list[Header], bytes]:
    """Return headers and body for a refusal; ``reason`` is a few words of ours."""
    return _render(_WHAT.get(status, "This request is refused."), reason, _NEXT.get(status, ""), retry=False)


def render_error(error: PorticoError) -> tuple[int, list[Header], bytes]:
    """Return status, headers and body for an error; a page about something that is away tries again by itself."""
    status = STATUS.get(error.code, 500)
    headers, body = _render(error.message, error.why, error.hint, retry=status == 503)
    if status in (429, 503):
        headers.append((b"Retry-After", b"%d" % max(1, round(error.retry_after_s or 2))))
    return status, headers, body


def _render(what: str, why: str, hint: str, *, retry: bool) -> tuple[list[Header], bytes]:
    if retry:
        hint = f"{hint} This page tries again by itself. What runs goes on.".strip()
    body = (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        + ("<meta http-equiv=refresh content=2>" if retry else "")
        + f"<title>{html.escape(what)}</title><h1>{html.escape(what)}</h1>"
        + "".join(f"<p>{html.escape(text)}</p>" for text in (why, hint) if text)
        + "</html>\n"
    ).encode()
    headers = [
        (b"Content-Type", b"text/html; charset=utf-8"),
        (b"Cache-Control", b"no-store"),
        (b"Content-Security-Policy", b"default-src 'none'; frame-ancestors 'none'"),
        (b"X-Content-Type-Options", b"nosniff"),
    ]
    return headers, body
