"""The doors, asked as a gateway asks and as an attacker would like it to: every way in, and every way that is none."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from desk import Desk, run
from machines import FakeMachine

from portico.errors import Forbidden, NotFound, NotSignedIn
from portico.model import Identity, Role, Session, SessionState, Via
from portico.sessions.doors import find_cookie_name, parse_cookies

PORTAL, APPS = "http://localhost:8000", "http://localhost:8001"


class Way:
    """One request of a browser, as the gateway tells it."""

    def __init__(self, desk: Desk, cookie: str = "", **changes: Any) -> None:
        self.desk = desk
        self.request: dict[str, Any] = {
            "listener": "portal",
            "method": "GET",
            "target": "/",
            "host": "localhost:8000",
            "scheme": "http",
            "address": "10.0.0.1",
            "upgrade": True,
            "headers": {"origin": PORTAL, "cookie": cookie},
            **changes,
        }

    def but(self, **changes: Any) -> Way:
        headers = {**self.request["headers"], **changes.pop("headers", {})}
        headers = {name: value for name, value in headers.items() if value is not None}
        return Way(self.desk, **{**self.request, **changes, "headers": headers})

    async def go(self) -> dict[str, Any]:
        answer, fds = await self.desk.doors.route(self.request)
        for fd in fds:
            os.close(fd)
        assert len(fds) == (0 if answer["kind"] == "answer" else 1)
        return answer

    async def status(self) -> int:
        answer = await self.go()
        return int(answer["status"]) if answer["kind"] == "answer" else 200


class Scene:
    """alice with a terminal, a desktop that bob may see, and a notebook that is open in her browser."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.alice, self.bob, self.carol = (
            desk.add_user("alice"),
            desk.add_user("bob"),
            desk.add_user("carol", Role.ADMIN),
        )

    async def set(self) -> None:
        self.shell = await self.desk.start_ready(self.alice, "shell")
        self.screen = await self.desk.start_ready(self.alice, "screen")
        self.pages = await self.desk.start_ready(self.alice, "pages")
        self.share = await self.desk.sessions.share(self.alice, self.screen.id, "bob")
        ticket = await self.desk.doors.make_ticket(self.alice, self.pages.id)
        _, name, value = await self.desk.doors.redeem_ticket(ticket, "localhost:8001")
        self.grant = f"{name}={value}"

    def cookie(self, name: str) -> str:
        return f"{find_cookie_name(self.desk.config)}={self.desk.tokens[name]}"

    def stream(self, session: Session, who: str = "alice", kind: str = "sessions") -> Way:
        return Way(self.desk, self.cookie(who), target=f"/{kind}/{session.id}/stream")

    def app(self, **changes: Any) -> Way:
        base = Way(
            self.desk,
            self.grant,
            listener="apps",
            target=f"/s/{self.pages.id}/lab",
            host="localhost:8001",
            upgrade=False,
        )
        return base.but(**{"headers": {"origin": None}, **changes})


@asynccontextmanager
async def scene(folder: Path, machine: FakeMachine | None = None, **settings: Any) -> AsyncIterator[Scene]:
    desk = Desk(folder, machine, **settings)
    async with desk.keeping():
        found = Scene(desk)
        await found.set()
        yield found


def test_ones_own_streams(tmp_path: Path) -> None:
    async def test() -> None:
        async with scene(tmp_path) as at:
            answer = await at.stream(at.shell).go()
            assert (answer["kind"], answer["protocol"], answer["view_only"]) == ("stream", "pty", False)
            assert answer["tags"] == [f"sign-in:{at.alice.sign_in_id}", "user:alice", f"session:{at.shell.id}"]
            assert (await at.stream(at.screen).go())["protocol"] == "rfb"

    run(test())


def test_a_viewer_looks_and_lives_by_the_share(tmp_path: Path) -> None:
    async def test() -> None:
        async with scene(tmp_path) as at:
            answer = await at.stream(at.screen, "bob", "shared").go()
            assert answer["view_only"] is True
            assert {f"share:{at.share.id}", "user:bob", "user:alice", f"session:{at.screen.id}"} < set(answer["tags"])
            assert await at.stream(at.screen, "bob", "sessions").status() == 404  # not as if it were his
            assert await at.stream(at.shell, "bob", "shared").status() == 404
            assert await at.stream(at.screen, "carol", "shared").status() == 404
            await at.desk.accounts.lock_user(at.carol, "alice")
            assert await at.stream(at.screen, "bob", "shared").status() == 404
            await at.desk.accounts.unlock_user(at.carol, "alice")
            assert await at.stream(at.screen, "bob", "shared").status() == 200
            at.alice = at.desk.add_user("alice")
            await at.desk.sessions.unshare(at.alice, at.screen.id, at.share.id)
            assert await at.stream(at.screen, "bob", "shared").status() == 404

    run(test())


