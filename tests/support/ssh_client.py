"""Somebody with an account on this machine who has set their ssh up as Portico says, and a display for viewers."""

from __future__ import annotations

import contextlib
import html
import pwd
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rfb import RfbClient, connect_unix
from running import RunningPortico, wait_until

from portico.model import SshKey, now
from portico.ssh.authority import compute_fingerprint
from portico.store import Store

BLUE = 0x2060C0
STRICT = ("-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes")


@dataclass(frozen=True)
class Client:
    """Somebody with an account on this machine, whose home has a key and what `portico ssh config` wrote."""

    house: RunningPortico
    name: str

    @property
    def home(self) -> Path:
        return Path(pwd.getpwnam(self.name).pw_dir)

    @property
    def uid(self) -> int:
        return pwd.getpwnam(self.name).pw_uid

    def options(self, **env: str) -> dict[str, object]:
        entry = pwd.getpwnam(self.name)
        clean = {"HOME": entry.pw_dir, "PATH": "/usr/local/bin:/usr/bin:/bin", "USER": self.name, "LC_ALL": "C.UTF-8"}
        return {
            "user": entry.pw_uid,
            "group": entry.pw_gid,
            "extra_groups": [],
            "env": clean | env,
            "cwd": entry.pw_dir,
        }

    def run(self, *argv: str, check: bool = True, **more: object) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=60, check=False,
            **({"stdin": subprocess.DEVNULL} | self.options() | more),
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done


def set_up(client: Client) -> None:
    """Make somebody a key that Portico knows, and have their ssh know Portico."""
    folder = client.home / ".ssh"
    client.run("mkdir", "-m", "700", str(folder))
    client.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "id_ed25519"))
    kind, body, _ = (folder / "id_ed25519.pub").read_text().split()
    with Store(client.house.state_dir / "portico.db").begin() as tx:
        tx.add_ssh_key(SshKey(0, client.name, "laptop", kind, body, compute_fingerprint(body), 256, (), now()))
    client.run("tee", str(folder / "config"), input="Host *\n    LogLevel ERROR\n", stdin=None)
    client.house.cli("ssh", "config", "--write", "--yes", user=client.name)


def read_commands(house: RunningPortico, session_id: str) -> dict[str, str]:
    """Return the commands that the session's page has to copy, by name."""
    page = house.user("alice").http.get(f"/sessions/{session_id}/connect").raise_for_status().text
    found = re.findall(r'<pre id="copy-(\w+)">(.*?)</pre>', page, re.DOTALL)
    return {name: html.unescape(text) for name, text in found}


def read_display(uid: int, session_id: str) -> dict[str, str]:
    """Return the environment of something that runs in a desktop."""
    for folder in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if folder.name.isdigit() and folder.stat().st_uid == uid:
                items = (folder / "environ").read_bytes().split(b"\0")
                env = dict(item.decode(errors="replace").partition("=")[::2] for item in items)
                if env.get("PORTICO_SESSION") == session_id and env.get("DISPLAY"):
                    return {name: env[name] for name in ("DISPLAY", "XAUTHORITY")}
    return {}


@contextmanager
def outer_display(alice: Client, folder: Path) -> Iterator[tuple[str, RfbClient]]:
    """Run an X server of alice's own for a viewer to draw on; yield its name and eyes on it."""
    eyes = folder / "eyes"
    argv = ["Xtigervnc", "-displayfd", "1", "-rfbport", "-1", "-rfbunixpath", str(eyes), "-SecurityTypes", "None",
            "-nolisten", "tcp", "-geometry", "1600x1000", "-depth", "24", "-ac"]  # fmt: skip
    with subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, **alice.options()
    ) as server:
        try:
            assert server.stdout is not None
            display = f":{server.stdout.readline().strip()}"
            with connect_unix(str(eyes), 20) as sock:
                yield display, RfbClient(sock)
        finally:
            server.terminate()


def count_blue(client: RfbClient) -> int:
    return sum(pixel & 0xFFFFFF == BLUE for pixel in memoryview(bytes(client.pixels)).cast("I"))


def is_mostly_blue(client: RfbClient) -> bool:
    return count_blue(client) > 200_000


def start_open(house: RunningPortico, alice: Client, *arguments: str, **env: str) -> subprocess.Popen[str]:
    """Start `portico desktop open` as alice."""
    more = alice.options(**house.get_env() | env | {"HOME": str(alice.home), "TMPDIR": "/tmp"})
    argv = [*house.get_command(), "--run-dir", str(house.run_dir), "desktop", "open", *arguments]
    return subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more
    )


def list_folders(alice: Client) -> list[Path]:
    """Return the folders of alice's tunnels."""
    return [path for path in Path("/tmp").glob("p-*") if path.stat().st_uid == alice.uid]


def list_processes(alice: Client, pattern: str) -> list[int]:
    """Return alice's processes whose command line matches."""
    argv = ["pgrep", "-u", str(alice.uid), "-f", pattern]
    return [int(pid) for pid in subprocess.run(argv, capture_output=True, text=True, check=False).stdout.split()]


def wait_for_nothing_left(alice: Client) -> None:
    wait_until(lambda: not list_folders(alice) and not list_processes(alice, "^ssh "), 10, "nothing left behind")


def is_listened_on(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False
