"""Writes requirements*.lock anew: resolves in fresh virtual environments, keeps each file's opening comment."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
LEFT_OUT = {"requirements-jupyter.lock": {"debugpy"}}  # why: see the comment at the head of that file


def resolve(wanted: list[str]) -> list[str]:
    """Return the closure of ``wanted`` as exact pins, sorted."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(["/usr/bin/python3", "-m", "venv", folder], check=True)
        pip = [f"{folder}/bin/python", "-m", "pip", "--disable-pip-version-check", "-q"]
        subprocess.run([*pip, "install", *wanted], check=True)
        frozen = subprocess.run([*pip, "freeze"], check=True, capture_output=True, text=True).stdout
    return [line for line in frozen.splitlines() if "==" in line]


def write(name: str, pins: list[str]) -> None:
    """Replace the pins of a lock file."""
    path = ROOT / name
    head = [line for line in path.read_text().splitlines() if line.startswith("#")]
    kept = [pin for pin in pins if pin.partition("==")[0].lower() not in LEFT_OUT.get(name, set())]
    path.write_text("\n".join([*head, *kept]) + "\n")
    print(f"{name}: {len(kept)} packages", file=sys.stderr)


def main() -> None:
    """Write all of them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    runtime = resolve([*project["project"]["dependencies"], *project["build-system"]["requires"]])
    tests = resolve([*runtime, *project["project"]["optional-dependencies"]["test"]])
    write("requirements.lock", runtime)
    write("requirements-test.lock", [pin for pin in tests if pin not in runtime])
    write("requirements-jupyter.lock", resolve(["jupyterlab"]))


if __name__ == "__main__":
    main()
