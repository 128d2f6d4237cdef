"""``portico keys``: which file is taken, and that a private half goes nowhere."""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from portico.cli import keys
from portico.cli.main import app
from portico.errors import Invalid, NotFound, PorticoError

PRIVATE = "-----BEGIN OPENSSH PRIVATE KEY-----\nAAAA\n-----END OPENSSH PRIVATE KEY-----\n"


def make_key(comment: str = "alice@laptop") -> str:
    """Return a new public key; nobody has its private half."""
    blob = b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + os.urandom(32)
    return f"ssh-ed25519 {base64.b64encode(blob).decode()} {comment}"


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[Any, ...]]:
    """Return what Portico is asked for; HOME is empty."""
    found: list[tuple[Any, ...]] = []

    class NotedClient:
        def __init__(self, target: object) -> None:
            pass

        def ask(self, *what: Any) -> Any:
            found.append(what)
            key = {"id": 3, "label": "x", "sources": [], "fingerprint": "SHA256:x"}
            return [key] if what[0] == "GET" else key

    monkeypatch.setattr(keys, "Client", NotedClient)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ssh").mkdir()
    return found


def run(*arguments: str, text: str = "") -> str:
    """Return what a command prints."""
    done = CliRunner().invoke(app, ["keys", *arguments], input=text, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.output


def refuse(*arguments: str, text: str = "") -> PorticoError:
    """Return the error with which a command ends."""
    with pytest.raises(PorticoError) as caught:
        CliRunner().invoke(app, ["keys", *arguments], input=text, catch_exceptions=False)
    return caught.value


def test_the_best_key_in_the_home_is_taken_and_named(asked: list[Any], tmp_path: Path) -> None:
    told: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(keys.show, "tell", told.append)
        for name in ("id_rsa.pub", "id_ecdsa.pub", "id_ed25519.pub"):
            (tmp_path / ".ssh" / name).write_text(make_key(name))
            run("add")
            assert asked.pop()[2]["key"].endswith(name)
            assert told[-2:] == [f"Taking {tmp_path}/.ssh/{name}.", "Added."]


def test_options_are_passed_on(asked: list[Any], tmp_path: Path) -> None:
    text = make_key()
    path = tmp_path / "my.pub"
    path.write_bytes(text.encode("utf-16"))
    run("add", str(path), "--label", "mine", "--from", "10.0.0.0/8", "--from", "::1", "--days", "30")
    assert asked == [("POST", "/keys", {"key": text, "label": "mine", "sources": ["10.0.0.0/8", "::1"], "days": 30})]
    asked.clear()
    run("add", "-", text=text)
    assert asked == [("POST", "/keys", {"key": text, "label": "", "sources": [], "days": 0})]


def test_a_private_half_goes_nowhere(asked: list[Any], tmp_path: Path) -> None:
    (tmp_path / "id").write_text(PRIVATE)
    assert "private half" in refuse("add", str(tmp_path / "id")).message
    assert "private half" in refuse("add", "-", text=PRIVATE).message
    assert asked == []


def test_without_a_key_it_says_how_to_make_one(asked: list[Any], tmp_path: Path) -> None:
    error = refuse("add")
    assert isinstance(error, NotFound) and "ssh-keygen -t ed25519" in error.hint
    assert isinstance(refuse("add", str(tmp_path / "nothing")), Invalid)
    assert isinstance(refuse("add", str(tmp_path)), Invalid)
    assert asked == []


def test_list_and_remove(asked: list[Any]) -> None:
    run("list")
    run("remove", "3")
    assert asked == [("GET", "/keys"), ("DELETE", "/keys/3")]
