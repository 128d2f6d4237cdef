"""What is open goes on while ``portico reload`` replaces the gateways, and ends with Portico all the same."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import websockets.sync.client
from pages_app import write_pages_app
from person import Person, TerminalClient
from running import PASSWORD, RunningPortico, wait_for_exit, wait_until
from websockets.exceptions import ConnectionClosed

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def house(portico_factory: Callable[..., RunningPortico]) -> Iterator[RunningPortico]:
    """Return a Portico with the app ``pages``."""
    with tempfile.TemporaryDirectory(prefix="pt-apps-", dir="/run") as folder:
        write_pages_app(Path(folder))
        yield portico_factory(settings={"catalog_dirs": [folder]})


@pytest.fixture(scope="module")
def alice(house: RunningPortico) -> Person:
    """Return alice."""
    return house.user("alice")


@pytest.fixture(scope="module")
def terminal(alice: Person) -> str:
    """Return a terminal of alice's."""
    return str(alice.wait(alice.start("terminal", memory_gb=0.25)["id"])["id"])


@pytest.fixture(autouse=True)
def nothing_drains_afterwards(house: RunningPortico, alice: Person) -> Iterator[None]:
    """End what a test opened, and wait until the gateways that it left draining have ended."""
    yield
    alice.close_streams()
    wait_until(lambda: not list_draining(house), 20, "nothing that drains")


def list_draining(house: RunningPortico) -> list[int]:
    """Return the processes that ``portico status`` shows as draining."""
    status: dict[str, Any] = json.loads(house.cli("status", "--json").stdout)
    return [one["pid"] for one in status["draining"]]


def open_terminal(alice: Person, session: str) -> tuple[TerminalClient, Any]:
    """Return a terminal's client whose replay is over, and its connection."""
    connection = alice.open_stream(f"/sessions/{session}/stream")
    client = TerminalClient(connection)
    check_alive(client)
    return client, connection


def check_alive(client: TerminalClient) -> None:
    """Type something, and see its answer."""
    word = os.urandom(4).hex()
    client.type(f"echo $((40+2))-{word}\n")
    client.wait(lambda text: f"42-{word}" in text)


def wait_for_end(connection: Any, timeout_s: float) -> int | None:
    """Return the close code of a stream that must end in time."""
    deadline = time.monotonic() + timeout_s
    with contextlib.suppress(ConnectionClosed):
        while True:
            connection.recv(timeout=max(0.01, deadline - time.monotonic()))
    code: int | None = connection.close_code
    return code


class Typist(threading.Thread):
    """Types numbered lines without a pause, and reads what comes back."""

    def __init__(self, client: TerminalClient) -> None:
        super().__init__()
        self._client = client
        self._ended = threading.Event()
        self.lines = 0
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            while not self._ended.is_set():
                self._client.type(f"echo line-$(({self.lines}+100000))\n")
                self._client.wait(lambda text: f"line-{self.lines + 100000}" in text[-4000:])
                self.lines += 1
        except BaseException as error:
            self.failure = error

    def stop(self) -> None:
        """End, and fail where typing failed."""
        self._ended.set()
        self.join(30)
        if self.failure:
            raise self.failure


def test_a_terminal_that_is_typed_into_notices_nothing(house: RunningPortico, alice: Person, terminal: str) -> None:
    client, connection = open_terminal(alice, terminal)
    before = house.pids["gateway"]
    refused: list[str] = []
    ended = threading.Event()

    def knock() -> None:
        while not ended.is_set():
            try:
                with httpx.Client(trust_env=False, timeout=20) as browser:
                    status = browser.get(f"{house.url}/api/v1/health").status_code
                    if status != 200:
                        refused.append(str(status))
            except httpx.HTTPError as error:
                refused.append(repr(error))

    knocker, typist = threading.Thread(target=knock), Typist(client)
    knocker.start()
    typist.start()
    try:
        wait_until(lambda: typist.lines > 3, 20, "the first lines")
        house.cli("reload")
        begun = typist.lines
        wait_until(lambda: typist.lines > begun + 20 or typist.failure, 30, "lines after the reload")
    finally:
        ended.set()
        knocker.join(30)
        typist.stop()
    assert not refused
    assert house.pids["gateway"] != before
    assert list_draining(house) == [before]
    shown = re.findall(r"line-(\d+)\r\n", client.output.decode(errors="replace"))
    assert [int(number) - 100000 for number in shown] == list(range(len(shown)))
    assert len(shown) >= typist.lines
    open_terminal(alice, terminal)  # a new stream is the new gateway's
    assert list_draining(house) == [before]
    connection.close()
    wait_for_exit(before, 20)
    wait_until(lambda: not list_draining(house), 20, "nothing that drains")
    log = (house.state_dir / "log/gateway-1.log").read_text()
    assert f"[draining {before}] [supervisor] ended with status 0" in log


