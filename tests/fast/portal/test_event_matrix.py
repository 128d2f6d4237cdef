"""Every route of events times everybody who may come; and what of the whole portal is a participant's."""

from __future__ import annotations

import itertools
import secrets
from datetime import timedelta
from typing import Any

import pytest
from event_matrix import BODIES, EVENT_ROWS, FILES, WHO
from portal_rig import World
from test_portal_matrix import ROWS, WORDS, ask_as

from portico.model import EventApp, EventSettings, now

numbers = itertools.count()
LOGO = b"\x89PNG\r\n\x1a\n" + b"\0" * 10


def make_event(world: World) -> tuple[str, str]:
    """Return the slug of an open event, and the name of a seat that somebody sits on; another one is free."""
    slug, at, olga = f"event-{next(numbers)}", now(), world.identify("olga")
    settings = EventSettings(apps=(EventApp("shell"),), wall=True)
    world.run(world.events.create(olga, slug, "T", at - timedelta(hours=1), at + timedelta(hours=1), settings, 2))
    world.run(world.events.keeper.turn())
    world.run(world.events.open(olga, slug))
    world.run(world.events.set_logo(olga, slug, LOGO))
    token = secrets.token_urlsafe(32)
    claim = world.run(world.events.claims.register(slug, token, {}, [], "192.0.2.1", "Firefox/1"))
    return slug, claim.seat_name


def fill(value: object, values: dict[str, str]) -> object:
    return value.format(**values) if isinstance(value, str) else value


def ask(world: World, row: str, who: str) -> Any:
    """Return the answer to one request of somebody about an event of Olga's that is made for it."""
    method, path = row.split()
    slug, seat = make_event(world)
    number = next(numbers)
    values = {"slug": slug, "name": seat, "app_id": "shell", "step": "close", "action": "stop", "new": f"new-{number}"}
    values |= {"account": f"guest{number}", "token": secrets.token_urlsafe(32)}
    proof: dict[str, Any] = {}
    if who == "token":
        proof["bearer"] = world.make_token("olga")
    elif who != "anyone":
        name = {"seat": seat, "admin": "root-of-all"}.get(who, who)
        proof["cookie"] = world.sign_in(make_event(world)[1] if who == "guest" else name)
    more: dict[str, Any] = {}
    body = {name: fill(value, values) for name, value in BODIES.get(row, {}).items()}
    if row in FILES:
        more["files"] = {"file": ("a.txt", FILES[row])}
    elif method in ("POST", "PATCH"):
        more = {"json": body} if path.startswith("/api/") and row in BODIES else {"data": body}
    return world.ask(method, path.format(**values), **proof, **more)


@pytest.mark.parametrize("row", EVENT_ROWS)
def test_each_gets_exactly_what_the_row_says(world: World, row: str) -> None:
    if not any(user.name == "otto" for user in world.accounts.list_users(world.identify("root-of-all"))):
        world.add_user("otto", world.accounts.get_user("olga").role)
    found = {}
    for who in WHO:
        with world.store.begin() as tx:
            tx.delete_failures(now() + timedelta(hours=1))
        answer = ask(world, row, who)
        location = answer.headers.get("location", "")
        to_sign_in = answer.status_code == 303 and "/sign-in" in location
        found[who] = "sign-in" if to_sign_in else WORDS.get(answer.status_code, "bad")
        assert answer.status_code < 500 or answer.status_code == 503, answer.text
    assert found == dict(zip(WHO, EVENT_ROWS[row].split(), strict=True))


PARTICIPANTS = {
    "GET /", "GET /sign-in", "POST /sign-in", "POST /sign-out", "GET /feed", "GET /notices", "GET /apps/{app_id}/icon",
    "POST /notices/{notice_id}/forget", "GET /sessions/{session_id}", "GET /sessions/{session_id}/log",
    "POST /sessions/{session_id}/extend", "POST /sessions/{session_id}/forget", "POST /sessions/{session_id}/connect",
    "POST /sessions/{session_id}/stop", "POST /sessions/{session_id}/control/agree",
    "POST /sessions/{session_id}/control/refuse", "POST /sessions/{session_id}/control/stop", "GET /enrol", "POST /enrol", "POST /enrol/name", "POST /_portico/enter",
    "GET /api/docs", "GET /api/v1/openapi.json", "GET /api/v1/health", "GET /api/v1/me", "GET /api/v1/feed",
    "GET /api/v1/notices", "GET /api/v1/sessions", "GET /api/v1/sessions/{session_id}",
    "GET /api/v1/sessions/{session_id}/log", "POST /api/v1/sessions/{session_id}/stop",
    "POST /api/v1/sessions/{session_id}/extend",
    # Nobody is asked who they are here; to confirm a login is for others.
    "POST /api/v1/ssh/login", "POST /api/v1/ssh/login/collect", "GET /api/v1/ssh/trust",
}  # fmt: skip
"""What is not for participants is no for them; of these the things of others do not exist for them."""


@pytest.mark.parametrize("row", ROWS)
def test_a_participant_reaches_their_own_and_nothing_else(
    world: World, row: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if row.endswith("/feed"):
        monkeypatch.setattr(world.fastapi.state.context.feeds, "_closed", True)
    answer = ask_as(world, row, make_event(world)[1])
    if row in PARTICIPANTS:
        assert answer.status_code != 403, answer.text
        if "{session_id}" in row or "{notice_id}" in row:
            assert answer.status_code == 404, "it is alice's"
    else:
        assert answer.status_code == 403 and "participants" in answer.text, row


def test_a_participants_process_is_no_more_than_its_participant(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from portal_rig import UIDS

    seat = make_event(world)[1]
    monkeypatch.setitem(UIDS, 20003, seat)
    assert world.ask("GET", "/api/v1/me", peer_uid=20003).json()["role"] == "participant"
    consent = f"/api/v1/sessions/{'a' * 12}/asks/1"  # what an organiser's start command would like to answer
    for method, path in (
        ("POST", "/api/v1/sessions"), ("POST", "/api/v1/tokens"), ("GET", "/api/v1/apps"), ("POST", consent)
    ):  # fmt: skip
        assert world.ask(method, path, peer_uid=20003, json={}).status_code == 403
