"""The rows of events: every route times everybody who may come, as in test_portal_matrix.py.

Columns: ``anyone``, ``alice`` (a user), ``otto`` (an organiser of other events), ``olga`` (whose event it is), ``seat``
(who sits there), ``guest`` (who sits in another event), ``admin``, ``token`` (Olga's API token).
"""

from __future__ import annotations

WHO = ("anyone", "alice", "otto", "olga", "seat", "guest", "admin", "token")

EVENT_ROWS = {
    "GET /events": "sign-in no ok ok no no ok sign-in",
    "POST /events": "sign-in no ok ok no no ok sign-in",
    "GET /events/new": "sign-in no ok ok no no ok sign-in",
    **{
        row: "sign-in none none ok no no ok sign-in"
        for row in (
            "GET /events/{slug}",
            "POST /events/{slug}",
            "GET /events/{slug}/edit",
            "POST /events/{slug}/do/{step}",
            "POST /events/{slug}/seats",
            "POST /events/{slug}/seats/{name}/remove",
            "POST /events/{slug}/seats/{name}/secret",
            "POST /events/{slug}/import",
            "POST /events/{slug}/list",
            "GET /events/{slug}/seats.csv",
            "GET /events/{slug}/archive",
            "POST /events/{slug}/sheet",
            "POST /events/{slug}/logo",
            "POST /events/{slug}/handouts",
            "POST /events/{slug}/handouts/remove",
            "GET /events/{slug}/remove",
            "GET /events/{slug}/wall",
            "POST /events/{slug}/all/{action}",
            "POST /events/{slug}/message",
        )
    },
    "POST /events/{slug}/seats/{name}/restart": "sign-in none none bad no no bad sign-in",  # nothing runs there
    "POST /events/{slug}/seats/{name}/help": "sign-in none none bad no no no sign-in",  # nor for an admin
    "POST /api/v1/events/{slug}/seats/{name}/help": "sign-in none none bad no no no bad",
    "POST /events/{slug}/remove": "sign-in none none bad no no bad sign-in",  # it goes on
    **{
        row: "ok ok ok ok ok ok ok ok"
        for row in (
            "GET /e/{slug}",
            "GET /e/{slug}/theme.css",
            "GET /e/{slug}/logo",
            "GET /e/{slug}/register",
            "POST /e/{slug}/register",
            "GET /e/{slug}/sign-in",
        )
    },
    "POST /e/{slug}/sign-in": " ".join(["sign-in"] * 8),  # with a wrong secret
    "GET /e/{slug}/card": "sign-in none none none ok none none sign-in",
    "GET /e/{slug}/home": "sign-in none none none ok none none sign-in",
    "POST /e/{slug}/apps/{app_id}": "sign-in none none none ok none none sign-in",
    "POST /e/{slug}/files": "sign-in none none none ok none none sign-in",
    "GET /e/{slug}/archive": "sign-in none none none ok none none sign-in",
    "GET /api/v1/events": "sign-in no ok ok no no ok ok",
    "POST /api/v1/events": "sign-in no ok ok no no ok ok",
    **{
        row: "sign-in none none ok no no ok ok"
        for row in (
            "GET /api/v1/events/{slug}",
            "PATCH /api/v1/events/{slug}",
            "POST /api/v1/events/{slug}/do/{step}",
            "GET /api/v1/events/{slug}/seats",
            "POST /api/v1/events/{slug}/seats",
            "DELETE /api/v1/events/{slug}/seats/{name}",
            "POST /api/v1/events/{slug}/secrets",
            "POST /api/v1/events/{slug}/import",
            "POST /api/v1/events/{slug}/export",
            "GET /api/v1/events/{slug}/registrations",
            "GET /api/v1/events/{slug}/removal",
            "GET /api/v1/events/{slug}/summary",
            "GET /api/v1/events/{slug}/archive",
            "POST /api/v1/events/{slug}/act",
            "POST /api/v1/events/{slug}/message",
        )
    },
    "DELETE /api/v1/events/{slug}": "sign-in none none bad no no bad bad",  # it goes on
}

TIMES = {"begins": "2027-03-01T08:00", "ends": "2027-03-01T18:00"}
API_TIMES = {"begins": "2027-03-01T08:00Z", "ends": "2027-03-01T18:00Z"}
BODIES: dict[str, dict[str, object]] = {
    "POST /events": {"slug": "{new}", "title": "T", "seats": "1", **TIMES},
    "POST /events/{slug}": {"title": "T", **TIMES},
    "POST /events/{slug}/seats": {"count": "1"},
    "POST /events/{slug}/message": {"text": "Lunch."},
    "POST /api/v1/events/{slug}/act": {"action": "stop"},
    "POST /api/v1/events/{slug}/message": {"text": "Lunch."},
    "POST /events/{slug}/import": {"list": "account,password\n{account},long enough\n"},
    "POST /events/{slug}/handouts/remove": {"name": "a.txt"},
    "POST /e/{slug}/register": {"token": "{token}"},
    "POST /e/{slug}/sign-in": {"name": "{name}", "secret": "wrong"},
    "POST /api/v1/events": {"slug": "{new}", "title": "T", **API_TIMES},
    "PATCH /api/v1/events/{slug}": {"title": "T"},
    "POST /api/v1/events/{slug}/seats": {"count": 1},
    "POST /api/v1/events/{slug}/secrets": {},
    "POST /api/v1/events/{slug}/import": {"list": "account,password\n{account},long enough\n"},
}
FILES = {
    "POST /events/{slug}/logo": b"\x89PNG\r\n\x1a\n",
    "POST /events/{slug}/handouts": b"hello",
    "POST /e/{slug}/files": b"hello",
}
