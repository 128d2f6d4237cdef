"""Peers that are missing: Debian's packages by apt-get as root, the others into a cache folder of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

DEBIAN: Final = {"haproxy": "haproxy", "nginx": "nginx-light", "wrk": "wrk", "npm": "npm", "node": "nodejs"}
"""Programs, and the packages that have them."""

_PATH: Final = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
_INSTALL_S: Final = 600


def find_cache() -> Path:
    """Return the folder for what is installed without root; outside the repository."""
    base = Path("/var/cache") if os.geteuid() == 0 else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "portico-bench"


def prepare(may_install: bool, tell: Callable[[str], None]) -> tuple[dict[str, list[str]], dict[str, str]]:
    """Install what is missing, as far as allowed.

    Returns:
        The argv that each peer's program begins with, and why the others are missing.
    """
    absent = [program for program in DEBIAN if not shutil.which(program, path=_PATH)]
    reasons = {}
    if absent and may_install:
        packages = [DEBIAN[program] for program in absent]
        if os.geteuid() == 0 and shutil.which("apt-get"):
            tell(f"installing {' '.join(packages)}")
            reason = _install_debian(packages)
        else:
            reason = f"only root can install it: apt-get install --no-install-recommends {' '.join(packages)}"
        reasons = {program: reason for program in absent}
    tools = {}
    for program in DEBIAN:
        if found := shutil.which(program, path=_PATH):
            tools[program] = [found]
    cache = find_cache()
    for name, path, install in (
        ("websockify", cache / "venv/bin/websockify", _install_websockify),
        ("configurable-http-proxy", cache / "node_modules/.bin/configurable-http-proxy", _install_proxy),
    ):
        if not path.exists() and may_install:
            tell(f"installing {name} into {cache}")
            cache.mkdir(parents=True, exist_ok=True)
            reasons[name] = install(cache)
        if path.exists():
            tools[name] = [str(path)]
    wanted = [*DEBIAN, "websockify", "configurable-http-proxy"]
    return tools, {name: reasons.get(name) or "not installed" for name in wanted if name not in tools}


def _run(*argv: str) -> str:
    """Run it; return why it failed, or nothing."""
    try:
        quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        done = subprocess.run(argv, capture_output=True, text=True, timeout=_INSTALL_S, check=False, env=quiet)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{argv[0]}: {error}"
    return "" if done.returncode == 0 else f"{argv[0]}: {(done.stderr or done.stdout).strip()[-300:]}"


def _install_debian(packages: list[str]) -> str:
    # RUNLEVEL=1: invoke-rc.d(8) starts no service of what is installed.
    return _run("apt-get", "-q", "update") or _run(
        "env", "RUNLEVEL=1", "apt-get", "-q", "-y", "install", "--no-install-recommends", *packages
    )


def _install_websockify(cache: Path) -> str:
    return _run(sys.executable, "-m", "venv", str(cache / "venv")) or _run(
        str(cache / "venv/bin/pip"), "install", "-q", "websockify"
    )


def _install_proxy(cache: Path) -> str:
    return _run(
        "npm", "install", "--silent", "--no-fund", "--no-audit", "--prefix", str(cache), "configurable-http-proxy"
    )


_VERSIONS: Final = {
    "haproxy": (["-v"], 2),
    "nginx": (["-v"], 2),
    "wrk": (["-v"], 1),
    "node": (["--version"], 0),
    "configurable-http-proxy": (["--version"], 0),
}
"""Options that make a program tell its version, and which word of what it says that is."""


def find_versions(tools: dict[str, list[str]]) -> dict[str, str]:
    """Return what version each peer says it is."""
    found = {}
    for name, (options, word) in _VERSIONS.items():
        if name in tools:
            done = subprocess.run([*tools[name], *options], capture_output=True, text=True, timeout=30, check=False)
            words = (done.stdout + done.stderr).split()
            found[name] = words[word].rpartition("/")[2] if len(words) > word else "unknown"
    if "websockify" in tools:
        ask = "from importlib.metadata import version; print(version('websockify'))"
        python = str(Path(tools["websockify"][0]).with_name("python"))
        found["websockify"] = subprocess.run([python, "-c", ask], capture_output=True, text=True).stdout.strip()
    return found
