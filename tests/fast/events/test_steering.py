"""What an organiser does while an event goes on: all at once, one again, a message, and the wall."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from event_rig import SETTINGS, EventWorld

from portico import wire
from portico.errors import Conflict, Forbidden, Invalid, NotFound
from portico.events.steering import Action
from portico.model import NoticeKind, SessionState, Via, now

WALL = replace(SETTINGS, wall=True)


def make_ready(world: EventWorld) -> None:
    """Have what was started be ready."""
    with world.store.begin() as tx:
        for session in tx.list_live_sessions():
            at = now()
            tx.save_session(replace(session, state=SessionState.READY, started=at, ready=at, ends=at))


def test_desktops_are_warm_before_anybody_sits_there(world: EventWorld) -> None:
    world.make_event(seats=4)
    done = world.run(world.events.steering.act(world.olga, "school", Action.WARM, "screen"))
    assert (done.count, done.troubles) == (4, ())
    again = world.run(world.events.steering.act(world.olga, "school", Action.WARM, "screen"))
    assert again.count == 0, "each has one already"
    name = world.claim().seat_name
    with world.store.read() as tx:
        (warm,) = tx.list_sessions(name)
    assert world.run(world.events.desk.start(world.seat(name), "school", "screen")).id == warm.id


def test_all_are_stopped_or_extended_or_only_some(world: EventWorld) -> None:
    world.make_event(seats=3)
    act = world.events.steering.act
    world.run(act(world.olga, "school", Action.WARM, "shell"))
    world.run(act(world.olga, "school", Action.WARM, "screen", ["ev1-01"]))
    make_ready(world)
    world.run(world.scheduler.query())
    assert world.run(act(world.olga, "school", Action.STOP, "screen")).count == 1
    assert world.run(act(world.olga, "school", Action.STOP, names=["ev1-02"])).count == 1
    extended = world.run(act(world.olga, "school", Action.EXTEND, names=["ev1-03"]))
    assert extended.count == 1
    with world.store.read() as tx:
        waiting = {session.user_name: session.waiting_for for session in tx.list_live_sessions()}
    assert "end" in waiting["ev1-02"] and "end" not in waiting["ev1-03"]
    assert ("olga", "event:act", "school") in world.audit()


def test_what_can_not_be_done_is_said_once(world: EventWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    world.make_event(seats=3)

    async def fail(*args: Any, **more: Any) -> None:
        raise Conflict("No room.", why="All cores are held.")

    monkeypatch.setattr(world.sessions, "start", fail)
    done = world.run(world.events.steering.act(world.olga, "school", Action.WARM, "shell"))
    assert (done.count, done.troubles) == (0, ("No room. All cores are held.",))


def test_nobody_elses_sessions_are_reached(world: EventWorld) -> None:
    world.make_event(seats=1)
    world.make_event("second", seats=1)
    other = world.claim("second").seat_name
    session = world.run(world.events.desk.start(world.seat(other), "second", "shell"))
    steering = world.events.steering
    for attempt in (
        steering.act(world.olga, "school", Action.STOP, names=[other]),
        steering.act(world.olga, "school", Action.STOP, names=["alice"]),
        steering.restart(world.olga, "school", other),
        steering.tell(world.olga, "school", "Hello", [other]),
        steering.act(world.identify("otto"), "second", Action.STOP),
        steering.tell(world.identify("otto"), "second", "Hello"),
        steering.list_wall(world.identify("otto"), "second"),
        steering.act(world.olga, "school", Action.WARM, "book"),
    ):
        with pytest.raises(NotFound):
            world.run(attempt)
    world.run(steering.act(world.olga, "school", Action.STOP))
    with world.store.read() as tx:
        found = tx.find_session(session.id)
    assert found and "end" not in found.waiting_for


def test_one_seat_is_started_again(world: EventWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portico.sessions.service.STOP_ALL_S", 0.05)
    world.make_event(seats=1)
    with pytest.raises(Conflict):
        world.run(world.events.steering.restart(world.olga, "school", "ev1-01"))
    world.run(world.events.steering.act(world.olga, "school", Action.WARM, "shell"))
    assert world.run(world.events.steering.restart(world.olga, "school", "ev1-01")) == ["Shell"]
    with world.store.read() as tx:
        assert len(tx.list_sessions("ev1-01")) == 2


def test_a_message_reaches_those_who_sit_there(world: EventWorld) -> None:
    world.make_event(seats=3)
    one, two = world.claim().seat_name, world.claim().seat_name
    tell = world.events.steering.tell
    assert world.run(tell(world.olga, "school", "Lunch <b>now</b>\nin the hall")) == 2
    assert world.run(tell(world.olga, "school", "Only you", [two])) == 1
    with world.store.read() as tx:
        assert [notice.text for notice in tx.list_notices(one, 9)] == ["Lunch <b>now</b> in the hall"]
        assert [notice.kind for notice in tx.list_notices(two, 9)] == [NoticeKind.MESSAGE] * 2
    page = world.ask("GET", "/e/school/home", cookie=world.sign_in(one)).text
    assert "Lunch &lt;b&gt;now&lt;/b&gt; in the hall" in page and "<b>now" not in page
    for bad in ("", "  ", "x" * 501, "a\x1b[31m"):
        with pytest.raises(Invalid):
            world.run(tell(world.olga, "school", bad))


def test_the_wall_shows_desktops_of_who_was_told(world: EventWorld) -> None:
    event = world.make_event(seats=2, settings=WALL)
    assert "The organiser will see your desktop." in world.ask("GET", "/e/school/register").text
    name = world.claim().seat_name
    assert "olga sees the desktops" in world.ask("GET", "/e/school/home", cookie=world.sign_in(name)).text
    desktop = world.run(world.events.desk.start(world.seat(name), "school", "screen"))
    world.run(world.events.desk.start(world.seat(name), "school", "shell"))
    make_ready(world)
    assert [s.id for _, s in world.run(world.events.steering.list_wall(world.olga, "school"))] == [desktop.id]
    page = world.ask("GET", "/events/school/wall", cookie=world.sign_in("olga")).text
    assert f'data-stream="/shared/{desktop.id}/stream"' in page and f"/sessions/{desktop.id}" not in page
    assert world.run(world.events.steering.list_wall(world.identify("root-of-all"), "school")) == []
    assert (name, "share:add", desktop.id) in world.audit()
    cuts: list[str] = []
    world.sessions.on_cut = cuts.extend
    world.run(world.events.change(world.olga, "school", "S", event.begins, event.ends, SETTINGS))
    assert [cut.partition(":")[0] for cut in cuts] == ["share"]
    with world.store.read() as tx:
        assert tx.list_shares(desktop.id) == []
    with pytest.raises(Conflict):
        world.run(world.events.steering.list_wall(world.olga, "school"))


def test_without_a_wall_nothing_is_shared(world: EventWorld) -> None:
    world.make_event(seats=1)
    name = world.claim().seat_name
    session = world.run(world.events.desk.start(world.seat(name), "school", "screen"))
    with world.store.read() as tx:
        assert tx.list_shares(session.id) == []
    assert world.seat(name).via is Via.COOKIE


def test_the_gateway_is_told_who_may_look_and_nobody_else(world: EventWorld) -> None:
    world.make_event(seats=2, settings=WALL)
    name, other = world.claim().seat_name, world.claim().seat_name
    desktop = world.run(world.events.desk.start(world.seat(name), "school", "screen"))
    make_ready(world)

    def route(who: str, kind: str) -> dict[str, Any]:
        """Return what the gateway is answered that asks for a stream of somebody."""
        request = {
            "listener": "portal", "method": "GET", "target": f"/{kind}/{desktop.id}/stream", "host": "localhost:8000",
            "scheme": "http", "address": "192.0.2.1", "upgrade": True,
            "headers": {"origin": "http://localhost:8000", "cookie": f"portico={world.sign_in(who)}"},
        }  # fmt: skip
        answer, fds = world.run(world.doors.route(request))
        wire.close_all(fds)
        return dict(answer)

    assert route(name, "sessions")["kind"] == "stream" and not route(name, "sessions")["view_only"]
    assert route("olga", "shared")["view_only"] is True
    for who, kind in (
        (other, "sessions"),
        (other, "shared"),
        ("otto", "shared"),
        ("olga", "sessions"),
        ("alice", "shared"),
    ):
        assert route(who, kind)["kind"] == "answer" and route(who, kind)["status"] in (403, 404), (who, kind)


def test_help_is_asked_by_the_organiser_of_those_who_sit_there(world: EventWorld) -> None:
    world.make_event(seats=2)
    world.make_event("second", seats=1)
    name = world.claim().seat_name
    (free,) = {"ev1-01", "ev1-02"} - {name}
    session = world.run(world.events.desk.start(world.seat(name), "school", "screen"))
    world.run(world.events.steering.act(world.olga, "school", Action.WARM, "screen", [free]))
    ask = world.events.steering.help
    with pytest.raises(Conflict):
        world.run(ask(world.olga, "school", name))  # it is not ready
    make_ready(world)
    for who in ("otto", "alice"):
        with pytest.raises(NotFound):
            world.run(ask(world.identify(who), "school", name))
    with pytest.raises(Forbidden):
        world.run(ask(world.identify("root-of-all"), "school", name))
    with pytest.raises(NotFound):
        world.run(ask(world.olga, "second", name))
    with pytest.raises(Conflict, match="Nobody sits"):
        world.run(ask(world.olga, "school", free))
    with pytest.raises(Conflict):
        world.run(ask(world.olga, "school", name, "a" * 12))
    assert world.run(ask(world.olga, "school", name)).id == session.id
    ((asked, _),) = world.run(world.sessions.control.list_mine(world.seat(name))).asks
    assert asked.viewer_name == "olga" and asked.brief, "there is no wall: she sees it only while she helps"
    cookies = {who: world.sign_in(who) for who in (name, "olga")}
    agree = f"/sessions/{session.id}/control/agree"
    form = {"ask_id": str(asked.id)}
    assert world.ask("POST", agree, cookie=cookies["olga"], data=form).status_code == 404
    assert world.ask("POST", agree, cookie=cookies[name], data=form, origin="https://evil.example").status_code == 403
    assert f"{session.title}” of" not in world.ask("GET", f"/shared/{session.id}", cookie=cookies["olga"]).text
    assert "olga asks to control" in world.ask("GET", "/notices", cookie=cookies[name]).text
    assert world.ask("POST", agree, cookie=cookies[name], data=form).status_code == 303
    assert "you control it" in world.ask("GET", f"/shared/{session.id}", cookie=cookies["olga"]).text
    home = world.ask("GET", "/e/school/home", cookie=cookies[name]).text
    assert "can control your" in home and ">Stop<" in home
