"""The portal as it is served: three Unix sockets, who is at their other ends, cuts, feeds, and a quick end."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from portal_rig import ORIGIN, SSH_KEY, World, make_key

from portico import wire
from portico.errors import NotFound, Unavailable
from portico.portal import feeds, serve

serving = importlib.import_module("portico.portal.serve")  # the module; the package gives the function this name


def listen(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    sock.listen()
    return sock


class Served:
    """A portal on its sockets, in this event loop."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.paths = world.config.socket_paths
        self.listeners = {name: listen(self.paths[name]) for name in ("portal", "api")}
        self.listeners["routes"] = wire.listen(self.paths["routes"])
        self.cuts: list[list[str]] = []
        self.left_open: list[Any] = []

    def client(self, name: str, **headers: str) -> httpx.AsyncClient:
        sent = {"Origin": ORIGIN, "X-Portico-Listener": "portal", "X-Forwarded-For": "192.0.2.7"} | headers
        return httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(uds=self.paths[name]), base_url=ORIGIN, headers=sent
        )

    async def connect_gateway(self) -> wire.Channel:
        async def handle(op: str, args: dict[str, Any], fds: list[int]) -> wire.Answer | None:
            assert op == "cut"
            self.cuts.append(args["tags"])
            return {"streams": 0}, ()

        return await wire.connect(self.paths["routes"], handle, name="portal")


def run(world: World, test: Callable[[Served], Awaitable[None]]) -> None:
    """Serve, run the test in the same loop, and end as SIGTERM does; within 2 s, whatever is open."""

    async def whole() -> None:
        served = Served(world)
        task = asyncio.create_task(serve(world.services, served.listeners))
        try:
            async with asyncio.timeout(20):
                await test(served)
        finally:
            begin = time.monotonic()
            if not task.done():
                os.kill(os.getpid(), signal.SIGTERM)
            async with asyncio.timeout(10):
                await asyncio.wait([task])
            took_s = time.monotonic() - begin
            for item in reversed(served.left_open):
                await item.aclose()
            for sock in served.listeners.values():
                sock.close()
        assert not task.exception()
        assert took_s < 2, "an open feed must not hold up the end"

    world.run(whole())


async def wait_for(condition: Callable[[], Any], timeout_s: float = 5) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


