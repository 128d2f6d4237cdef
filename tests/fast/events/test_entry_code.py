"""The entry code: without it no seat, guesses are counted and throttled, and it stands in no log and no address."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from event_rig import SETTINGS, EventWorld, make_form_token

from portico.accounts import entrance
from portico.errors import Conflict, Invalid, TooMany
from portico.events.seat_secrets import make_code, verify_code
from portico.events.settings import check_settings
from portico.events.sheet import render_invitation

CODE = "k7fm-w2qp"
WITH_CODE = replace(SETTINGS, entry_code=CODE)


def audit(world: EventWorld) -> list[tuple[str, str, str]]:
    with world.store.read() as tx:
        return [(e.target, e.detail, e.address) for e in tx.list_audit(1000) if e.action == "event:code-fail"]


def test_without_the_code_nobody_gets_a_seat(world: EventWorld) -> None:
    world.make_event(seats=2, settings=WITH_CODE)
    for code in ("wrong-code", CODE[:-1], CODE + "x", "\0", "é" * 100):
        with pytest.raises(Invalid) as caught:
            world.claim(code=code)
        assert caught.value.field == "code" and CODE not in str(caught.value)
    with pytest.raises(Invalid):
        world.claim()
    assert [seat.state.value for seat in world.run(read_seats(world))] == ["free", "free"]
    assert world.claim(code=CODE).seat_name == "ev1-01"


async def read_seats(world: EventWorld) -> Any:
    return [view.seat for view in await world.events.seats.list_seats(world.olga, "school")]


@pytest.mark.parametrize("typed", ["K7FM W2QP", " k7fmw2qp ", "k7fm-w2qp"])
def test_it_is_taken_as_people_type_it(world: EventWorld, typed: str) -> None:
    world.make_event(seats=1, settings=WITH_CODE)
    assert world.claim(code=typed).seat_name


def test_a_form_that_has_its_seat_needs_no_code(world: EventWorld) -> None:
    world.make_event(seats=1, settings=WITH_CODE)
    token = make_form_token()
    world.claim(token=token, code=CODE)
    assert world.claim(token=token).seat_name == "ev1-01", "another tab"
    waiting = make_form_token()
    assert world.claim(token=waiting, code=CODE).position == 1
    assert world.claim(token=waiting).position == 1, "the waiting list looks again by itself"


def test_a_seat_from_paper_needs_no_code(world: EventWorld) -> None:
    world.make_event(seats=1, settings=WITH_CODE)
    (made,) = world.run(world.events.seats.renew_secrets(world.olga, "school"))
    world.run(world.events.claims.sign_in("school", made.name, made.secret, "192.0.2.1", "F"))
    assert world.claim(who=world.seat(made.name)).seat_name == made.name


def test_guesses_are_counted_and_throttled_by_address(world: EventWorld) -> None:
    world.make_event(seats=1, settings=WITH_CODE)
    for _ in range(entrance.FAILURES_PER_ADDRESS):
        with pytest.raises(Invalid):
            world.claim(code="guess-guess")
    with pytest.raises(TooMany):
        world.claim(code="guess-guess")
    with pytest.raises(TooMany):
        world.claim(code=CODE)
    rows = audit(world)
    assert len(rows) == entrance.FAILURES_PER_ADDRESS and rows[0] == (
        "school",
        "50 lately from this address",
        "192.0.2.9",
    )
    assert not any("guess" in part or CODE in part for row in rows for part in row)
    claimed = world.run(
        world.events.claims.register(
            "school", make_form_token(), {"name": "Ada"}, ["Terms"], "192.0.2.10", "F", None, CODE
        )
    )
    assert claimed.seat_name, "others are not locked out"


def test_an_empty_field_is_no_guess(world: EventWorld) -> None:
    world.make_event(seats=1, settings=WITH_CODE)
    with pytest.raises(Invalid) as caught:
        world.claim(code="  ")
    assert caught.value.field == "code" and audit(world) == []


def test_a_closed_event_tells_nothing_of_its_code(world: EventWorld) -> None:
    world.make_event(seats=1, settings=WITH_CODE)
    world.run(world.events.close(world.olga, "school"))
    for code in ("wrong-code", CODE):
        with pytest.raises(Conflict):
            world.claim(code=code)
    assert audit(world) == []


@pytest.mark.parametrize("code", ["short", "- - - - - -", "x" * 41, "line\nbreak", " k7fm-w2qp", "tab\tcode1"])
def test_a_code_is_checked(code: str) -> None:
    with pytest.raises(Invalid) as caught:
        check_settings(replace(WITH_CODE, entry_code=code), ["shell", "screen"])
    assert caught.value.field == "entry_code"


def test_codes_are_made_and_compared() -> None:
    made = {make_code() for _ in range(100)}
    assert len(made) == 100 and all(len(code) == 9 and verify_code(code.upper(), code) for code in made)
    assert not verify_code("", CODE)


def test_the_pages(world: EventWorld) -> None:
    event = world.make_event(seats=1, settings=replace(WITH_CODE, entry_code="für alle"))
    origin = world.config.portal_origin
    assert render_invitation(origin, event) == f"{origin}/e/school#f%C3%BCr%20alle"
    for path in ("/e/school", "/e/school/register"):
        text = world.ask("GET", path).text
        assert "entry.js" in text and "für alle" not in text
    text = world.ask("GET", "/events/school", cookie=world.sign_in("olga")).text
    assert "für alle" in text and "#f%C3%BCr%20alle" in text
    form = {"token": make_form_token(), "field-name": "Ada", "accept-0": "1", "code": "other code"}
    answer = world.ask("POST", "/e/school/register", data=form)
    assert "The code is wrong" in answer.text and 'name="code" value="other code"' in answer.text
    answer = world.ask("POST", "/e/school/register", data=form | {"code": "FÜR ALLE"})
    assert answer.status_code == 303 and answer.headers["location"] == "/e/school/card"