def test_streams_that_are_refused(tmp_path: Path) -> None:
    async def test() -> None:
        async with scene(tmp_path) as at:
            way = at.stream(at.shell)
            for origin in (
                None, "null", "None", "", APPS, "http://localhost:80000", "http://localhost:8000.evil.example",
                "https://localhost:8000", "http://localhost", "http://LOCALHOST:8000", "http://localhost:8000/",
                f"{PORTAL}; {PORTAL}",
            ):  # fmt: skip
                assert await way.but(headers={"origin": origin}).status() == 403, origin
            for site in ("cross-site", "same-site", "none", ""):
                assert await way.but(headers={"sec-fetch-site": site}).status() == 403, site
            token = at.desk.tokens["alice"]
            for cookie in (
                None, "", "portico=", f"portico={token}x", f"portico2={token}", f"__Host-portico={token}",
                f"portico={token}; portico={token}", f"portico=x; portico={token}", at.grant,
            ):  # fmt: skip
                assert await way.but(headers={"cookie": cookie}).status() == 401, cookie
            own = f"/sessions/{at.shell.id}"
            for target in (
                f"{own}/stream/", f"{own}/stream\n", f"/{own}/stream", own, "/sessions/../stream", f"/s/{at.pages.id}/",
                f"/sessions/{at.pages.id}/stream", f"{own.upper()}/stream", "/sessions/kaaaaaaaaaaa/stream",
            ):  # fmt: skip
                assert await way.but(target=target).status() == 404, target
            assert await way.but(upgrade=False).status() == 404
            for other in ("bob", "carol"):
                assert await at.stream(at.shell, other).status() == 404, other

    run(test())


def test_strangers_do_not_learn_whether_a_session_exists(tmp_path: Path) -> None:
    async def test() -> None:
        async with scene(tmp_path) as at:
            at.desk.machine.end(at.shell.id)
            await at.desk.reach(at.alice, at.shell, SessionState.ENDED)
            bodies = {
                (await at.stream(session, "bob").go())["body"].replace(session.id, "")
                for session in (at.shell, at.screen, Session(**{**vars(at.shell), "id": "kaaaaaaaaaaa"}))
            }
            assert len(bodies) == 1
            for asked in (at.shell.id, at.pages.id, "kaaaaaaaaaaa", "../../etc"):
                with pytest.raises(NotFound, match="no such session"):
                    await at.desk.doors.make_ticket(at.bob, asked)

    run(test())


def test_ones_own_app(tmp_path: Path) -> None:
    async def test() -> None:
        async with scene(tmp_path) as at:
            answer = await at.app().go()
            assert (answer["kind"], answer["key"], answer["prefix"]) == ("http", at.pages.id, f"/s/{at.pages.id}/")
            assert f"session:{at.pages.id}" in answer["tags"] and answer["cache_s"] == 5
            assert (
                await at.app(method="POST", headers={"origin": APPS, "sec-fetch-site": "same-origin"}).status() == 200
            )
            assert await at.app(upgrade=True, headers={"origin": APPS}).status() == 200
            assert await at.app(headers={"origin": None, "sec-fetch-site": "cross-site"}).status() == 200  # a link
            os.close(await at.desk.doors.connect(at.pages.id))

    run(test())


def test_what_may_be_kept_needs_no_second_look_and_afterwards_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test() -> None:
        async with scene(tmp_path) as at:
            assert (await at.app().go())["kind"] == "http"
            looks: list[str] = []
            get = at.desk.doors._get

            async def look(session_id: str) -> Session:
                looks.append(session_id)
                return await get(session_id)

            monkeypatch.setattr(at.desk.doors, "_get", look)
            os.close(await at.desk.doors.connect(at.pages.id))
            assert looks == []
            at.desk.clock.advance(seconds=6)
            os.close(await at.desk.doors.connect(at.pages.id))
            assert looks == [at.pages.id]

    run(test())


