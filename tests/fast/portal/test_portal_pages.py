"""What the pages show to whom, and that what people write stays text."""

from __future__ import annotations

from dataclasses import replace

import pytest
from portal_rig import APPS, PASSWORD, World

from portico.model import Reason, Role, Session, SessionState, UserState, now

EVIL = "<script>alert(1)</script>\"'"


def end(world: World, session: Session, reason: Reason, detail: str = "") -> None:
    with world.store.begin() as tx:
        tx.save_session(replace(session, state=SessionState.ENDED, reason=reason, detail=detail, ended=now()))


def test_what_people_write_stays_text(own_world: World) -> None:
    cookie, world = own_world.sign_in("alice"), own_world
    session = world.start("alice", "screen")
    with world.store.begin() as tx:
        tx.save_session(replace(session, title=EVIL, waiting_for=EVIL))
        tx.add_audit("alice", "test:test", EVIL, EVIL, EVIL)
    world.machine.log = EVIL
    other = world.start("alice", "screen")
    end(world, other, Reason.FAILED, EVIL)
    admin = world.sign_in("root-of-all")
    pages = [
        world.ask("GET", "/", cookie=cookie),
        world.ask("GET", f"/sessions/{session.id}", cookie=cookie),
        world.ask("GET", f"/sessions/{other.id}", cookie=cookie),
        world.ask("GET", f"/sessions/{session.id}/log", cookie=cookie),
        world.ask("GET", "/admin/sessions", cookie=admin),
        world.ask("GET", "/admin/audit", cookie=admin),
        world.ask("POST", "/apps/shell", cookie=cookie, data={"cores": EVIL, "title": EVIL}),
        world.ask("POST", "/sign-in", data={"name": EVIL, "password": "x", "next": EVIL}),
        world.ask("POST", "/admin/users", cookie=admin, data={"name": EVIL}),
        world.ask("GET", f"/admin/audit?actor={EVIL}", cookie=admin),
    ]
    for page in pages:
        assert "<script>alert" not in page.text
        assert "&lt;script&gt;" in page.text, page.url


def test_what_is_not_installed_is_for_admins(world: World) -> None:
    user, admin = world.sign_in("alice"), world.sign_in("root-of-all")
    page = world.ask("GET", "/", cookie=user).text
    assert "Shell" in page and "Absent" not in page
    page = world.ask("GET", "/", cookie=admin).text
    assert "Absent" in page and "apt-get install no-such-program" in page
    shown = world.ask("GET", "/apps/absent", cookie=user).text
    assert (
        "Ask your administrator" in shown
        and "apt-get" not in shown
        and '<form method="post" action="/apps/' not in shown
    )
    listed = [app["id"] for app in world.ask("GET", "/api/v1/apps", cookie=user).json()]
    assert "absent" not in listed and "shell" in listed


def test_a_malformed_catalog_file_is_shown_to_admins_and_stops_nobody(own_world: World) -> None:
    own_world.write_app("broken", "name = [")
    page = own_world.ask("GET", "/", cookie=own_world.sign_in("alice"))
    assert page.status_code == 200 and "Shell" in page.text and "broken" not in page.text
    assert "broken/app.toml" in own_world.ask("GET", "/", cookie=own_world.sign_in("root-of-all")).text
    errors = own_world.ask("GET", "/api/v1/catalog/errors", cookie=own_world.sign_in("root-of-all")).json()
    assert errors[0]["path"].endswith("broken/app.toml") and errors[0]["message"]


def test_a_form_that_is_wrong_says_where_and_keeps_what_was_written(world: World) -> None:
    cookie = world.sign_in("alice")
    form = {"cores": "1", "memory_gb": "1", "hours": "999", "field-folder": "abc", "title": "My work"}
    answer = world.ask("POST", "/apps/book", cookie=cookie, data=form)
    assert answer.status_code == 422
    assert 'value="999"' in answer.text and 'value="abc"' in answer.text and 'value="My work"' in answer.text
    assert answer.text.count("aria-invalid") == 1 and 'role="alert"' in answer.text
    answer = world.ask("POST", "/apps/book", cookie=cookie, data=form | {"hours": "1", "field-folder": "A B"})
    assert answer.status_code == 422 and 'value="A B"' in answer.text
    answer = world.ask("POST", "/apps/book", cookie=cookie, data={"hours": "eight"})
    assert "not a number" in answer.text
    answer = world.ask("POST", "/apps/book", cookie=cookie, data=form | {"hours": "2,5"})
    assert answer.status_code == 303
    session = world.ask("GET", f"/api/v1{answer.headers['location']}", cookie=cookie).json()
    assert (session["hours"], session["values"], session["title"]) == (2.5, {"folder": "abc"}, "My work")
    assert world.ask("POST", "/apps/none", cookie=cookie).status_code == 404


