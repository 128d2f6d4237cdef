"""Which headers go on, to the portal, to an app, and back: pure functions from headers to the lines that they become.

An app is a user's own program and may be hostile to everyone else, so no cookie or authorization of the portal
reaches it, and nothing it says may reach beyond its own path on the apps' origin.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import Final

from portico.gateway.fields import Field
from portico.gateway.head import Request, Response, get

HOP_BY_HOP: Final = frozenset(
    {b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization", b"te"}
    | {b"trailer", b"transfer-encoding", b"upgrade", b"http2-settings"}
)
"""RFC 9110, 7.6.1, with the ones that were in use before it."""

_OURS: Final = re.compile(rb"(?:x[-_](?:portico|forwarded|real)[-_].*|forwarded|content[-_]length|host|expect)\Z")
_PORTICO_COOKIE: Final = re.compile(rb"(?:__(?:host|secure|http|host-http)-)?portico", re.IGNORECASE)
_WEBSOCKET_REQUEST: Final = frozenset(
    {b"sec-websocket-key", b"sec-websocket-version", b"sec-websocket-protocol", b"sec-websocket-extensions"}
)
_BEYOND_ITS_PATH: Final = frozenset(
    {b"clear-site-data", b"strict-transport-security", b"alt-svc", b"service-worker-allowed", b"public-key-pins"}
)
"""What an app's answer could say about the whole host, the portal's cookies included."""


def render_for_portal(request: Request, *, listener: str, address: str, scheme: str) -> bytes:
    """Return the lines of ``request``'s headers as the portal gets them, without body framing."""
    lines = [_render_for_portal(field) if field.to_portal is None else field.to_portal for field in _pass_on(request)]
    return b"".join((_render_host(request), *lines, _render_ours(address, scheme, listener)))


def render_for_app(request: Request, *, address: str, scheme: str) -> bytes:
    """Return the lines of ``request``'s headers as an app gets them, without body framing."""
    lines = [_render_for_app(field) if field.to_app is None else field.to_app for field in _pass_on(request)]
    if request.upgrade:
        lines += [_render(field) for field in _pass_on(request) if field.key in _WEBSOCKET_REQUEST]
        lines.append(b"Connection: Upgrade\r\nUpgrade: websocket\r\n")
    return b"".join((_render_host(request), *lines, _render_ours(address, scheme)))


@functools.lru_cache(1024)
def _render_ours(address: str, scheme: str, listener: str = "") -> bytes:
    told = f"X-Portico-Listener: {listener}\r\n" if listener else ""
    return f"{told}X-Forwarded-For: {address}\r\nX-Forwarded-Proto: {scheme}\r\n".encode("ascii")


def _render(field: Field) -> bytes:
    return b"%b: %b\r\n" % field


def _render_host(request: Request) -> bytes:
    return b"Host: %b\r\n" % get(request.headers, b"host")


def _render_for_portal(field: Field) -> bytes:
    is_kept = field.key in HOP_BY_HOP or field.key in _WEBSOCKET_REQUEST or _OURS.match(field.key)
    field.to_portal = b"" if is_kept else _render(field)
    return field.to_portal


def _render_for_app(field: Field) -> bytes:
    line = _render_for_portal(field)
    if field.key == b"authorization":
        line = b""
    elif field.key == b"cookie":
        kept = strip_cookies(field[1])
        line = b"%b: %b\r\n" % (field[0], kept) if kept else b""
    field.to_app = line
    return line


def strip_cookies(value: bytes) -> bytes:
    """Return a Cookie header's value without the cookies of Portico; empty where none is left."""
    kept = [pair for part in value.split(b";") if (pair := part.strip(b" \t")) and not _PORTICO_COOKIE.match(pair)]
    return b"; ".join(kept)


def render_portal_answer(response: Response) -> bytes:
    """Return the lines of the portal's answer's headers as the browser gets them, without body framing."""
    return b"".join([_render(field) for field in _pass_on(response) if not _is_of_connection(field)])


def render_app_answer(response: Response) -> bytes:
    """Return the lines of an app's answer's headers as the browser gets them, without body framing."""
    return b"".join(
        [_render_for_client(field) if field.to_client is None else field.to_client for field in _pass_on(response)]
    )


def render_switching(response: Response) -> bytes:
    """Return the lines of an app's 101's headers as the browser gets them."""
    return render_app_answer(response) + b"Connection: Upgrade\r\nUpgrade: websocket\r\n"


def _render_for_client(field: Field) -> bytes:
    name, value = field
    key: bytes = field.key.replace(b"_", b"-")
    line = _render(field)
    if _is_of_connection(field) or key in _BEYOND_ITS_PATH or key.startswith(b"x-portico-"):
        line = b""
    elif key == b"set-cookie":
        cookie = filter_set_cookie(value)
        line = b"%b: %b\r\n" % (name, cookie) if cookie is not None else b""
    field.to_client = line
    return line


def _is_of_connection(field: Field) -> bool:
    return field.key in HOP_BY_HOP or field.key == b"content-length"


def filter_set_cookie(value: bytes) -> bytes | None:
    """Return an app's Set-Cookie without Domain, or None where it may not be set at all.

    A cookie without a name is refused too: browsers send it back as its bare value, which could then look like
    one of ours (``=portico=x``).
    """
    pair, *attributes = value.split(b";")
    name, separator, _ = pair.partition(b"=")
    name = name.strip(b" \t")
    if not separator or not name or _PORTICO_COOKIE.match(name):
        return None
    kept = [one for one in attributes if one.partition(b"=")[0].strip(b" \t").lower() != b"domain"]
    return b";".join([pair, *kept])


def _pass_on(message: Request | Response) -> Iterable[Field]:
    """Return the headers that no Connection header names (RFC 9110, 7.6.1)."""
    if not message.connection or HOP_BY_HOP.issuperset(message.connection):
        return message.headers
    return [field for field in message.headers if field.key not in message.connection]
