"""What of the portal is a participant's: a table of methods and paths, and nothing else.

A participant is a guest on a seat of an event. Their own pages are below ``/e/``; of the rest they need what shows a
session. Whatever is added to the portal is closed to them until it stands here. Whose session it is, the sessions say.
"""

from __future__ import annotations

import re
from typing import Final

from portico.errors import Forbidden
from portico.model import Identity, Role

_SESSION: Final = r"/sessions/[a-z0-9]+"
_OPEN: Final = re.compile(
    "|".join(
        (
            r"(GET|POST) /e/.*",
            r"GET /",
            r"GET /(sign-in|feed|notices)",
            r"POST /(sign-in|sign-out)",
            r"POST /notices/\d+/forget",
            r"GET /apps/[a-z0-9-]+/icon",
            rf"GET {_SESSION}(/log)?",
            rf"POST {_SESSION}/(connect|stop|extend|forget)",
            rf"POST {_SESSION}/control/(agree|refuse|stop)",  # an answer is given in a browser: not by a process
            r"GET /(enrol|api/docs)",
            r"POST /enrol(/name)?",
            r"GET /api/v1/(health|openapi\.json|me|feed|notices|sessions)",
            rf"GET /api/v1{_SESSION}(/log)?",
            rf"POST /api/v1{_SESSION}/(stop|extend)",
        )
    )
)


def require_open(who: Identity, method: str, path: str) -> None:
    """Do nothing if this request is for whoever asks, as far as their role decides it.

    Raises:
        Forbidden: They are a participant, and this is not a participant's.
    """
    if who.role is Role.PARTICIPANT and not _OPEN.fullmatch(f"{'GET' if method == 'HEAD' else method} {path}"):
        raise Forbidden("This is not for participants of an event.", hint="What the event offers is on your home page.")