def connect_app(alice: Person, house: RunningPortico, session: str) -> httpx.Client:
    """Return a browser with the app's cookie."""
    page = alice.http.post(f"/sessions/{session}/connect").raise_for_status().text
    ticket = re.search(r'name="ticket" value="([^"]+)"', page)
    assert ticket
    client = httpx.Client(base_url=f"http://localhost:{house.apps_port}", timeout=30)
    answer = client.post("/_portico/enter", data={"ticket": ticket[1]}, headers={"Origin": house.url})
    assert answer.status_code == 303
    return client


def test_answers_and_tunnels_of_an_app_go_on(house: RunningPortico, alice: Person) -> None:
    session = alice.wait(alice.start("pages")["id"])["id"]
    before = house.pids["gateway"]
    with contextlib.closing(connect_app(alice, house, session)) as browser:
        apps = str(browser.base_url).rstrip("/")
        cookie = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
        with (
            websockets.sync.client.connect(
                f"{apps}/s/{session}/socket".replace("http", "ws", 1), origin=apps,  # type: ignore[arg-type]
                additional_headers={"Cookie": cookie}, compression=None,
            ) as tunnel,
            browser.stream("GET", f"/s/{session}/slow") as answer,
        ):  # fmt: skip
            parts = answer.iter_raw()
            assert next(parts).strip() == b"one"
            house.cli("reload")
            assert list_draining(house) == [before]
            tunnel.send(b"still here")
            assert tunnel.recv(timeout=20) == b"still here"
            assert browser.get(f"/s/{session}/go").status_code == 200  # by the new gateway
            assert b"".join(parts).strip() == b"two"
            tunnel.send(b"and here")
            assert tunnel.recv(timeout=20) == b"and here"
    wait_for_exit(before, 20)
    alice.http.post(f"/api/v1/sessions/{session}/stop").raise_for_status()


def test_a_cut_reaches_a_gateway_that_drains(house: RunningPortico, terminal: str, alice: Person) -> None:
    with Person(house.url) as other:
        assert other.sign_in(house.get_name("alice"), PASSWORD).status_code == 303
        _, cut = open_terminal(other, terminal)
        stays, _ = open_terminal(alice, terminal)
        house.cli("reload")
        portal = house.pids["portal"]
        os.kill(portal, signal.SIGKILL)  # its channel comes back, too
        wait_until(lambda: house.pids.get("portal") not in (None, portal), 20, "a new portal")
        wait_until(lambda: answers(alice), 20, "the new portal's answer")
        check_alive(stays)
        begin = time.monotonic()
        assert other.http.post("/sign-out").status_code == 303
        assert wait_for_end(cut, 5) == 4001
        assert time.monotonic() - begin < 2
        check_alive(stays)


def answers(person: Person) -> bool:
    """Whether the portal answers."""
    with contextlib.suppress(httpx.HTTPError):
        return person.http.get("/api/v1/me").status_code == 200
    return False


def test_what_drains_ends_when_portico_stops(house: RunningPortico, alice: Person, terminal: str) -> None:
    opened = []
    pids = []
    for _ in range(2):  # two generations
        opened.append(open_terminal(alice, terminal)[1])
        pids.append(house.pids["gateway"])
        house.cli("reload")
    opened.append(open_terminal(alice, terminal)[1])
    pids.append(house.pids["gateway"])
    assert list_draining(house) == pids[:2]
    begin = time.monotonic()
    house.stop()
    assert time.monotonic() - begin < 10
    assert [wait_for_end(connection, 5) for connection in opened] == [1001, 1001, 1001]
    for pid in pids:
        wait_for_exit(pid, 1)
    house.start()
    alice.wait(terminal)


def test_what_drains_dies_with_a_supervisor_that_was_killed(
    house: RunningPortico, alice: Person, terminal: str
) -> None:
    _, connection = open_terminal(alice, terminal)
    before = house.pids["gateway"]
    house.cli("reload")
    assert list_draining(house) == [before]
    house.kill()
    wait_for_exit(before, 10)
    wait_for_end(connection, 5)
    house.start()
    alice.wait(terminal)
    client, _ = open_terminal(alice, terminal)
    check_alive(client)
