"""What all pages hang on: their two routers, the types of what forms send, and the way on after a form."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from fastapi import APIRouter, Depends, Form
from fastapi.responses import RedirectResponse

from portico.model import Identity
from portico.portal.context import identify_browser

Who = Annotated[Identity, Depends(identify_browser)]
Text = Annotated[str, Form(max_length=1024)]

public = APIRouter(include_in_schema=False)
"""For whoever comes."""

router = APIRouter(include_in_schema=False, dependencies=[Depends(identify_browser)])
"""For who is signed in: no route can forget to ask."""


def find_safe_path(wanted: str) -> str:
    """Return ``wanted`` if it is a path on this portal as browsers read it, else the home page.

    Browsers take a backslash for a slash, and drop tabs and line breaks before they look (WHATWG URL, 4.4).
    """
    if not wanted.startswith("/") or wanted[1:2] in ("/", "\\") or any(ord(c) <= 32 or c == "\\" for c in wanted):
        return "/"
    parts = urlsplit(wanted)
    return wanted if not parts.scheme and not parts.netloc and len(wanted) < 500 else "/"


def see(path: str) -> RedirectResponse:
    """Return the way to another page, after something was done (RFC 9110, 15.4.4)."""
    return RedirectResponse(path, status_code=303)
