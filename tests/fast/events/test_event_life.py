"""The life of events: who may, what may be so, what ends and is removed, and what the audit log says of it."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from event_rig import SETTINGS, EventWorld

from portico.errors import Conflict, Forbidden, Invalid, NotFound, PorticoError, Unavailable
from portico.model import EventApp, EventField, EventSettings, EventState, FieldKind, Role, SeatState, SessionState, now


def create(world: EventWorld, who: str = "olga", slug: str = "school", **changes: Any) -> Any:
    at = now()
    given = {"title": "T", "begins": at, "ends": at + timedelta(hours=1), "settings": EventSettings()} | changes
    return world.run(world.events.create(world.identify(who), slug, **given))


def test_organisers_and_admins_make_events_and_nobody_else(world: EventWorld) -> None:
    with pytest.raises(Forbidden):
        create(world, "alice")
    assert create(world, "olga").organiser_name == "olga"
    assert create(world, "root-of-all", "second").organiser_name == "root-of-all"
    assert create(world, "root-of-all", "third", organiser_name="olga").organiser_name == "olga"
    with pytest.raises(Forbidden):
        create(world, "olga", "fourth", organiser_name="otto")
    with pytest.raises(Invalid):
        create(world, "root-of-all", "fifth", organiser_name="nobody-here")
    listed = {name: len(world.run(world.events.list_events(world.identify(name)))) for name in ("olga", "otto")}
    assert listed == {"olga": 2, "otto": 0}
    assert len(world.run(world.events.list_events(world.identify("root-of-all")))) == 3


def test_another_organiser_reaches_nothing_of_it(world: EventWorld) -> None:
    event = world.make_event(seats=1)
    world.claim()
    otto, events = world.identify("otto"), world.events
    attempts = [
        events.get_event(otto, "school"),
        events.list_registrations(otto, "school"),
        events.change(otto, "school", "T", event.begins, event.ends, SETTINGS),
        events.open(otto, "school"),
        events.close(otto, "school"),
        events.end(otto, "school"),
        events.remove(otto, "school", early=True),
        events.list_removal(otto, "school"),
        events.set_logo(otto, "school", b""),
        events.add_handout(otto, "school", "a.txt", b""),
        events.list_handouts(otto, "school"),
        events.remove_handout(otto, "school", "a.txt"),
        events.seats.list_seats(otto, "school"),
        events.seats.add(otto, "school", 1),
        events.seats.remove(otto, "school", "ev1-01"),
        events.seats.renew_secrets(otto, "school"),
        events.seats.import_list(otto, "school", "account,password\na1,longenough\n"),
        events.seats.export_list(otto, "school"),
        events.seats.export_seats(otto, "school"),
    ]
    before = world.audit()
    for attempt in attempts:
        with pytest.raises(NotFound):
            world.run(attempt)
    assert world.audit() == before, "nothing was changed"


def test_an_organiser_who_is_none_any_more_has_no_event(world: EventWorld) -> None:
    world.make_event(seats=0)
    world.accounts.set_role(world.identify("root-of-all"), "olga", Role.USER)
    with pytest.raises(NotFound):
        world.run(world.events.get_event(world.identify("olga"), "school"))


BAD: list[dict[str, Any]] = [
    {"slug": "../etc"}, {"slug": "a/b"}, {"slug": "New"}, {"slug": "new"}, {"slug": "x" * 41}, {"slug": "-ab"},
    {"slug": ""}, {"title": ""}, {"title": "a\nb"}, {"title": "x" * 101}, {"seats": 1001}, {"seats": -1},
    {"ends": now() - timedelta(days=1)}, {"ends": now() + timedelta(days=400)}, {"ends": now().replace(tzinfo=None)},
    {"settings": EventSettings(colour="red")}, {"settings": EventSettings(second_colour="#12345;}")},
    {"settings": EventSettings(apps=(EventApp("no-such-app"),))},
    {"settings": EventSettings(apps=(EventApp("../x"),))},
    {"settings": EventSettings(apps=(EventApp("shell"), EventApp("shell")))},
    {"settings": EventSettings(apps=(EventApp("shell", cores=float("nan")),))},
    {"settings": EventSettings(fields=(EventField("a", "A"), EventField("a", "B")))},
    {"settings": EventSettings(fields=(EventField("a b", "A"),))},
    {"settings": EventSettings(fields=(EventField("a", "A", FieldKind.CHOICE),))},
    {"settings": EventSettings(fields=(EventField("a", "A", FieldKind.NUMBER),))},
    {"settings": EventSettings(texts=(("", "text"),))},
    {"settings": EventSettings(texts=(("Terms", "x" * 50_001),))},
    {"settings": EventSettings(welcome="x" * 20_001)},
    {"settings": EventSettings(fetch_hours=float("nan"))},
]  # fmt: skip


@pytest.mark.parametrize("bad", BAD, ids=range(len(BAD)))
def test_what_an_event_can_not_be(world: EventWorld, bad: dict[str, Any]) -> None:
    with pytest.raises(Invalid) as caught:
        create(world, **{"slug": "school"} | bad)
    assert caught.value.field
    assert world.run(world.events.list_events(world.olga)) == []


def test_seats_are_users_with_accounts_made_ahead(world: EventWorld) -> None:
    world.make_event(seats=3)
    views = world.run(world.events.seats.list_seats(world.olga, "school"))
    assert [(view.seat.name, view.seat.state, view.seat.trouble) for view in views] == [
        (f"ev1-{number:02}", SeatState.FREE, "") for number in (1, 2, 3)
    ]
    assert sorted(world.machine.made) == ["ev1-01", "ev1-02", "ev1-03"]
    assert world.accounts.get_user("ev1-01").role is Role.PARTICIPANT
    said = world.audit()
    assert ("olga", "event:create", "school") in said and ("olga", "seat:add", "school") in said
    assert ("portico", "user:add", "ev1-02") in said and ("olga", "event:open", "school") in said


def test_a_seat_whose_account_fails_says_why_and_is_made_later(world: EventWorld, monkeypatch: Any) -> None:
    async def fail(name: str) -> None:
        if name == "ev1-01" and broken:
            raise Unavailable("No room.", why="The disk is full.")
        world.machine.made.append(name)

    broken = True
    monkeypatch.setattr(world.machine, "make", fail)
    world.make_event(seats=2)
    seats = {v.seat.name: v.seat for v in world.run(world.events.seats.list_seats(world.olga, "school"))}
    assert seats["ev1-01"].state is SeatState.MAKING and "The disk is full." in seats["ev1-01"].trouble
    assert seats["ev1-02"].state is SeatState.FREE, "one seat's trouble is no other's"
    broken = False
    world.turn()
    assert "ev1-01" not in world.machine.made, "not in each turn"
    world.events.keeper._again.clear()
    world.turn()
    seats = {v.seat.name: v.seat for v in world.run(world.events.seats.list_seats(world.olga, "school"))}
    assert seats["ev1-01"].state is SeatState.FREE and seats["ev1-01"].trouble == ""


def test_nobodys_account_becomes_a_guests(world: EventWorld) -> None:
    world.make_event(seats=0)
    text = "account,password\ndaemon1,long enough\n"
    world.run(world.events.seats.import_list(world.olga, "school", text))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("portico.events.keeper._has_account", lambda name: name == "daemon1")
        world.turn()
    seat = world.run(world.events.seats.list_seats(world.olga, "school"))[0].seat
    assert seat.state is SeatState.MAKING and "already" in seat.trouble
    assert world.machine.made == []
    with pytest.raises(NotFound):
        world.accounts.get_user("daemon1")


def test_hand_outs_and_the_start_command_reach_each_home(world: EventWorld) -> None:
    settings = replace(SETTINGS, start_command="mkdir course && echo $HOME > course/where")
    at = now()
    events = world.events
    world.run(events.create(world.olga, "school", "S", at, at + timedelta(hours=1), settings))
    world.run(events.add_handout(world.olga, "school", "Übung 1.txt", b"hello"))
    world.run(events.seats.add(world.olga, "school", 1))
    world.turn()
    home = world.machine.homes / "ev1-01"
    assert (home / "Übung 1.txt").read_bytes() == b"hello"
    assert (home / "course/where").read_text().strip() == str(home)
    world.run(
        events.change(
            world.olga,
            "school",
            "S",
            at,
            at + timedelta(hours=1),
            replace(settings, start_command="echo oh >&2; false"),
        )
    )
    world.run(events.seats.add(world.olga, "school", 1))
    world.turn()
    seat = world.run(events.seats.list_seats(world.olga, "school"))[1].seat
    assert seat.state is SeatState.FREE and "Start command" in seat.trouble and "oh" in seat.trouble


@pytest.mark.parametrize("name", ["../x", "a/b", ".profile", "", "a\0b", "a\nb", "..", "x" * 101, "a\\b"])
def test_a_hand_out_has_no_path_parts(world: EventWorld, name: str) -> None:
    world.make_event(seats=0)
    with pytest.raises(Invalid):
        world.run(world.events.add_handout(world.olga, "school", name, b""))


def test_a_logo_is_a_picture(world: EventWorld) -> None:
    event = world.make_event(seats=0)
    png = b"\x89PNG\r\n\x1a\n" + b"\0" * 20
    for bad in (b"<svg onload=alert(1)>", b"GIF89a", b"<!doctype html>", b"RIFF1234WAVE", png + b"\0" * 300_000):
        with pytest.raises(Invalid):
            world.run(world.events.set_logo(world.olga, "school", bad))
    world.run(world.events.set_logo(world.olga, "school", png))
    assert world.run(world.events.read_logo(event)) == ("image/png", png)
    world.run(world.events.set_logo(world.olga, "school", b"RIFF1234WEBPVP8 "))
    assert world.run(world.events.read_logo(event)) == ("image/webp", b"RIFF1234WEBPVP8 ")
    world.run(world.events.set_logo(world.olga, "school", b""))
    assert world.run(world.events.read_logo(event)) is None


def test_removing_a_seat_really_removes(world: EventWorld) -> None:
    cuts: list[str] = []
    world.accounts.on_cut = cuts.extend
    world.make_event(seats=2)
    name = world.claim().seat_name
    token = world.sign_in(name)
    session = world.run(world.events.desk.start(world.seat(name), "school", "shell"))
    assert (world.machine.homes / name).is_dir()
    world.run(world.events.seats.remove(world.olga, "school", name))
    assert f"user:{name}" in cuts
    with pytest.raises(PorticoError):
        world.accounts.authenticate(token, "")
    with pytest.raises(NotFound):
        world.run(world.events.seats.remove(world.olga, "school", name))
    end_soon(world)
    world.turn()
    with pytest.raises(NotFound):
        world.accounts.get_user(name)
    assert name not in world.machine.made and not (world.machine.homes / name).exists()
    with world.store.read() as tx:
        assert tx.find_session(session.id) is None and tx.find_seat(name) is None
    world.run(world.events.seats.add(world.olga, "school", 1))
    names = [view.seat.name for view in world.run(world.events.seats.list_seats(world.olga, "school"))]
    assert names == ["ev1-02", "ev1-03"], "a name is never given again"


def end_soon(world: EventWorld) -> None:
    """Have all sessions be ended already: here no keeper of sessions runs."""
    with world.store.begin() as tx:
        for session in tx.list_live_sessions():
            tx.save_session(replace(session, state=SessionState.ENDED))


def test_an_event_ends_by_itself_and_stops_what_runs(world: EventWorld, monkeypatch: Any) -> None:
    monkeypatch.setattr("portico.sessions.service.STOP_ALL_S", 0.05)
    world.make_event(seats=2)
    name = world.claim().seat_name
    session = world.run(world.events.desk.start(world.seat(name), "school", "shell"))
    world.events.keeper._clock = lambda: now() + timedelta(hours=6)
    world.turn()
    event = world.run(world.events.get_event(world.olga, "school"))
    assert event.state is EventState.ENDED and event.ended is not None
    assert event.summary["seats"] == 2 and event.summary["seats taken"] == 1
    assert event.summary["sessions of shell"] == 1
    world.turn()
    with world.store.read() as tx:
        found = tx.find_session(session.id)
        assert found and "end" in found.waiting_for
    assert ("portico", "event:end", "school") in world.audit()


def test_the_end_and_the_removal(world: EventWorld) -> None:
    world.make_event(seats=2)
    name = world.claim().seat_name
    world.run(world.events.add_handout(world.olga, "school", "a.txt", b"1"))
    removal = world.run(world.events.list_removal(world.olga, "school"))
    assert removal.accounts == ("ev1-01", "ev1-02") and removal.registrations == 1 and removal.files == ("a.txt",)
    with pytest.raises(Conflict):
        world.run(world.events.remove(world.olga, "school", early=True))  # it goes on
    world.run(world.events.end(world.olga, "school"))
    first_end = world.run(world.events.get_event(world.olga, "school")).ended
    world.run(world.events.end(world.olga, "school"))
    assert world.run(world.events.get_event(world.olga, "school")).ended == first_end
    for attempt in (
        world.events.open(world.olga, "school"),
        world.events.close(world.olga, "school"),
        world.events.seats.add(world.olga, "school", 1),
        world.events.set_logo(world.olga, "school", b""),
    ):
        with pytest.raises(Conflict):
            world.run(attempt)
    with pytest.raises(Conflict) as caught:
        world.run(world.events.remove(world.olga, "school"))
    assert "fetch" in caught.value.why
    chunks = world.run(collect(world, name))
    assert chunks[:2] == b"\x1f\x8b", "participants can still fetch their folder"
    world.events._clock = lambda: now() + timedelta(hours=100)
    event = world.run(world.events.remove(world.olga, "school"))
    assert event.state is EventState.REMOVED and event.summary["registrations"] == 1
    world.turn()
    assert world.machine.made == []
    with world.store.read() as tx:
        assert tx.list_seats(event.id) == [] and tx.list_registrations(event.id) == []
        assert tx.list_event_files(event.id, "handout") == []
        assert "Ada" not in str(tx.find_event("school"))


async def collect(world: EventWorld, name: str) -> bytes:
    return b"".join([chunk async for chunk in await world.events.desk.archive(world.seat(name), "school")])


def test_without_root_there_are_no_seats(world: EventWorld, monkeypatch: Any) -> None:
    config = replace(world.config, multi_user=False)
    monkeypatch.setattr(world.events.seats, "_config", config)
    with pytest.raises(Conflict):
        create(world, seats=1)
    assert create(world).title == "T"


def test_the_keeper_survives_what_fails(world: EventWorld, monkeypatch: Any) -> None:
    turns = itertools.count()

    async def turn() -> None:
        if next(turns) == 0:
            raise Unavailable("The database is busy.")

    async def run() -> None:
        task = asyncio.create_task(world.events.run())
        world.events.keeper.wake()
        while next(turns) < 4:
            world.events.keeper.wake()
            await asyncio.sleep(0.01)
        task.cancel()

    monkeypatch.setattr(world.events.keeper, "_begin", turn)
    world.run(run())


def test_a_seat_whose_user_was_removed_by_an_admin_is_given_to_nobody(world: EventWorld) -> None:
    world.make_event(seats=2)
    world.run(world.accounts.remove_user(world.identify("root-of-all"), "ev1-01", True))
    world.turn()
    assert [view.seat.name for view in world.run(world.events.seats.list_seats(world.olga, "school"))] == ["ev1-02"]
    assert world.claim().seat_name == "ev1-02"


def test_a_slow_start_command_holds_up_neither_others_nor_a_removal(world: EventWorld) -> None:
    settings = replace(SETTINGS, start_command='[ "${HOME##*-}" != 01 ] || sleep 60')
    at = now()
    world.run(world.events.create(world.olga, "school", "S", at, at + timedelta(hours=1), settings, 3))

    async def go() -> None:
        task = asyncio.create_task(world.events.run())

        async def wait(states: dict[str, SeatState]) -> None:
            async with asyncio.timeout(10):
                while {
                    v.seat.name: v.seat.state for v in await world.events.seats.list_seats(world.olga, "school")
                } != states:
                    await asyncio.sleep(0.02)

        await wait({"ev1-01": SeatState.MAKING, "ev1-02": SeatState.FREE, "ev1-03": SeatState.FREE})
        await world.events.seats.remove(world.olga, "school", "ev1-01")
        await wait({"ev1-02": SeatState.FREE, "ev1-03": SeatState.FREE})
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    world.run(go())


def test_a_defect_is_one_seats_trouble(world: EventWorld, monkeypatch: Any) -> None:
    make = world.machine.make

    async def fail(name: str) -> None:
        if name == "ev1-01":
            raise ZeroDivisionError("oh")
        await make(name)

    monkeypatch.setattr(world.machine, "make", fail)
    world.make_event(seats=2)
    seats = {v.seat.name: v.seat for v in world.run(world.events.seats.list_seats(world.olga, "school"))}
    assert "ZeroDivisionError" in seats["ev1-01"].trouble and seats["ev1-02"].state is SeatState.FREE
