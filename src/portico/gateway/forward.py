"""Which headers go on, to the portal, to an app, and back: pure functions from headers to headers.

An app is a user's own program and may be hostile to everyone else, so no cookie or authorization of the portal
reaches it, and nothing it says may reach beyond its own path on the apps' origin.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from typing import Final

from portico.gateway.head import Header, Request, get_tokens

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


def make_portal_headers(request: Request, *, listener: str, address: str, scheme: str) -> list[Header]:
    """Return the headers of ``request`` as the portal gets them, without body framing."""
    return [
        (b"Host", request.get(b"host").encode("latin-1")),
        *_pass_on(request),
        (b"X-Portico-Listener", listener.encode()),
        (b"X-Forwarded-For", address.encode()),
        (b"X-Forwarded-Proto", scheme.encode()),
    ]


def make_app_headers(request: Request, *, address: str, scheme: str) -> list[Header]:
    """Return the headers of ``request`` as an app gets them, without body framing."""
    headers: list[Header] = [(b"Host", request.get(b"host").encode("latin-1"))]
    for name, value in _pass_on(request):
        key = name.lower()
        if key == b"authorization":
            continue
        if key == b"cookie":
            value = strip_cookies(value)
            if not value:
                continue
        headers.append((name, value))
    if request.upgrade:
        headers += [(b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]
    return [*headers, (b"X-Forwarded-For", address.encode()), (b"X-Forwarded-Proto", scheme.encode())]


def strip_cookies(value: bytes) -> bytes:
    """Return a Cookie header's value without the cookies of Portico; empty where none is left."""
    kept = [pair for part in value.split(b";") if (pair := part.strip(b" \t")) and not _PORTICO_COOKIE.match(pair)]
    return b"; ".join(kept)


def make_portal_answer_headers(headers: Sequence[Header]) -> list[Header]:
    """Return the headers of the portal's answer as the browser gets them, without body framing."""
    return list(_pass_back(headers))


def make_app_answer_headers(headers: Sequence[Header]) -> list[Header]:
    """Return the headers of an app's answer as the browser gets them, without body framing."""
    kept: list[Header] = []
    for name, value in _pass_back(headers):
        key = name.lower().replace(b"_", b"-")
        if key in _BEYOND_ITS_PATH or key.startswith(b"x-portico-"):
            continue
        if key == b"set-cookie":
            cookie = filter_set_cookie(value)
            if cookie is None:
                continue
            value = cookie
        kept.append((name, value))
    return kept


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


def make_switching_headers(headers: Sequence[Header]) -> list[Header]:
    """Return the headers of an app's 101 as the browser gets them."""
    return [*make_app_answer_headers(headers), (b"Connection", b"Upgrade"), (b"Upgrade", b"websocket")]


def _pass_on(request: Request) -> Iterable[Header]:
    named = set(get_tokens(request.headers, b"connection"))
    for name, value in request.headers:
        key = name.lower()
        if key in named or _is_kept_here(key):
            continue
        if key in _WEBSOCKET_REQUEST and not request.upgrade:
            continue
        yield name, value


@functools.lru_cache(1024)
def _is_kept_here(key: bytes) -> bool:
    """Return whether a request's header goes no further, by its name in lower case."""
    return key in HOP_BY_HOP or _OURS.match(key) is not None


def _pass_back(headers: Sequence[Header]) -> Iterable[Header]:
    named = set(get_tokens(headers, b"connection"))
    for name, value in headers:
        key = name.lower()
        if key not in HOP_BY_HOP and key not in named and key != b"content-length":
            yield name, value
