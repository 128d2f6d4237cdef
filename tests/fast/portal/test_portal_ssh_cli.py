"""``portico ssh`` against a portal: the key that it makes, the certificate that it gets, and how it fails."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from portal_rig import UIDS, World
from typer.testing import CliRunner, Result

from portico.cli import ssh
from portico.cli.client import Target, parse_error
from portico.cli.main import app
from portico.errors import Conflict, Forbidden, Invalid, PorticoError, Unavailable
from portico.ssh.authority import read_certificate

pytestmark = pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="needs ssh-keygen")


class Terminal:
    """Runs ``portico ssh`` against a portal's application; while it waits for its person, ``meanwhile`` happens."""

    def __init__(self, world: World, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.world = world
        self.home = home
        self.file = home / ".ssh/portico_ed25519"
        self.meanwhile: Callable[[str], Any] = self.confirm
        self.opened: list[str] = []
        self.targets: list[tuple[str, bool]] = []
        self.answers: list[dict[str, Any]] = []
        terminal = self

        class Client:
            def __init__(self, target: Target, *, signs_in: bool = True) -> None:
                self._proof: dict[str, Any] = {} if target.url else {"peer_uid": 20001}
                if target.url and signs_in:
                    self._proof = {"bearer": world.make_token("alice")}
                terminal.targets.append((target.url, signs_in))

            def ask(self, method: str, path: str, body: Any = None) -> Any:
                answer = world.ask(method, f"/api/v1{path}", json=body, **self._proof)
                if not answer.is_success:
                    raise parse_error(answer.json(), answer.status_code)
                terminal.answers.append(answer.json() if answer.content else {})
                return terminal.answers[-1]

            def close(self) -> None:
                pass

        def sleep(seconds: float) -> None:
            self.meanwhile(next(answer["user_code"] for answer in reversed(self.answers) if "user_code" in answer))

        monkeypatch.setattr(ssh, "Client", Client)
        pwd = SimpleNamespace(getpwuid=lambda uid: SimpleNamespace(pw_name=UIDS[uid]))
        monkeypatch.setattr("portico.accounts.accounts.pwd", pwd)
        monkeypatch.setattr(ssh, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
        monkeypatch.setattr(ssh.webbrowser, "open", self.opened.append)
        monkeypatch.setenv("HOME", str(home))
        monkeypatch.setenv("DISPLAY", ":0")
        monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)

    def confirm(self, user_code: str) -> None:
        """Confirm as alice in her browser."""
        cookie = self.world.sign_in("alice")
        answer = self.world.ask("POST", "/ssh-login/confirm", cookie=cookie, data={"user_code": user_code})
        assert "go back to your terminal" in answer.text

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, ["ssh", *arguments])

    def fail(self, *arguments: str) -> PorticoError:
        """Return the error with which the command ended."""
        done = self.run(*arguments)
        assert isinstance(done.exception, PorticoError), done.output
        return done.exception

    def list_left(self) -> list[str]:
        """Return the names of all files and folders in the key's folder."""
        return sorted(path.name for path in self.file.parent.iterdir())


