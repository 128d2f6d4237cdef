"""A reservation of an event: one that there is, where its apps run, and that seats are sent to."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from event_rig import SETTINGS, EventWorld

from portico.errors import Invalid
from portico.model import now
from portico.sessions import Choice
from portico.sessions.placement import choose


@pytest.mark.parametrize("value", ["nope", "a\nb", "x" * 100])
def test_a_reservation_must_be_there(world: EventWorld, value: str) -> None:
    with pytest.raises(Invalid) as caught:
        world.make_event(settings=replace(SETTINGS, placement={"reservation": value}))
    assert caught.value.field == "reservation"
    with pytest.raises(Invalid):
        world.make_event(settings=replace(SETTINGS, placement={"colour": "red"}))
    with pytest.raises(Invalid):
        world.make_event(settings=replace(SETTINGS, cluster="nowhere"))


def test_one_that_has_ended_does_not_hold_up_other_changes(world: EventWorld) -> None:
    event = world.make_event()
    settings = replace(SETTINGS, placement={"reservation": "gone"})
    with world.store.begin() as tx:
        tx.save_event(replace(event, settings=settings))
    at = now()
    change = world.events.change(world.olga, "school", "Other title", at, at + timedelta(hours=1), settings)
    assert world.run(change).title == "Other title"
    text = world.ask("GET", "/events/school/edit", cookie=world.sign_in("olga")).text
    assert "gone (not there now)" in text


def test_a_choice_has_reservations() -> None:
    choices = [Choice("batch", reservations=("course",)), Choice("short")]
    assert choose(choices, {"reservation": "course"}) == {"reservation": "course"}
    for wanted in ({"reservation": "other"}, {"partition": "short", "reservation": "course"}):
        with pytest.raises(Invalid) as caught:
            choose(choices, wanted)
        assert caught.value.field == "reservation"
