"""The documentation can't lie about settings and commands."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import typer

from portico.cli.main import app
from portico.config import ClusterConfig, Config

ROOT = Path(__file__).parents[3]


def _render_default(value: object) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, bool):
        return str(value).lower()
    return "[]" if value == () else str(value)


def test_every_setting_is_documented_with_its_default_and_help() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(.*?)` \| (.*) \|$", (ROOT / "docs/configuration.md").read_text(), re.MULTILINE)
    settings = [f for kind in (Config, ClusterConfig) for f in dataclasses.fields(kind) if f.metadata]
    assert rows == [(f.name, _render_default(f.default), f.metadata["help"]) for f in settings]


def test_every_command_has_help_and_is_in_the_readme() -> None:
    group = typer.main.get_command(app)
    text = (ROOT / "README.md").read_text()
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        assert command.help, f"portico {name} has no help"
        assert f"portico {name}" in text, f"README.md doesn't mention portico {name}"
        for part, inner in getattr(command, "commands", {}).items():
            assert inner.help, f"portico {name} {part} has no help"


def test_commands_in_the_readme_exist() -> None:
    group = typer.main.get_command(app)
    mentioned = set(
        re.findall(r"(?:^|[`\s(])(?:\./)?portico ([a-z][a-z-]+)", (ROOT / "README.md").read_text(), re.MULTILINE)
    )
    assert mentioned - {"test"} <= set(group.commands), "README.md has a command that does not exist"  # type: ignore[attr-defined]
