"""What Portico needs of the operating system: Debian's and Ubuntu's package names, what each is for, and apt-get.

Standard library only. Never removes or upgrades a package.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from portico.errors import Unavailable


@dataclass(frozen=True)
class Group:
    """Packages that serve one purpose. Without an ``essential`` group Portico can't start at all."""

    purpose: str
    packages: tuple[str, ...]
    essential: bool = False


GROUPS: Final = (
    Group("Portico itself", ("python3-venv", "ca-certificates", "passwd", "openssh-client"), essential=True),
    Group(
        "desktops",
        (
            "tigervnc-standalone-server", "tigervnc-tools", "xauth", "x11-xserver-utils", "dbus-x11",
            "fonts-dejavu-core", "procps",
        ),
    ),
    Group(
        "Desktop (XFCE)",
        (
            "xfce4-session", "xfwm4", "xfce4-panel", "xfdesktop4", "xfce4-settings", "xfce4-terminal",
            "xfce4-appfinder", "thunar", "adwaita-icon-theme", "librsvg2-common",
        ),
    ),
    Group("Desktop (light)", ("icewm", "xterm")),
    Group("SSH", ("openssh-server",)),
)  # fmt: skip

NODE: Final = Group("the pages' scripts, while installing", ("nodejs", "npm"))
TEST: Final = Group(
    "the tests",
    (
        "chromium",
        "x11-utils",
        "xclip",
        "xdotool",
        "make",
        "git",
        "openssl",
        "mount",
        "putty-tools",
        "rsync",
        "tigervnc-viewer",
        "charliecloud-runtime",
    ),
)
SLURM: Final = Group(
    "the demo cluster",
    (
        "munge", "slurmctld", "slurmd", "slurm-client", "slurmdbd", "slurm-wlm-basic-plugins", "slurm-wlm-mysql-plugin",
        "mariadb-server", "iproute2", "util-linux",
    ),
)  # fmt: skip
UNPACKED: Final = ("nginx", "caddy", "prometheus")
"""What tests run beside Portico, from a folder of their own: to install it would start it, on the machine's port 80."""
IMAGE: Final = ("base-files", "dash", "bash", "coreutils", "perl-base", "icewm", "xterm", "fonts-dejavu-core")
"""What the tests' container image is put together from, with what these depend on: a window manager and little else."""


def find_missing(packages: Iterable[str]) -> list[str]:
    """Return those of ``packages`` that dpkg doesn't know as installed; all of them where there is no dpkg."""
    wanted = list(packages)
    if not shutil.which("dpkg-query"):
        return wanted
    shown = subprocess.run(
        ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n", *wanted],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        check=False,
    ).stdout
    installed = {line.split()[0] for line in shown.splitlines() if line.endswith(" installed")}
    return [package for package in wanted if package not in installed]


def list_wanted(*, with_node: bool, with_tests: bool) -> list[Group]:
    """Return the groups that are wanted here; Node only where assets are still to be fetched and no npm is on PATH."""
    node = [NODE] if with_node and not (shutil.which("node") and shutil.which("npm")) else []
    return [*GROUPS, *node, *([TEST, SLURM] if with_tests else [])]


def install(
    groups: Iterable[Group], run: Callable[[str, list[str], dict[str, str]], None], tell: Callable[[str], None]
) -> None:
    """Install what is missing of ``groups``, as root; otherwise say what an administrator would have to do, and go on.

    Args:
        groups: What is wanted.
        run: Runs (what for, argv, more environment) and raises Unavailable where that fails.
        tell: Takes a sentence for the person who waits.

    Raises:
        Unavailable: Something essential is missing and can't be had.

    """
    missing = {group: absent for group in groups if (absent := find_missing(group.packages))}
    if not missing:
        return
    names = [name for absent in missing.values() for name in absent]
    command = f"apt-get install --no-install-recommends {' '.join(names)}"
    if os.geteuid() == 0 and shutil.which("apt-get"):
        quiet = {"DEBIAN_FRONTEND": "noninteractive", "APT_LISTCHANGES_FRONTEND": "none"}
        run("package lists", ["apt-get", "-q", "update"], quiet)
        if "openssh-server" in names:
            _keep_sshd_off(tell)
        with _no_services_started():
            run(
                f"{len(names)} system packages ({', '.join(group.purpose for group in missing)})",
                [
                    "apt-get",
                    "-q",
                    "-y",
                    "-o",
                    "Dpkg::Options::=--force-confold",
                    "install",
                    "--no-install-recommends",
                    *names,
                ],
                quiet,
            )
        return
    purposes = "; ".join(f"{group.purpose}: {' '.join(absent)}" for group, absent in missing.items())
    reason = "Only root can install them." if shutil.which("apt-get") else "This system has no apt-get."
    if any(group.essential for group in missing) and not _has_venv():
        raise Unavailable(
            "System packages are missing.", why=f"{purposes}. {reason}", hint=f"Ask an administrator: {command}"
        )
    tell(
        f"Missing system packages ({purposes}). {reason}\n"
        f"  An administrator can run: {command}\n  Going on without them."
    )


def _keep_sshd_off(tell: Callable[[str], None]) -> None:
    """Keep the system's own sshd from starting, now and at boot: nobody asked for it (Debian's README.Debian.gz)."""
    mark = Path("/etc/ssh/sshd_not_to_be_run")
    mark.parent.mkdir(exist_ok=True)
    mark.touch()
    tell(f"openssh-server serves Portico alone; to have the system's own sshd too, remove {mark}.")


@contextlib.contextmanager
def _no_services_started() -> Iterator[None]:
    """Keep packages from starting what is in them: the demo cluster's daemons are its own (invoke-rc.d(8))."""
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink(missing_ok=True)


def _has_venv() -> bool:
    # What the essential group is for can be there without Debian's packages (another distribution, a container).
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        return False
    return True
