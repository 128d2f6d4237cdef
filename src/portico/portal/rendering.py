"""Templates: pages from values. Everything is escaped; nothing here decides anything."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from portico.accounts import Permission, may
from portico.errors import Conflict, Forbidden, Invalid, NotFound, NotSignedIn, PorticoError, TooMany, Unavailable
from portico.events.markdown import render_markdown
from portico.model import Identity, now
from portico.portal.context import get_context
from portico.sessions.reasons import BEGINS_AGAIN, describe_end

STATUS: Final[dict[type[PorticoError], int]] = {
    Invalid: 422,
    NotSignedIn: 401,
    Forbidden: 403,
    NotFound: 404,
    Conflict: 409,
    TooMany: 429,
    Unavailable: 503,
}


def get_status(error: PorticoError) -> int:
    """Return the HTTP status that belongs to an error."""
    return STATUS.get(type(error), 500)


def render_bytes(size: int) -> str:
    """Return a size for people, decimal: 2.5 GB."""
    if size < 1e5:
        return f"{size / 1e3:.3g} kB"
    return f"{size / 1e9:.3g} GB" if size >= 1e8 else f"{size / 1e6:.3g} MB"


def render_time(time: datetime | None) -> str:
    """Return a time in UTC; a script turns it into the reader's own."""
    return time.strftime("%Y-%m-%d %H:%M UTC") if time else ""


_BROWSERS: Final = (
    ("Edg/", "Edge"),
    ("OPR/", "Opera"),
    ("Firefox/", "Firefox"),
    ("Chrome/", "Chrome"),
    ("Safari/", "Safari"),
)
_SYSTEMS: Final = (
    ("Android", "Android"),
    ("iPhone", "iPhone"),
    ("iPad", "iPad"),
    ("Windows", "Windows"),
    ("Mac OS", "macOS"),
    ("CrOS", "ChromeOS"),
    ("Linux", "Linux"),
)


def render_browser(agent: str) -> str:
    """Return what a User-Agent header says, for people; it is only what the browser claims."""
    browser = next((name for mark, name in _BROWSERS if mark in agent), agent[:40] or "Unknown browser")
    system = next((name for mark, name in _SYSTEMS if mark in agent), "")
    return f"{browser} on {system}" if system else browser


def render_left(time: datetime | None) -> str:
    """Return how long it is until ``time``, for people."""
    if time is None:
        return ""
    minutes = max(0, int((time - now()).total_seconds() // 60))
    return f"{minutes // 60} h {minutes % 60:02} min" if minutes >= 60 else f"{minutes} min"


_environment = Environment(
    loader=PackageLoader("portico.portal"),
    autoescape=select_autoescape(default=True, default_for_string=True),
    undefined=StrictUndefined,
    auto_reload=False,  # else each page asks the disk for the age of every template
    trim_blocks=True,
    lstrip_blocks=True,
)


def render_duration(seconds: float | None) -> str:
    """Return a length of time for people; empty for none."""
    if seconds is None:
        return "no limit"
    minutes = int(seconds // 60)
    if minutes >= 48 * 60:
        return f"{minutes // 1440} d {minutes % 1440 // 60} h"
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    return f"{minutes} min {int(seconds % 60):02} s" if minutes else f"{int(seconds)} s"


_environment.filters |= {"duration": render_duration}
_environment.filters |= {"markdown": lambda text: Markup(render_markdown(text))}  # noqa: S704  (it is escaped there)
_environment.filters |= {"bytes": render_bytes, "time": render_time, "left": render_left, "browser": render_browser}
_environment.globals |= {
    "begins_again": BEGINS_AGAIN,
    "describe_end": describe_end,
    "Permission": Permission,
    "may": may,
}


def render(
    request: Request, template: str, who: Identity | None, *, error: PorticoError | None = None, **values: Any
) -> HTMLResponse:
    """Return a page; with ``error``, shown on the page with its status."""
    text = _environment.get_template(template).render(
        who=who,
        path=request.url.path,
        version=get_context(request).version,
        has_jobs=bool(get_context(request).jobs.clusters),
        error=error,
        **{"done": "", "given": {}, **values},
    )
    headers = {"Retry-After": str(int(error.retry_after_s))} if error and error.retry_after_s else None
    return HTMLResponse(text, status_code=get_status(error) if error else 200, headers=headers)