@pytest.mark.parametrize("reason", list(Reason))
def test_an_ended_session_says_why(world: World, reason: Reason) -> None:
    cookie, session = world.sign_in("alice"), world.start("alice")
    world.machine.log = "the last words\n"
    end(world, session, reason, "exit status 3")
    page = world.ask("GET", f"/sessions/{session.id}", cookie=cookie).text
    assert "exit status 3" in page and "the last words" in page and "Start again" in page
    assert "data-stream" not in page and "/stop" not in page


def test_steps_move_with_the_state(world: World) -> None:
    cookie = world.sign_in("alice")
    for state, step in ((SessionState.QUEUED, "In the queue"), (SessionState.STARTING, "Starting")):
        session = world.start("alice", "book", state)
        page = world.ask("GET", f"/sessions/{session.id}", cookie=cookie).text
        assert f'aria-current="step">{step}<' in page and "/connect" not in page
    session = world.start("alice", "book")
    assert f"/sessions/{session.id}/connect" in world.ask("GET", f"/sessions/{session.id}", cookie=cookie).text


def test_only_its_owner_gets_a_stage(world: World) -> None:
    session = world.start("alice", "screen")
    own = world.ask("GET", f"/sessions/{session.id}", cookie=world.sign_in("alice")).text
    assert f'data-stream="/sessions/{session.id}/stream"' in own and "data-view-only" not in own
    page = world.ask("GET", f"/sessions/{session.id}", cookie=world.sign_in("root-of-all"))
    assert page.status_code == 200 and "data-stream" not in page.text and "/share" not in page.text
    world.run(world.sessions.share(world.identify("alice"), session.id, "carol"))
    shared = world.ask("GET", f"/shared/{session.id}", cookie=world.sign_in("carol")).text
    assert (
        f'data-stream="/shared/{session.id}/stream"' in shared and "data-view-only" in shared and "view only" in shared
    )
    assert session.id in world.ask("GET", "/", cookie=world.sign_in("carol")).text


def test_a_secret_is_shown_once_and_never_in_an_address(own_world: World) -> None:
    admin = own_world.sign_in("root-of-all")
    answer = own_world.ask("POST", "/admin/users", cookie=admin, data={"name": "dora"})
    assert answer.status_code == 200 and "location" not in answer.headers
    code = answer.text.partition("/enrol#")[2].partition("<")[0]
    assert len(code) > 40 and code not in own_world.ask("GET", "/admin/users", cookie=admin).text
    named = own_world.ask("POST", "/enrol/name", data={"code": code})
    assert named.json() == {"name": "dora"}
    form = {"code": code, "password": PASSWORD, "again": PASSWORD + "x"}
    wrong = own_world.ask("POST", "/enrol", data=form)
    assert wrong.status_code == 422 and "not the same" in wrong.text
    assert own_world.ask("POST", "/enrol", data=form | {"again": PASSWORD}).status_code == 303
    assert own_world.ask("POST", "/enrol", data=form | {"again": PASSWORD}).status_code == 404
    token = own_world.ask("POST", "/account/tokens", cookie=own_world.sign_in("dora"), data={"label": "laptop"})
    assert "ptc_" in token.text
    assert "ptc_" not in own_world.ask("GET", "/account", cookie=own_world.sign_in("dora")).text.replace("ptc_…", "")


