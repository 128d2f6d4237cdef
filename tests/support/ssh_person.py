"""A person with an SSH client: keys, a folder for ssh's own files, and the real OpenSSH programs. For tests and benchmarks.

Nothing is set up in anybody's home: each command says all. Who has set ssh up as Portico says is in ssh_client.py.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from person import Person
from running import RunningPortico

from portico.cli.sshd_process import find_sshd

QUIET = (
    "-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
    "-o", "LogLevel=ERROR", "-o", "IdentitiesOnly=yes", "-o", "ConnectTimeout=20",
)  # fmt: skip
"""Nothing of this machine's own SSH, and no questions."""


def find_reason_to_skip() -> str:
    """Return why SSH can't be tried here; empty where it can."""
    return "" if find_sshd() and shutil.which("ssh") else "not installed: openssh-server; run ./portico test"


def find_free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


class SshPerson:
    """A user of a Portico, at a laptop.

    Args:
        house: The Portico.
        name: The user, without the Portico's prefix.
        port: Of its sshd.
        cipher: The one to use, of both connections; empty: OpenSSH's choice.
    """

    def __init__(self, house: RunningPortico, name: str, port: int, cipher: str = "") -> None:
        self.house, self.port = house, port
        self.browser: Person = house.user(name)
        self.name = house.get_name(name)
        self.folder = Path(tempfile.mkdtemp(prefix="pt-ssh-"))
        self.key = self.make_key("id_ed25519")
        self._cipher = ("-c", cipher) if cipher else ()
        self._processes: list[subprocess.Popen[str]] = []

    def close(self) -> None:
        """End what was begun, and remove the folder."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
            process.communicate()
        shutil.rmtree(self.folder)

    # keys

    def make_key(self, name: str, kind: str = "ed25519") -> Path:
        """Make a key pair; return the private one's path."""
        return make_key(self.folder / name, kind)

    def add_key(self, path: Path | None = None, **more: Any) -> int:
        """Add a key on the account page's API; return its id."""
        text = Path(f"{path or self.key}.pub").read_text()
        answer = self.browser.http.post("/api/v1/keys", json={"key": text, **more})
        assert answer.status_code == 201, answer.text
        return int(answer.json()["id"])

    def remove_key(self, key_id: int) -> None:
        """Remove a key."""
        assert self.browser.http.delete(f"/api/v1/keys/{key_id}").status_code == 204

    def list_keys(self) -> list[dict[str, Any]]:
        """Return the keys as the API tells them."""
        return list(self.browser.http.get("/api/v1/keys").json())

    # ssh

    def get_options(self, key: Path | None = None) -> list[str]:
        """Return ssh's options for the front door, without where to go."""
        return [*QUIET, *self._cipher, "-i", str(key or self.key)]

    def front(
        self, *command: str, program: str = "ssh", options: Sequence[str] = (), key: Path | None = None
    ) -> list[str]:
        """Return the argv of ``ssh`` to this machine; of scp and sftp without where to go."""
        is_ssh = program == "ssh"
        port = ("-p" if is_ssh else "-P", str(self.port))
        target = (f"{self.name}@127.0.0.1",) if is_ssh else ()
        return [program, *self.get_options(key), *port, *options, *target, *command]

    def session(
        self,
        session_id: str,
        *command: str,
        program: str = "ssh",
        options: Sequence[str] = (),
        key: Path | None = None,
    ) -> list[str]:
        """Return the argv of ``ssh SESSION.portico``; of scp and sftp without where to go."""
        way = f"ProxyCommand={' '.join(self.front(key=key))} {self.house.run_dir}/ssh/connect %n"
        target = (f"{self.name}@{session_id}.portico",) if program == "ssh" else ()
        return [program, *self.get_options(key), "-o", way, *options, *target, *command]

    def name_in(self, session_id: str, path: str) -> str:
        """Return how scp is told a file of a session, or of this machine."""
        return f"{self.name}@{f'{session_id}.portico' if session_id else '127.0.0.1'}:{path}"

    def run(
        self, *words: str, session: str = "", key: Path | None = None, options: tuple[str, ...] = (), **more: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a command at the front door, or in a session."""
        return run(self.get_argv(*words, session=session, key=key, options=options), **more)

    def get_argv(
        self, *words: str, session: str = "", key: Path | None = None, options: tuple[str, ...] = ()
    ) -> list[str]:
        """Return ssh's argv for that."""
        more: dict[str, Any] = {"key": key, "options": options}
        return self.session(session, *words, **more) if session else self.front(*words, **more)

    def open(
        self, *words: str, session: str = "", key: Path | None = None, options: tuple[str, ...] = (), **more: Any
    ) -> subprocess.Popen[str]:
        """Begin a command there that is read and written while it runs."""
        pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        argv = self.get_argv(*words, session=session, key=key, options=options)
        process = subprocess.Popen(argv, text=True, **(pipes | more))
        self._processes.append(process)
        return process

    def copy(self, *words: str, program: str = "scp", session: str = "") -> subprocess.CompletedProcess[str]:
        """Run scp or sftp; ``@`` before a path in ``words`` is the place."""
        shown = [self.name_in(session, word[1:]) if word.startswith("@") else word for word in words]
        return run(self.session(session, *shown, program=program) if session else self.front(*shown, program=program))


def make_key(path: Path, kind: str = "ed25519") -> Path:
    """Make a key pair; return the private one's path."""
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-C", path.name, "-f", str(path)], check=True)
    return path


def run(argv: Sequence[str], **more: Any) -> subprocess.CompletedProcess[str]:
    """Run something to its end; the caller looks at how that was."""
    return subprocess.run(
        argv, **{"capture_output": True, "text": True, "timeout": 60, "stdin": subprocess.DEVNULL, "check": False}
        | more,
    )  # fmt: skip


def read_line(process: subprocess.Popen[str], timeout_s: float = 30) -> str:
    """Return a line of what a process says.

    Raises:
        TimeoutError: There was none.
    """
    found: list[str] = []
    assert process.stdout is not None
    stream = process.stdout
    reader = threading.Thread(target=lambda: found.append(stream.readline()), daemon=True)
    reader.start()
    reader.join(timeout_s)
    if not found:
        raise TimeoutError("nothing was said")
    return found[0].rstrip("\n")


def connect(port: int, timeout_s: float = 20) -> socket.socket:
    """Return a connection to a loopback port, once somebody listens there.

    Raises:
        TimeoutError: Nobody does.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        sock = socket.socket()
        sock.settimeout(timeout_s)
        if sock.connect_ex(("127.0.0.1", port)) == 0:
            return sock
        sock.close()
        if time.monotonic() > deadline:
            raise TimeoutError(f"nobody listens on {port}")
        time.sleep(0.05)


def wait_for_port(port: int, timeout_s: float = 20) -> None:
    """Wait until somebody listens on a loopback port.

    Raises:
        TimeoutError: Nobody does.
    """
    connect(port, timeout_s).close()


def is_running(pid: int) -> bool:
    """Return whether a process lives."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def clean_environment(home: Path) -> dict[str, str]:
    """Return an environment with a home of its own and no agent."""
    return {"HOME": str(home), "PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
