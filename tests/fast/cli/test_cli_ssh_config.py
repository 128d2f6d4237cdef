"""`portico ssh config`: what it writes into somebody's ~/.ssh, and what it never touches."""

from __future__ import annotations

import base64
import os
import pwd
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from portico.cli import desktop, ssh_config
from portico.cli.desktop import find_desktop, find_viewer
from portico.cli.main import app
from portico.cli.ssh_config import parse_way
from portico.errors import Conflict, Invalid, NotFound, PorticoError, Unavailable

KEY = "ssh-ed25519 " + base64.b64encode(b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + bytes(32)).decode()
ANSWER: dict[str, Any] = {
    "host": "hpc.example.org", "port": 2222, "user": "alice", "connect": "/run/portico/ssh/connect",
    "host_keys": [KEY], "host_ca": KEY, "config": "Host *\n    ProxyCommand evil\n", "known_hosts": "evil",
}  # fmt: skip

Run = Callable[..., Result]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that stands in for ~/.ssh; it is not there yet."""
    monkeypatch.setattr(ssh_config, "find_ssh_folder", lambda: tmp_path / "ssh")
    return tmp_path / "ssh"


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Return a function that runs a command against a portal that tells ANSWER."""

    class Portal:
        def __init__(self, target: Any) -> None:
            pass

        def ask(self, method: str, path: str) -> dict[str, Any]:
            assert (method, path) == ("GET", "/ssh")
            return ANSWER

    monkeypatch.setattr(ssh_config, "Client", Portal)

    def run(*arguments: str, says: str | None = None) -> Result:
        monkeypatch.setattr(ssh_config, "is_person_there", lambda: says is not None)
        return CliRunner().invoke(app, ["ssh", "config", *arguments], input=says or "")

    return run


def list_modes(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in folder.iterdir()}


def test_by_default_it_only_prints(run: Run, folder: Path) -> None:
    for arguments in ((), ("--print",)):
        done = run(*arguments)
        assert done.exit_code == 0
        assert done.stdout.startswith("# Portico at hpc.example.org")
        assert "evil" not in done.stdout, "it is rendered here: no file of the portal's is believed"
        assert not folder.exists()


def test_it_writes_both_files_and_the_line(run: Run, folder: Path) -> None:
    assert run("--write", "--yes").exit_code == 0
    assert folder.stat().st_mode & 0o777 == 0o700
    assert list_modes(folder) == {"config": 0o600, "portico_config": 0o600, "portico_known_hosts": 0o600}
    assert (folder / "config").read_text() == "Include portico_config\n"
    assert "evil" not in "".join(path.read_text() for path in folder.iterdir())
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert run("--write").exit_code == 0, "nothing to ask any more"
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_what_was_there_stays_with_its_mode_and_its_link(run: Run, folder: Path, tmp_path: Path) -> None:
    folder.mkdir()
    dotfiles = tmp_path / "dotfiles"
    dotfiles.write_bytes(b"Host *\r\n    User \xff\r\n")
    dotfiles.chmod(0o640)
    (folder / "config").symlink_to(dotfiles)
    assert run("--write", "--yes").exit_code == 0
    assert (folder / "config").is_symlink()
    assert dotfiles.read_bytes() == b"Include portico_config\n\nHost *\r\n    User \xff\r\n"
    assert dotfiles.stat().st_mode & 0o777 == 0o640


def test_it_asks_first(run: Run, folder: Path) -> None:
    done = run("--write")
    assert isinstance(done.exception, Invalid)
    assert "--yes" in done.exception.hint
    assert not folder.exists()
    assert run("--write", says="n\n").exit_code == 1
    assert not folder.exists()
    assert run("--write", says="y\n").exit_code == 0
    assert (folder / "config").exists()


@pytest.mark.parametrize("name", ["portico_config", "portico_known_hosts"])
def test_a_file_that_is_not_ours_is_left_alone(run: Run, folder: Path, name: str) -> None:
    folder.mkdir()
    (folder / name).write_text("Host mine\n")
    done = run("--write", "--yes")
    assert isinstance(done.exception, Conflict)
    assert (folder / name).read_text() == "Host mine\n"
    assert list_modes(folder).keys() == {name}