def test_signing_in_and_where_it_leads(own_world: World) -> None:
    code = own_world.accounts.add_user(own_world.identify("root-of-all"), "dora")
    own_world.accounts.enrol(code, PASSWORD, "192.0.2.1")
    there = own_world.ask("GET", "/account")
    assert (there.status_code, there.headers["location"]) == (303, "/sign-in?next=/account")
    for wanted, leads in (("/account", "/account"), ("//evil.example", "/"), ("/\\evil.example", "/")):
        form = {"name": "dora", "password": PASSWORD, "next": wanted}
        answer = own_world.ask("POST", "/sign-in", data=form)
        assert (answer.status_code, answer.headers["location"]) == (303, leads)
    cookie = answer.headers["set-cookie"].partition("=")[2].partition(";")[0]
    assert own_world.ask("GET", "/sign-in", cookie=cookie).headers["location"] == "/"
    answer = own_world.ask("POST", "/sign-out", cookie=cookie)
    assert 'portico=""' in answer.headers["set-cookie"]
    assert own_world.ask("GET", "/", cookie=cookie).status_code == 303, "the token is dead, not only forgotten"
    for name in ("dora", "nobody-at-all"):
        wrong = own_world.ask("POST", "/sign-in", data={"name": name, "password": "wrong password"})
        assert wrong.status_code == 401 and "The name or the password is wrong." in wrong.text
    for _ in range(6):
        wrong = own_world.ask("POST", "/sign-in", data={"name": "dora", "password": "wrong password"})
    assert wrong.status_code == 429 and int(wrong.headers["retry-after"]) > 0


def test_users_are_locked_and_made_admins(own_world: World) -> None:
    admin = own_world.sign_in("root-of-all")
    own_world.add_user("dora", state=UserState.ACTIVE)
    own_world.ask("POST", "/admin/users/dora/role", cookie=admin, data={"role": "admin"})
    assert own_world.accounts.get_user("dora").role is Role.ADMIN
    hers = own_world.sign_in("dora")
    own_world.ask("POST", "/admin/users/dora/lock", cookie=admin)
    assert own_world.ask("GET", "/", cookie=hers).status_code == 303
    assert "Unlock" in own_world.ask("GET", "/admin/users", cookie=admin).text
    assert own_world.ask("POST", "/admin/users/dora/role", cookie=admin, data={"role": "king"}).status_code == 422
    own = own_world.ask("POST", "/admin/users/root-of-all/lock", cookie=admin)
    assert own.status_code == 409 and "your own account" in own.text
    again = own_world.ask("POST", "/admin/users", cookie=admin, data={"name": "dora"})
    assert again.status_code == 409 and "already" in again.text and "Add user" in again.text


def test_the_audit_log_has_pages_and_a_filter(own_world: World) -> None:
    admin = own_world.sign_in("root-of-all")
    with own_world.store.begin() as tx:
        for number in range(150):
            tx.add_audit("alice" if number % 2 else "bob", "test:test", f"thing-{number:03}")
    page = own_world.ask("GET", "/admin/audit", cookie=admin).text
    assert "thing-149" in page and "thing-040" not in page
    older = page.partition('href="/admin/audit?before=')[2].partition('"')[0].replace("&amp;", "&")
    assert "thing-040" in own_world.ask("GET", f"/admin/audit?before={older}", cookie=admin).text
    page = own_world.ask("GET", "/admin/audit?actor=bob", cookie=admin).text
    assert "thing-148" in page and "thing-149" not in page


def test_the_api_describes_itself(world: World) -> None:
    schema = world.ask("GET", "/api/v1/openapi.json").json()
    page = world.ask("GET", "/api/docs").text
    for path, operations in schema["paths"].items():
        assert path.startswith("/api/v1/") and path in page
        for operation in operations.values():
            assert operation["description"].endswith("."), path
    assert set(schema["paths"]) >= {"/api/v1/sessions", "/api/v1/users/{name}"}


def test_an_icon_can_run_nothing(world: World) -> None:
    answer = world.ask("GET", "/apps/book/icon", cookie=world.sign_in("alice"))
    assert answer.headers["content-type"].startswith("image/svg+xml")
    assert (
        "default-src 'none'" in answer.headers["content-security-policy"]
        and "sandbox" in answer.headers["content-security-policy"]
    )
    assert world.ask("GET", "/apps/shell/icon", cookie=world.sign_in("alice")).status_code == 404
    assert set(APPS) >= {"book", "shell"}