def test_apps_that_are_refused(tmp_path: Path) -> None:
    async def test() -> None:
        async with scene(tmp_path) as at:
            for origin in (None, PORTAL, "null", "http://localhost:8001.evil.example", "http://evil.example"):
                assert await at.app(upgrade=True, headers={"origin": origin}).status() == 403, origin
                if origin is not None:
                    assert await at.app(method="POST", headers={"origin": origin}).status() == 403, origin
            assert (
                await at.app(method="DELETE", headers={"sec-fetch-site": "cross-site", "origin": None}).status() == 403
            )
            name, _, value = at.grant.partition("=")
            for cookie in (None, "", f"{name}=", f"{name}=x{value}", f"{at.grant}; {at.grant}", at.cookie("alice")):
                assert await at.app(headers={"cookie": cookie, "origin": None}).status() == 401, cookie
            other = await at.desk.start_ready(at.alice, "pages")
            assert await at.app(target=f"/s/{other.id}/").status() == 401
            stolen = f"portico-app-{other.id}={value}"
            assert await at.app(target=f"/s/{other.id}/", headers={"cookie": stolen, "origin": None}).status() == 401
            for target in (
                "/",
                "/s/",
                f"/s/{at.pages.id}",
                f"//s/{at.pages.id}/",
                f"/x/s/{at.pages.id}/",
                "/s/kaaaaaaaaaaa",
            ):
                assert await at.app(target=target).status() == 404, target
            for session in (at.shell.id, at.screen.id, "kaaaaaaaaaaa"):
                with pytest.raises(NotFound):
                    await at.desk.doors.connect(session)

    run(test())


def test_a_browser_that_is_not_signed_in_is_led_to_the_portal(tmp_path: Path) -> None:
    async def test() -> None:
        async with scene(tmp_path) as at:
            answer = await at.app(headers={"cookie": None}).go()
            assert answer["status"] == 401 and f"{PORTAL}/sessions/{at.pages.id}" in answer["body"]
            assert answer["headers"]["Content-Security-Policy"].startswith("default-src 'none'")
            hostile = await at.app(target="/s/<script>alert(1)</script>/").go()
            assert "<script>" not in hostile["body"]

    run(test())


@pytest.mark.parametrize("ends", ["sign-out", "locked", "expired", "idle", "session", "user-removed"])
def test_a_grant_dies_with_what_it_lives_by(tmp_path: Path, ends: str) -> None:
    async def test() -> None:
        async with scene(tmp_path) as at:
            assert await at.app().status() == 200
            if ends == "sign-out":
                at.desk.accounts.sign_out(at.alice)
            elif ends == "locked":
                await at.desk.accounts.lock_user(at.carol, "alice")
            elif ends == "expired":
                at.desk.clock.advance(hours=13)
            elif ends == "idle":
                at.desk.clock.advance(hours=4.1)
            elif ends == "session":
                await at.desk.sessions.stop(at.alice, at.pages.id)
                await at.desk.reach(at.alice, at.pages, SessionState.ENDED)
            else:
                with at.desk.store.begin() as tx:
                    user = tx.find_user("alice")
                    assert user
                    tx.delete_user(user)
            assert await at.app().status() == 401

    run(test())


def test_a_ticket_works_once_and_soon_and_here(tmp_path: Path) -> None:
    async def test() -> None:
        async with scene(tmp_path) as at:
            doors = at.desk.doors
            ticket = await doors.make_ticket(at.alice, at.pages.id)
            assert len(ticket) >= 43  # 256 bits
            session_id, name, value = await doors.redeem_ticket(ticket, "localhost:8001")
            assert (session_id, name) == (at.pages.id, f"portico-app-{at.pages.id}")
            database = b"".join(path.read_bytes() for path in tmp_path.glob("portico.db*"))
            assert ticket.encode() not in database and value.encode() not in database
            with pytest.raises(NotFound):
                await doors.redeem_ticket(ticket, "localhost:8001")
            late = await doors.make_ticket(at.alice, at.pages.id)
            at.desk.clock.advance(seconds=61)
            elsewhere = await doors.make_ticket(at.alice, at.pages.id)
            signed_out = await doors.make_ticket(at.alice, at.pages.id)
            for used, host in ((late, "localhost:8001"), (elsewhere, "localhost:8000"), ("", "localhost:8001")):
                with pytest.raises(NotFound):
                    await doors.redeem_ticket(used, host)
            at.desk.accounts.sign_out(at.alice)
            with pytest.raises(NotFound):
                await doors.redeem_ticket(signed_out, "localhost:8001")

    run(test())


def test_only_a_browser_gets_a_ticket(tmp_path: Path) -> None:
    async def test() -> None:
        async with scene(tmp_path) as at:
            token = Identity(at.alice.user_id, "alice", Role.USER, Via.TOKEN)
            with pytest.raises(Forbidden):
                await at.desk.doors.make_ticket(token, at.pages.id)
            with pytest.raises(NotFound):  # this is what admins can't do either
                await at.desk.doors.make_ticket(at.carol, at.pages.id)

    run(test())