@pytest.fixture
def terminal(own_world: World, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Terminal:
    return Terminal(own_world, tmp_path_factory.mktemp("home"), monkeypatch)


FILES = ["portico_ed25519", "portico_ed25519-cert.pub", "portico_ed25519.pub", "portico_login"]


def test_a_file_gets_a_certificate_from_another_machine(terminal: Terminal) -> None:
    done = terminal.run("login", "--url", "http://localhost:8000")
    assert done.exit_code == 0, done.output
    assert terminal.targets == [("http://localhost:8000", False)]
    assert terminal.list_left() == FILES
    assert stat.S_IMODE(terminal.file.stat().st_mode) == 0o600
    named = terminal.file.with_name("portico_login")
    assert named.read_text().splitlines()[0] == "IdentityFile ~/.ssh/portico_ed25519"
    assert stat.S_IMODE(named.stat().st_mode) == 0o600
    assert stat.S_IMODE(terminal.file.parent.stat().st_mode) == 0o700
    listing = read_certificate(Path(f"{terminal.file}-cert.pub").read_text())
    assert listing.principals == ("alice",)
    assert listing.critical == ("source-address 192.0.2.7/32",)
    code = terminal.answers[0]["user_code"]
    assert terminal.opened == [f"http://localhost:8000/ssh-login#{code}"]
    said = " ".join(done.output.split())
    assert f"Your code is {code}" in said
    assert "Your certificate is for alice and ends in" in said
    assert terminal.answers[0]["device_code"] not in done.output


def test_over_the_machines_own_socket_it_is_good_from_everywhere(terminal: Terminal) -> None:
    assert terminal.run("login", "--print-url").exit_code == 0
    assert terminal.opened == []
    assert read_certificate(Path(f"{terminal.file}-cert.pub").read_text()).critical == ()


def test_the_next_one_takes_the_place_of_the_one_before(terminal: Terminal) -> None:
    terminal.run("login", "--print-url")
    before = terminal.file.read_text()
    assert terminal.run("login", "--print-url").exit_code == 0
    assert terminal.file.read_text() != before
    assert terminal.list_left() == FILES


@pytest.mark.parametrize("public", [None, "ssh-ed25519 AAAA alice@laptop\n", "ssh-ed25519 AAAA\n"])
def test_a_key_from_elsewhere_is_not_written_over(terminal: Terminal, public: str | None) -> None:
    mine = terminal.home / "id_ed25519"
    mine.write_text("my own key")
    if public is not None:
        Path(f"{mine}.pub").write_text(public)
    assert isinstance(terminal.fail("login", "--file", str(mine)), Conflict)
    assert mine.read_text() == "my own key"
    assert terminal.answers == []


def test_a_refusal_is_told_and_the_one_before_stays(terminal: Terminal) -> None:
    terminal.run("login", "--print-url")
    before = terminal.file.read_text()

    def refuse(user_code: str) -> None:
        cookie = terminal.world.sign_in("alice")
        terminal.world.ask("POST", "/ssh-login/refuse", cookie=cookie, data={"user_code": user_code})

    terminal.meanwhile = refuse
    assert isinstance(terminal.fail("login"), Forbidden)
    assert terminal.file.read_text() == before
    assert terminal.list_left() == FILES


def test_a_login_that_expired_is_told(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal.meanwhile = lambda code: terminal.world.ssh_certificates._logins.clear()
    error = terminal.fail("login")
    assert isinstance(error, Unavailable)
    assert "in time" in error.message
    assert terminal.list_left() == []


def test_a_portal_that_starts_anew_is_waited_for(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = terminal.world.ssh_certificates.collect

    def collect(device_code: str) -> Any:
        asked.append(device_code)
        if len(asked) == 1:
            raise Unavailable("The database is locked.")
        return real(device_code)

    terminal.meanwhile = lambda code: terminal.confirm(code) if not asked else None
    monkeypatch.setattr(terminal.world.ssh_certificates, "collect", collect)
    assert terminal.run("login").exit_code == 0
    assert len(asked) == 2


def test_ctrl_c_leaves_nothing(terminal: Terminal) -> None:
    def interrupt(code: str) -> None:
        raise KeyboardInterrupt

    terminal.meanwhile = interrupt
    done = terminal.run("login")
    assert done.exit_code == 130
    assert "Nothing was kept." in done.output
    assert terminal.list_left() == []


@pytest.mark.parametrize("vice", ["", "nonsense", "another key's"])
def test_what_is_no_certificate_of_this_key_is_not_kept(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch, vice: str
) -> None:
    def lie(*_: Any) -> Any:
        if vice == "another key's":
            return "done", Path(f"{terminal.file}-cert.pub").read_text().strip()
        return "done", vice

    assert terminal.run("login").exit_code == 0
    before = terminal.file.read_text()
    monkeypatch.setattr(terminal.world.ssh_certificates, "collect", lie)
    assert isinstance(terminal.fail("login"), Unavailable)
    assert terminal.file.read_text() == before


def test_without_an_agent_it_says_so_before_anything(terminal: Terminal) -> None:
    assert isinstance(terminal.fail("login", "--agent"), Invalid)
    assert terminal.answers == []


@pytest.fixture
def agent(monkeypatch: pytest.MonkeyPatch, terminal: Terminal) -> Iterator[None]:
    path = str(terminal.home / "agent.sock")
    process = subprocess.Popen(["ssh-agent", "-D", "-a", path], stdout=subprocess.DEVNULL)
    monkeypatch.setenv("SSH_AUTH_SOCK", path)
    subprocess.run(
        ["sh", "-c", f"while ! [ -S {path} ]; do :; done"], check=True, timeout=10, env={"PATH": os.environ["PATH"]}
    )
    yield
    process.send_signal(signal.SIGTERM)
    process.wait(10)


@pytest.mark.usefixtures("agent")
def test_the_agent_gets_both_and_no_file_is_left(terminal: Terminal) -> None:
    done = terminal.run("login", "--agent")
    assert done.exit_code == 0, done.output
    listed = subprocess.run(["ssh-add", "-l"], capture_output=True, text=True, check=True).stdout
    assert "(ED25519-CERT)" in listed
    assert "(ED25519)" in listed
    assert not terminal.file.parent.exists()


def test_certificates_are_listed_and_revoked(terminal: Terminal) -> None:
    assert "no SSH certificates" in terminal.run("certificates", "list").output
    terminal.run("login")
    serial = terminal.world.ssh_certificates.list_certificates(terminal.world.identify("alice"))[0].serial
    assert str(serial) in terminal.run("certificates", "list").output
    assert terminal.run("certificates", "revoke", str(serial)).exit_code == 0
    assert "no SSH certificates" in terminal.run("certificates", "list").output
