"""Portico behind the real nginx and Caddy, with the very configurations that docs/front-servers.md shows."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import secrets
import socket
import struct
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from front import HOST, DistantPerson, find_program, make_pair, read_settings, running_front
from pages_app import write_pages_app
from person import TerminalClient
from running import PASSWORD, RunningPortico, find_free_ports, wait_until
from websockets.exceptions import InvalidStatus

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

CLIENT = "127.0.0.2"
"""Where people come from here: an address that is not trusted, other than the front server's."""


@pytest.fixture(scope="module", autouse=True)
def example_org_is_here() -> Iterator[None]:
    """Have the sample's names mean this machine, for this process."""
    real = socket.getaddrinfo

    def look_up(host: Any, *more: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        return real("127.0.0.1" if name and str(name).endswith(".example.org") else host, *more, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", look_up)
        yield


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[Path, Path]]:
    """Return a certificate for all of the sample's names, and its key."""
    with tempfile.TemporaryDirectory(prefix="pt-tls-") as folder:
        try:
            yield make_pair(Path(folder))
        except FileNotFoundError:
            pytest.skip("openssl is not installed")


@dataclass
class Site:
    """A Portico behind a front server, and one person who has a terminal and an app in it."""

    portico: RunningPortico
    variant: str
    ports: tuple[int, int]
    alice: str = ""
    sessions: dict[str, str] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """The portal, as browsers see it."""
        return f"https://{HOST}:{self.ports[0]}"

    def get_apps_url(self, session_id: str) -> str:
        """Return an app's origin, as browsers see it."""
        if self.variant == "wildcard":
            return f"https://{session_id}.apps.example.org:{self.ports[0]}"
        return f"https://{HOST}:{self.ports[1]}"

    def enter(self) -> DistantPerson:
        """Return alice, who has just signed in through the front server."""
        person = DistantPerson(self.url, CLIENT)
        if not self.alice:
            name = self.portico.get_name("alice")
            link = json.loads(self.portico.cli("user", "add", name, "--json").stdout)["link"]
            assert link.startswith(f"{self.url}/enrol#")
            person.enrol(link.partition("#")[2], PASSWORD)
            self.alice = name
        answer = person.sign_in(self.alice, PASSWORD)
        assert answer.status_code == 303, answer.text
        return person

    def get_session(self, person: DistantPerson, app: str) -> str:
        """Return the id of a ready session of an app, started at the first call."""
        if app not in self.sessions:
            self.sessions[app] = person.start(app)["id"]
        person.wait(self.sessions[app])
        return self.sessions[app]

    def read_audit(self, action: str) -> list[dict[str, Any]]:
        """Return the entries of an action, the newest first."""
        entries = json.loads(self.portico.cli("audit", "--json").stdout)
        return [entry for entry in entries if entry["action"] == action]


@pytest.fixture(scope="module")
def sites(portico_factory: Callable[..., RunningPortico]) -> Iterator[Callable[[str], Site]]:
    """Return a function that returns a Portico with the sample's settings for a variant; each is started once."""
    made: dict[str, Site] = {}
    with tempfile.TemporaryDirectory(prefix="pt-apps-", dir="/run") as folder:
        write_pages_app(Path(folder))

        def get(variant: str) -> Site:
            if variant not in made:
                ports = find_free_ports()[:2]
                settings = {**read_settings(variant, *ports), "catalog_dirs": [folder]}
                made[variant] = Site(portico_factory(settings=settings), variant, ports)
            return made[variant]

        yield get


@pytest.fixture(scope="module", params=["nginx wildcard", "caddy wildcard", "nginx port", "caddy port"])
def front(request: pytest.FixtureRequest, sites: Callable[[str], Site], pair: tuple[Path, Path]) -> Iterator[Site]:
    """Return a Portico with a front server before it."""
    server, variant = request.param.split()
    if not find_program(server):
        pytest.skip(f"{server} is not here; `./portico test` fetches it from Debian")
    site = sites(variant)
    with running_front(server, variant, site.portico, site.ports, pair):
        yield site


@pytest.fixture(scope="module")
def person(front: Site) -> Iterator[DistantPerson]:
    """Return alice, signed in through the front server."""
    with front.enter() as alice:
        assert isinstance(alice, DistantPerson)
        yield alice


def connect_app(person: DistantPerson, site: Site, session_id: str) -> httpx.Client:
    """Go the way of the Connect button; return a browser with the app's cookie alone."""
    page = person.http.post(f"/sessions/{session_id}/connect").raise_for_status().text
    ticket = re.search(r'name="ticket" value="([^"]+)"', page)
    action = re.search(r'action="([^"]+/enter)"', page)
    assert ticket and action
    assert action[1] == f"{site.get_apps_url(session_id)}/_portico/enter"
    client = person.make_client(site.get_apps_url(session_id))
    answer = client.post("/_portico/enter", data={"ticket": ticket[1]}, headers={"Origin": site.url})
    assert answer.status_code == 303, answer.text
    assert answer.headers["location"] == f"/s/{session_id}/"
    return client


def test_pages_and_secure_cookies(front: Site, person: DistantPerson) -> None:
    assert "Terminal" in person.http.get("/").raise_for_status().text
    cookie = next(cookie for cookie in person.http.cookies.jar if "portico" in cookie.name)
    assert (cookie.name, cookie.secure, cookie.path) == ("__Host-portico", True, "/")
    assert "max-age" in person.http.get("/").headers["strict-transport-security"]
    with person.make_client(front.url, Host="elsewhere.example.org") as wrong:
        answer = wrong.get("/")
        assert answer.status_code == 421 or not answer.content  # Portico's word, or the front server's own


def test_a_terminal_streams_through_it(front: Site, person: DistantPerson) -> None:
    session = front.get_session(person, "terminal")
    terminal = TerminalClient(person.open_stream(f"/sessions/{session}/stream"))
    word = secrets.token_hex(4)  # what an earlier front server's test wrote is shown again
    terminal.type(f"echo through-$((40+2))-{word}\n")
    terminal.wait(lambda text: f"through-42-{word}" in text)
    terminal.type(f"head -c 1500000 /dev/zero | tr '\\0' x; echo; echo all-$((40+3))-{word}\n")
    text = terminal.wait(lambda text: f"all-43-{word}" in text, 60)
    assert text.partition(f"through-42-{word}")[2].count("x") >= 1_500_000


def test_events_come_at_once(front: Site, person: DistantPerson) -> None:
    with person.http.stream("GET", "/api/v1/feed") as events:
        lines = events.iter_lines()
        assert "event: hello" in (next(lines), next(lines), next(lines))
        assert events.headers["content-type"].startswith("text/event-stream")


def test_an_app_is_whole_behind_it(front: Site, person: DistantPerson) -> None:
    session = front.get_session(person, "pages")
    path = f"/s/{session}"
    with contextlib.closing(connect_app(person, front, session)) as client:
        cookie = next(iter(client.cookies.jar))
        assert (cookie.name, cookie.secure) == (f"portico-app-{session}", True)
        seen = client.get(f"{path}/hello").raise_for_status().json()["headers"]
        assert seen["x-forwarded-proto"] == "https"
        assert seen["x-forwarded-for"] == CLIENT
        assert seen["host"] == front.get_apps_url(session).removeprefix("https://")
        assert "portico" not in seen.get("cookie", "")
        body = struct.pack(">I", 7) * 10_000_000  # 40 MB: more than any front server's default, and Portico's for pages
        sent = client.post(f"{path}/upload", content=body).raise_for_status().json()
        assert sent["sha256"] == hashlib.sha256(body).hexdigest()
        with client.stream("GET", f"{path}/slow") as answer:
            parts = answer.iter_raw()
            assert next(parts).strip() == b"one"  # the rest is sent only after the next request
            client.get(f"{path}/go").raise_for_status()
            assert b"".join(parts).strip() == b"two"
        connection = person.open_socket(front.get_apps_url(session), f"{path}/socket", client, [])
        connection.send(b"there and back")
        assert connection.recv(timeout=20) == b"there and back"
    with person.make_client(front.get_apps_url(session)) as stranger:
        assert stranger.get(f"{path}/hello").status_code == 401


def test_the_audit_log_has_the_persons_address(front: Site, person: DistantPerson) -> None:
    assert front.read_audit("sign-in:add")[0]["address"] == CLIENT
    assert person.http.get("/api/v1/sign-ins").json()[0]["address"] == CLIENT


def test_the_gateways_log_has_the_persons_address(front: Site, person: DistantPerson) -> None:
    log = front.portico.state_dir / "log/gateway-1.log"
    before = log.read_text().count(f"refused {CLIENT}:")
    with DistantPerson(front.url, CLIENT) as stranger, pytest.raises(InvalidStatus):
        stranger.open_stream(f"/sessions/{'z' * 12}/stream")
    wait_until(lambda: log.read_text().count(f"refused {CLIENT}:") > before, 10, "the refusal's line")
    assert "refused 127.0.0.1:" not in log.read_text(), "a front server is never the one who is refused"


def test_a_reload_behind_it_refuses_nobody(front: Site, person: DistantPerson) -> None:
    ended = threading.Event()
    seen: Counter[str] = Counter()

    def knock() -> None:
        with person.make_client(front.url) as browser:  # keeps its connection, as the front server keeps its own
            while not ended.is_set():
                for method, path in (("GET", "/api/v1/health"), ("POST", "/sign-out")):
                    answer = browser.request(method, path)
                    seen[f"{method} {answer.status_code}"] += 1

    knockers = [threading.Thread(target=knock) for _ in range(3)]
    for knocker in knockers:
        knocker.start()
    try:
        wait_until(lambda: sum(seen.values()) > 20, 20, "the first answers")
        for _ in range(2):
            front.portico.cli("reload")
        before = sum(seen.values())
        wait_until(lambda: sum(seen.values()) > before + 20, 20, "answers afterwards")
    finally:
        ended.set()
        for knocker in knockers:
            knocker.join(30)
    assert set(seen) == {"GET 200", "POST 401"}


FORGED = {"X-Forwarded-For": "203.0.113.9", "X-Forwarded-Proto": "http", "Forwarded": "for=203.0.113.9"}


def test_a_clients_own_header_never_wins(front: Site) -> None:
    with DistantPerson(front.url, CLIENT) as forger:
        assert isinstance(forger, DistantPerson)
        client = forger.make_client(front.url, **FORGED)
        assert client.post("/sign-in", data={"name": "forger", "password": "x" * 20}).status_code == 401
        client.close()
    assert front.read_audit("sign-in:fail")[0]["address"] == CLIENT


def test_somebody_else_is_no_front_server(front: Site) -> None:
    transport = httpx.HTTPTransport(local_address="127.0.0.3")
    headers = {"Host": front.url.removeprefix("https://"), "Origin": front.url} | FORGED
    with httpx.Client(base_url=f"http://127.0.0.1:{front.portico.port}", headers=headers, transport=transport) as other:
        assert other.post("/sign-in", data={"name": "forger", "password": "x" * 20}).status_code == 401
    assert front.read_audit("sign-in:fail")[0]["address"] == "127.0.0.3"
