"""A person with an SSH client: a key of their own, which Portico knows, and the ways in. For tests and benchmarks."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from running import RunningPortico

from portico.model import SshKey, now
from portico.store import Store

QUIET = (
    "-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
    "-o", "LogLevel=ERROR", "-o", "IdentitiesOnly=yes",
)  # fmt: skip
"""Nothing of this machine's own SSH, and no questions."""


class SshGuest:
    """A user with a new key, which stands in the database already.

    Args:
        house: A Portico with an ``ssh_port``.
        name: The user, without the house's prefix.
        port: The house's ``ssh_port``.
        folder: Of the key; must be there.
        cipher: The one to use, of both connections; empty: OpenSSH's choice.
    """

    def __init__(self, house: RunningPortico, name: str, port: int, folder: Path, cipher: str = "") -> None:
        self.name, self.port = house.get_name(name), port
        self.key = make_key(folder / f"{name}_key")
        ciphers = ("-c", cipher) if cipher else ()
        self.options = (*QUIET, *ciphers, "-i", str(self.key))
        self._connect = f"{house.run_dir}/ssh/connect"
        add_key(house, self.name, self.key)

    def front(self, *command: str, program: str = "ssh", options: Sequence[str] = ()) -> list[str]:
        """Return the argv of ``ssh`` to this machine; with ``scp``, the options alone."""
        port = ("-P" if program == "scp" else "-p", str(self.port))
        target = () if program == "scp" else (f"{self.name}@127.0.0.1",)
        return [program, *self.options, *port, *options, *target, *command]

    def session(self, session_id: str, *command: str, program: str = "ssh", options: Sequence[str] = ()) -> list[str]:
        """Return the argv of ``ssh SESSION.portico``; with ``scp``, the options alone."""
        way = f"ProxyCommand={' '.join(self.front())} {self._connect} %n"
        target = () if program == "scp" else (f"{self.name}@{session_id}.portico",)
        return [program, *self.options, "-o", way, *options, *target, *command]

    def name_in(self, session_id: str, path: str) -> str:
        """Return how scp is told a file of a session."""
        return f"{self.name}@{session_id}.portico:{path}"


def make_key(path: Path) -> Path:
    """Make a key; return its path."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)], check=True)
    return path


def add_key(house: RunningPortico, user_name: str, path: Path) -> int:
    """Put a key into the database; return its id."""
    kind, body, *_ = path.with_suffix(".pub").read_text().split()
    shown = subprocess.run(["ssh-keygen", "-lf", str(path)], check=True, capture_output=True, text=True).stdout
    store = Store(house.state_dir / "portico.db")
    try:
        with store.begin() as tx:
            return tx.add_ssh_key(SshKey(0, user_name, "test", kind, body, shown.split()[1], 256, (), now()))
    finally:
        store.close()


def run(argv: Sequence[str], **more: Any) -> subprocess.CompletedProcess[str]:
    """Run something to its end; the caller looks at how that was."""
    return subprocess.run(
        argv, **{"capture_output": True, "text": True, "timeout": 60, "stdin": subprocess.DEVNULL, "check": False}
        | more,
    )  # fmt: skip