def test_with_a_wildcard_domain_the_host_names_the_session(tmp_path: Path) -> None:
    async def test() -> None:
        async with scene(tmp_path, apps_domain="apps.example.org", public_url="https://example.org") as at:
            host = f"{at.pages.id}.apps.example.org"
            ticket = await at.desk.doors.make_ticket(at.alice, at.pages.id)
            with pytest.raises(NotFound):
                await at.desk.doors.redeem_ticket(ticket, f"{at.shell.id}.apps.example.org")
            ticket = await at.desk.doors.make_ticket(at.alice, at.pages.id)
            _, name, value = await at.desk.doors.redeem_ticket(ticket, host)
            way = at.app(scheme="https", host=host, headers={"cookie": f"{name}={value}", "origin": None})
            assert await way.status() == 200
            for other in (f"{at.shell.id}.apps.example.org", f"{host}.evil.example", "apps.example.org", f"x{host}"):
                assert await way.but(host=other).status() == 404, other
            assert await way.but(upgrade=True, headers={"origin": f"https://{host}"}).status() == 200
            assert await way.but(upgrade=True, headers={"origin": "https://example.org"}).status() == 403

    async def set_without_ticket(self: Scene) -> None:
        self.shell, self.pages = (
            await self.desk.start_ready(self.alice, "shell"),
            await self.desk.start_ready(self.alice, "pages"),
        )
        self.grant = ""

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scene, "set", set_without_ticket)
        run(test())


def test_what_is_taken_back_while_it_connects_does_not_get_through(tmp_path: Path) -> None:
    """The cut has gone to the gateway before it knew of this stream, so the stream must not come."""

    class SlowToConnect(FakeMachine):
        async def connect(self, user_name: str, key: str) -> int:
            await asyncio.sleep(0)
            self.meanwhile()
            return await super().connect(user_name, key)

        def meanwhile(self) -> None: ...

    async def test() -> None:
        machine = SlowToConnect()
        async with scene(tmp_path, machine) as at:
            before = len(os.listdir("/proc/self/fd"))
            machine.meanwhile = lambda: at.desk.accounts.sign_out(at.alice)  # type: ignore[method-assign]
            assert await at.stream(at.shell).status() == 401
            machine.meanwhile = lambda: None  # type: ignore[method-assign]
            assert len(os.listdir("/proc/self/fd")) == before

    run(test())


def test_an_app_that_does_not_answer_says_when_to_come_back(tmp_path: Path) -> None:
    class Mute(FakeMachine):
        async def connect(self, user_name: str, key: str) -> int:
            from portico.errors import Unavailable

            raise Unavailable("The app does not answer.")

    async def test() -> None:
        async with scene(tmp_path, Mute()) as at:
            answer = await at.app().go()
            assert (answer["status"], answer["headers"]["Retry-After"]) == (503, "2")

    run(test())


def test_what_has_ended_while_nobody_could_be_told(tmp_path: Path) -> None:
    async def test() -> None:
        async with scene(tmp_path) as at:
            tags = (await at.stream(at.screen, "bob", "shared").go())["tags"]
            assert await at.desk.doors.find_gone(tags) == []
            await at.desk.sessions.unshare(at.alice, at.screen.id, at.share.id)
            assert await at.desk.doors.find_gone(tags) == [f"share:{at.share.id}"]
            await at.desk.sessions.stop(at.alice, at.screen.id)
            await at.desk.reach(at.alice, at.screen, SessionState.ENDED)
            at.desk.accounts.sign_out(at.bob)
            await at.desk.accounts.lock_user(at.carol, "bob")
            assert set(await at.desk.doors.find_gone(tags)) == set(tags) - {"user:alice"}
            assert await at.desk.doors.find_gone(["sign-in:x", "share:", "what:1"]) == ["sign-in:x", "share:", "what:1"]

    run(test())


def test_a_sign_in_that_ran_out_is_gone_too(tmp_path: Path) -> None:
    async def test() -> None:
        async with scene(tmp_path) as at:
            tag = f"sign-in:{at.alice.sign_in_id}"
            at.desk.clock.now += timedelta(hours=13)
            assert await at.desk.doors.find_gone([tag]) == [tag]
            with pytest.raises(NotSignedIn):
                at.desk.accounts.check_sign_in(at.alice.sign_in_id)

    run(test())


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("", {}),
        ("a=b", {"a": "b"}),
        ('a="b"; c=d=e', {"a": "b", "c": "d=e"}),
        ("a=1; a=2; b=3", {"b": "3"}),
        ("a=1; a=2; a=3", {}),
        ("novalue; a=1;;", {"a": "1"}),
    ],
)
def test_cookies(header: str, found: dict[str, str]) -> None:
    assert parse_cookies(header) == found