def test_another_portico_is_asked_about(run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run("--write", "--yes").exit_code == 0
    monkeypatch.setitem(ANSWER, "host", "other.example.org")
    assert isinstance(run("--write").exception, Invalid)
    assert "HostName hpc.example.org" in (folder / "portico_config").read_text()
    done = run("--write", says="y\n")
    assert "is for the Portico at hpc.example.org now" in done.output
    assert "HostName other.example.org" in (folder / "portico_config").read_text()


def test_a_folder_that_can_not_be_written_is_said(run: Run, folder: Path) -> None:
    folder.write_text("a file")  # root, too, can't make a folder of it
    assert isinstance(run("--write", "--yes").exception, Unavailable)


@pytest.mark.parametrize(
    ("changes", "error"),
    [({"host": "a\nb"}, Invalid), ({"connect": "/bin/sh -c evil"}, Invalid), ({"port": "x"}, Unavailable),
     ({"host_keys": None}, Unavailable), ({"host_keys": ["-"]}, Invalid)],
)  # fmt: skip
def test_a_portal_gone_bad_is_not_believed(changes: dict[str, Any], error: type[PorticoError]) -> None:
    with pytest.raises(error):
        parse_way(ANSWER | changes)


def test_the_folder_is_the_accounts_and_not_that_of_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/nowhere")
    assert Path(pwd.getpwuid(os.getuid()).pw_dir, ".ssh") == ssh_config.find_ssh_folder()


# desktops


def make(id: str, app_id: str = "desk", reach: str = "rfb", state: str = "ready") -> dict[str, Any]:
    return {"id": id, "app_id": app_id, "reach": reach, "state": state}


def test_a_desktop_is_found_by_its_id_or_its_app() -> None:
    sessions = [make("c", state="queued"), make("b"), make("a")]
    assert find_desktop(sessions, "a")["id"] == "a"
    assert find_desktop(sessions, "desk")["id"] == "b", "the newest that is ready"
    with pytest.raises(Conflict, match="not ready"):
        find_desktop(sessions, "c")
    with pytest.raises(Conflict, match="no desktop"):
        find_desktop([make("t", "terminal", "pty")], "t")
    with pytest.raises(NotFound) as error:
        find_desktop(sessions, "nothing")
    assert "b (desk), a (desk)" in error.value.hint


def write_program(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_a_viewer_that_takes_a_unix_socket_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(desktop, "VIEWERS", ("one", "two"))
    other = write_program(tmp_path / "one", "echo RealVNC Viewer")
    with pytest.raises(Unavailable, match="TigerVNC"):
        find_viewer("", needs_tiger=True)
    assert find_viewer("", needs_tiger=False) == str(other)
    assert find_viewer("one", needs_tiger=True) == str(other), "one that was named is believed"
    tiger = write_program(tmp_path / "two", "echo TigerVNC Viewer v1.12.0 >&2; exit 1")
    assert find_viewer("", needs_tiger=True) == str(tiger)
    with pytest.raises(Unavailable, match="nothing-of-that-name"):
        find_viewer("nothing-of-that-name", needs_tiger=False)


@pytest.mark.parametrize(
    ("said", "path"),
    [
        ("portico-socket=/run/x/app.sock\n", "/run/x/app.sock"),
        ("Welcome!\nportico-socket=/run/x/app.sock\r\nbye", "/run/x/app.sock"),
        ("portico-socket=\n", None),
        ("portico-socket=/run/x:localhost:22\n", None),
        ("portico-socket=/run/x y\n", None),
        ("x portico-socket=/run/x\n", None),
    ],
)
def test_only_a_path_is_taken_for_one(said: str, path: str | None) -> None:
    found = desktop.PATH.search(said.replace("\r", ""))
    assert (found[1] if found else None) == path
