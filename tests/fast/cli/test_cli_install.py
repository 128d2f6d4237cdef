"""portico.cli.install: each step once, failures in words, and nothing that users could not read."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest

from portico.cli import install, packages
from portico.cli.install import Installer
from portico.errors import Unavailable

ROOT = Path(__file__).parents[3]


def make_installer(tmp_path: Path) -> Installer:
    target = tmp_path / "installed"
    target.mkdir()
    return Installer(ROOT, target)


def test_a_stamp_follows_what_a_step_was_made_from(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    installer = Installer(tmp_path, tmp_path)
    first = installer._hash([tmp_path / "a"])
    installer._stamp("step", first)
    assert not installer._is_stale("step", installer._hash([tmp_path / "a"]))
    (tmp_path / "a").write_text("2")
    assert installer._is_stale("step", installer._hash([tmp_path / "a"]))
    assert installer._is_stale("other", first)
    installer._forget_stamps("step")
    assert installer._is_stale("step", first)


def test_a_failed_step_tells_its_last_lines_and_where_the_rest_is(tmp_path: Path) -> None:
    installer = make_installer(tmp_path)
    with pytest.raises(Unavailable) as told:
        installer._call("a thing", ["/bin/sh", "-c", "echo WARNING: Retrying; echo it is broken >&2; exit 7"])
    assert told.value.message == "Installing a thing failed."
    assert "status 7" in told.value.why
    assert "it is broken" in told.value.why
    assert "Retrying" not in told.value.why
    assert "install.log" in told.value.hint


def test_a_missing_program_is_told(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="failed") as told:
        make_installer(tmp_path)._call("a thing", ["/no/such/program"])
    assert "No such file" in told.value.why


def test_pip_and_npm_see_no_variable_of_the_clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/somewhere")
    installer = make_installer(tmp_path)
    installer._call("a thing", ["/bin/sh", "-c", 'echo "<$PYTHONPATH>"'])
    assert "<>" in (installer.target / "install.log").read_text()


def test_what_is_installed_must_be_readable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    target = tmp_path / "closed" / "installed"
    target.mkdir(parents=True)
    (tmp_path / "closed").chmod(0o700)
    with pytest.raises(Unavailable, match="could not reach") as told:
        Installer(ROOT, target)._check_readable()
    assert "--install-dir" in told.value.hint


@pytest.mark.parametrize(
    ("arguments", "value"),
    [(["up", "--x", "1"], "1"), (["up", "--x=2"], "2"), (["up", "--x"], None), (["up"], None), (["--xy", "1"], None)],
)
def test_options_before_there_is_a_parser(arguments: list[str], value: str | None) -> None:
    assert install._take_option(arguments, "--x") == value


def test_lock_files_are_exact_and_agree() -> None:
    pins: dict[str, dict[str, str]] = {}
    for path in sorted(ROOT.glob("requirements*.lock")):
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
        assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", line) for line in lines), path.name
        pins[path.name] = dict(line.lower().split("==") for line in lines)
    assert not pins["requirements.lock"].keys() & pins["requirements-test.lock"].keys()
    assert "debugpy" not in pins["requirements-jupyter.lock"], "it listens on TCP without a password"


def test_the_lock_of_npm_names_no_registry_and_has_a_hash_for_each_package() -> None:
    text = (ROOT / "package-lock.json").read_text()
    assert "http" not in text
    lock = json.loads(text)["packages"]
    assert all(entry["integrity"].startswith("sha512-") for name, entry in lock.items() if name)
    exact = json.loads((ROOT / "package.json").read_text())["dependencies"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in exact.values())
    assert {package for package, _ in install.ASSETS.values()} <= exact.keys()


def test_without_root_the_missing_packages_and_the_command_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(packages, "find_missing", lambda names: [name for name in names if name == "icewm"])
    told: list[str] = []
    packages.install(packages.GROUPS, lambda *_: pytest.fail("nothing may be run"), told.append)
    assert "Desktop (light): icewm" in told[0]
    assert "apt-get install --no-install-recommends icewm" in told[0]


def test_root_installs_only_what_is_missing_and_is_asked_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(packages.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(packages, "find_missing", lambda names: [name for name in names if name == "icewm"])
    ran: list[tuple[list[str], dict[str, str]]] = []
    packages.install(packages.GROUPS, lambda what, argv, env: ran.append((argv, env)), pytest.fail)
    assert [argv[-1] for argv, _ in ran] == ["update", "icewm"]
    assert all(env["DEBIAN_FRONTEND"] == "noninteractive" for _, env in ran)