def test_each_socket_knows_who_comes(own_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def identify(uid: int) -> Any:
        asked.append(uid)
        return who

    who = own_world.identify("alice")
    monkeypatch.setattr(own_world.accounts, "identify_uid", identify)
    cookie = own_world.sign_in("bob")

    async def test(served: Served) -> None:
        async with served.client("api", Cookie=f"portico={cookie}") as api:
            assert (await api.get("/api/v1/me")).json()["name"] == "alice"
            assert asked == [os.geteuid()], "the kernel said so"
            assert (await api.get("/")).status_code == 404
            assert (await api.get("/api/v1/health")).headers.get("server") is None
        async with served.client("portal", Cookie=f"portico={cookie}") as portal:
            for _ in range(3):  # on one connection
                assert (await portal.get("/api/v1/me")).json()["name"] == "bob"
        assert len(asked) == 1

    run(own_world, test)


def test_nobody_but_the_gateway_talks_on_the_portals_socket(own_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "is_own", lambda uid: False)

    async def test(served: Served) -> None:
        async with served.client("portal") as portal:
            with pytest.raises(httpx.TransportError):
                await portal.get("/sign-in")
        async with served.client("api") as api:
            assert (await api.get("/api/v1/health")).status_code == 200
        with contextlib.suppress(Unavailable):
            gateway = await served.connect_gateway()
            await wait_for(lambda: gateway.closed)

    run(own_world, test)


def test_cuts_reach_every_gateway_and_the_feeds(own_world: World) -> None:
    who = own_world.identify("alice")
    cookie = own_world.sign_in("alice")

    async def test(served: Served) -> None:
        first, second = await served.connect_gateway(), await served.connect_gateway()
        async with (
            served.client("portal", Cookie=f"portico={cookie}") as portal,
            portal.stream("GET", "/feed") as feed,
        ):
            lines = feed.aiter_lines()
            assert await read_event(lines) == "hello"
            begin = time.monotonic()
            await asyncio.to_thread(own_world.accounts.revoke_sign_in, who, who.sign_in_id)  # another browser's
            own_world.sessions.changes.tell("alice")
            assert await read_event(lines) == "change"
            await wait_for(lambda: len(served.cuts) == 2)
            assert served.cuts == [[f"sign-in:{who.sign_in_id}"]] * 2
            admin = own_world.identify("root-of-all")
            await own_world.accounts.lock_user(admin, "alice")
            assert await read_event(lines) == "end"
            assert time.monotonic() - begin < 1.5
            assert [line async for line in lines if line] == ["data: 1"], "it is the last"
        first.close()
        second.close()

    run(own_world, test)


def test_a_removed_key_is_told_of_as_any_cut(own_world: World) -> None:
    who = own_world.identify("alice")

    async def test(served: Served) -> None:
        gateway = await served.connect_gateway()
        key = await own_world.ssh_keys.add(who, make_key())
        await asyncio.to_thread(own_world.ssh_keys.remove, who, key.id)
        await wait_for(lambda: served.cuts == [[f"key:{key.id}"]])
        gateway.close()

    run(own_world, test)


async def read_event(lines: AsyncIterator[str]) -> str:
    async with asyncio.timeout(5):
        async for line in lines:
            if line.startswith("event: "):
                return line.removeprefix("event: ")
    return ""


def test_a_feed_tells_of_changes_and_ends_with_its_sign_in(own_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeds, "HEARTBEAT_S", 0.05)
    cookie = own_world.sign_in("alice")

    async def test(served: Served) -> None:
        async with (
            served.client("portal", Cookie=f"portico={cookie}") as portal,
            portal.stream("GET", "/feed") as feed,
        ):
            assert feed.headers["content-type"].startswith("text/event-stream")
            lines = feed.aiter_lines()
            assert await read_event(lines) == "hello"
            own_world.sessions.changes.tell("bob")  # nobody's business here
            await asyncio.sleep(0.15)
            own_world.sessions.changes.tell("alice")
            own_world.sessions.changes.tell("alice")
            assert await read_event(lines) == "change"
            with own_world.store.begin() as tx:  # ended behind our back: the next look finds out
                tx.delete_sign_ins(own_world.accounts.get_user("alice").id)
            assert await read_event(lines) == "end"
        assert not own_world.sessions.changes._waiting, "a closed feed leaves nothing behind"

    run(own_world, test)


def test_an_open_feed_does_not_hold_up_the_end(own_world: World) -> None:
    cookie = own_world.sign_in("alice")

    async def test(served: Served) -> None:
        portal = served.client("portal", Cookie=f"portico={cookie}")
        feed = await portal.send(portal.build_request("GET", "/feed"), stream=True)
        lines = feed.aiter_lines()
        assert await read_event(lines) == "hello"
        served.left_open += [portal, lines]  # held, or its connection would end with the last who looks at it

    run(own_world, test)


def test_gateways_ask_and_are_answered(own_world: World) -> None:
    cookie = own_world.sign_in("alice")
    session, book = own_world.start("alice", "screen"), own_world.start("alice", "book")
    gone = own_world.identify("bob")
    own_world.accounts.sign_out(gone)

    async def test(served: Served) -> None:
        gateway = await served.connect_gateway()
        request = {
            "listener": "portal", "method": "GET", "target": f"/sessions/{session.id}/stream", "host": "localhost:8000",
            "scheme": "http", "address": "192.0.2.7", "upgrade": True, "headers": {"cookie": f"portico={cookie}", "origin": ORIGIN},
        }  # fmt: skip
        answer = await gateway.ask("route", request)
        assert (answer.body["kind"], answer.body["protocol"], len(answer.fds)) == ("stream", "rfb", 1)
        wire.close_all(answer.fds)
        fds = (await gateway.ask("connect", {"key": book.id})).fds
        assert len(fds) == 1
        wire.close_all(fds)
        with pytest.raises(NotFound):
            await gateway.ask("connect", {"key": "aaaaaaaaaaaa"})
        with pytest.raises(NotFound):
            await gateway.ask("drop-tables", {})
        await gateway.notify(
            "hello", {"pid": 1, "tags": [f"sign-in:{gone.sign_in_id}", "user:alice", f"session:{session.id}"]}
        )
        await wait_for(lambda: served.cuts)
        assert served.cuts == [[f"sign-in:{gone.sign_in_id}"]]
        gateway.close()

    run(own_world, test)


def test_a_gateway_that_hangs_holds_up_no_other(own_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "CUT_TIMEOUT_S", 0.3)
    who = own_world.identify("alice")

    async def test(served: Served) -> None:
        async def hang(op: str, args: dict[str, Any], fds: list[int]) -> wire.Answer | None:
            await asyncio.sleep(60)
            return None

        deaf = await wire.connect(served.paths["routes"], hang)
        gateway = await served.connect_gateway()
        await asyncio.sleep(0.05)
        begin = time.monotonic()
        await asyncio.to_thread(own_world.accounts.sign_out, who)
        await wait_for(lambda: served.cuts)
        assert time.monotonic() - begin < 0.25
        await wait_for(lambda: deaf.closed)
        gateway.close()

    run(own_world, test)


def test_a_keeper_that_dies_takes_the_portal_with_it(own_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    async def die() -> None:
        raise Unavailable("The keeper is gone.")

    monkeypatch.setattr(own_world.sessions, "run", die)

    async def whole() -> None:
        served = Served(own_world)
        with pytest.raises(Unavailable, match="keeper"):
            async with asyncio.timeout(5):
                await serve(own_world.services, served.listeners)
        for sock in served.listeners.values():
            sock.close()

    own_world.run(whole())


def test_a_head_that_is_no_http_gets_no_further(own_world: World) -> None:
    async def test(served: Served) -> None:
        for head in (
            b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
            b"\x00\x01\x02\r\n\r\n",
        ):
            reader, writer = await asyncio.open_unix_connection(served.paths["portal"])
            writer.write(head)
            answer = await reader.read(4096)
            assert answer == b"" or answer.startswith(b"HTTP/1.1 400"), answer
            writer.close()
            await writer.wait_closed()

    run(own_world, test)


def test_the_log_has_no_secret(own_world: World, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", logger="portico")
    caplog.set_level("INFO", logger="uvicorn")
    cookie, token = own_world.sign_in("alice"), own_world.make_token("alice")
    codes: list[str] = []

    async def test(served: Served) -> None:
        async with served.client("portal", Cookie=f"portico={cookie}") as portal:
            await portal.get("/")
            await portal.post("/sign-in", data={"name": "alice", "password": "planted-secret"})
            await portal.post("/enrol", data={"code": "planted-secret", "password": "planted-secret"})
            await portal.post("/sign-out", headers={"Origin": "null"})
            begun = (await portal.post("/api/v1/ssh/login", json={"public_key": SSH_KEY})).json()
            await portal.post("/api/v1/ssh/login/collect", json={"device_code": begun["device_code"]})
            codes.append(begun["device_code"])
            await portal.get("/api/v1/me", headers={"Authorization": f"Bearer {token}"})

    run(own_world, test)
    said = json.dumps([record.getMessage() for record in caplog.records])
    assert "refused POST" in said
    for secret in (cookie, token, *codes, "planted-secret"):
        assert secret not in said
