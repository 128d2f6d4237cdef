"""A whole Portico of its own, started as a person would start it, for tests and benchmarks; and its traceless end."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from person import Person

ROOT = Path(__file__).resolve().parents[2]
INSTALL_DIR = Path(os.environ.get("PORTICO_TEST_INSTALL_DIR") or "/opt/portico")
PASSWORD = "correct horse battery staple"
READY_TIMEOUT_S = 60
STOP_TIMEOUT_S = 30


def find_reason_to_skip() -> str:
    """Return why no Portico can be started here; empty where it can."""
    if os.geteuid() != 0:
        return "needs root: real POSIX users"
    if not (INSTALL_DIR / "venv/bin/python").exists():
        return f"nothing is installed in {INSTALL_DIR}: run ./portico test"
    return ""


def wait_until(condition: Callable[[], Any], timeout_s: float, what: str = "") -> Any:
    """Return the first true value of ``condition``.

    Raises:
        TimeoutError: It was false all the time.
    """
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what or 'a condition'} was not true within {timeout_s:g} s")
        time.sleep(0.02)
    return value


def find_free_ports() -> tuple[int, int, int]:
    """Return three neighbouring ports that are free now, below the range of outgoing connections."""
    for _ in range(200):
        port = 20000 + secrets.randbelow(12000)
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            for number in (port, port + 1, port + 2):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", number))
            return port, port + 1, port + 2
    raise RuntimeError("no free ports")


def find_source() -> dict[str, str]:
    """Return the variable by which every account imports this source; none where it can't read the clone.

    Then the installed copy is what is tested.
    """
    readable = all(folder.stat().st_mode & 0o001 for folder in [ROOT, *ROOT.parents])
    return {"PYTHONPATH": str(ROOT / "src")} if readable else {}


def wait_for_exit(pid: int, timeout_s: float) -> None:
    """Wait until a process that need not be a child has gone, or is a zombie."""

    def gone() -> bool:
        try:
            return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
        except OSError:
            return True

    wait_until(gone, timeout_s, f"the end of process {pid}")


class RunningPortico:
    """One Portico with folders, ports, accounts and cgroups of its own.

    Args:
        settings: Lines of its configuration file.
        options: More options of ``portico up``.
        tables: What stands at the end of the file, in TOML: the clusters.
    """

    def __init__(self, settings: dict[str, Any] | None = None, options: tuple[str, ...] = (), tables: str = "") -> None:
        self.suffix = secrets.token_hex(2)
        self.prefix = f"pt-{self.suffix}-"
        self.instance = f"pt{self.suffix}"
        self.run_dir = Path(f"/run/pt-{self.suffix}")
        self.state_dir = Path(f"/var/lib/pt-{self.suffix}")
        self.config = Path(f"/run/pt-{self.suffix}.toml")
        self.port, self.apps_port, self.relay_port = find_free_ports()
        lines = {"relay_port": self.relay_port, "ssh_port": 0, **(settings or {})}
        text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in lines.items())
        self.config.write_text(f"{text}{tables}\n")
        self.url = f"http://localhost:{self.port}"
        self.admin_name = f"{self.prefix}admin"
        self.admin_link = ""
        self.output: list[str] = []
        self._options = options
        self._process: subprocess.Popen[str] | None = None
        self._readers: list[threading.Thread] = []
        self._people: dict[str, Person] = {}

    # life

    def start(self) -> None:
        """Start it and wait until it is ready.

        Raises:
            RuntimeError: It ended instead; the message has all that it said.
        """
        self.admin_link = ""
        self.output.clear()
        argv = [
            *self.get_command(), "up", "--no-install", "--admin", self.admin_name, "--port", str(self.port),
            "--state-dir", str(self.state_dir), "--run-dir", str(self.run_dir), "--install-dir", str(INSTALL_DIR),
            "--instance", self.instance, "--config", str(self.config), *self._options,
        ]  # fmt: skip
        self._process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=self.get_env(), errors="replace", start_new_session=True,
        )  # fmt: skip
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            reader = threading.Thread(target=self._read, args=(stream,), daemon=True)
            reader.start()
            self._readers.append(reader)
        wait_until(lambda: self._is_ready() or self._process_ended(), READY_TIMEOUT_S, "Portico ready")
        if self._process_ended():
            raise RuntimeError("Portico ended:\n" + "\n".join(self.output))
        if any("has no password yet" in line for line in self.output):  # the link comes on the other stream
            wait_until(lambda: self.admin_link, READY_TIMEOUT_S, "the admin's link")

    def _is_ready(self) -> bool:
        return any("Ctrl-C stops Portico" in line for line in self.output)

    def _process_ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def _read(self, stream: Any) -> None:
        for line in stream:
            self.output.append(line.rstrip("\n"))
            if "/enrol#" in line:
                self.admin_link = line.strip()
        stream.close()

    @property
    def pids(self) -> dict[str, int]:
        """The supervisor, broker, portal and gateway; more gateways are ``gateway-2`` and so on. Of two of a name it is
        the newer one.
        """
        assert self._process is not None
        found = {"supervisor": self._process.pid}
        for path in Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split():
            try:
                words = Path(f"/proc/{path}/cmdline").read_bytes().split(b"\0")
            except OSError:  # it has just ended
                continue
            if b"portico.cli.process" in words:
                name = words[words.index(b"portico.cli.process") + 1].decode()
                found["gateway" if name == "gateway-1" else name] = int(path)
        return found

    def kill(self) -> None:
        """``kill -9`` all of Portico's processes at once, supervisor first; sessions are no business of it."""
        pids = self.pids
        for pid in pids.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for pid in pids.values():
            wait_for_exit(pid, STOP_TIMEOUT_S)
        self._reap()

    def stop(self) -> None:
        """End Portico as Ctrl-C does; sessions go on."""
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        self._reap()

    def _reap(self) -> None:
        assert self._process is not None
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            raise
        finally:
            for reader in self._readers:
                reader.join(5)
            self._readers.clear()
            self._process = None

    def restart(self) -> None:
        """Stop and start it."""
        self.stop()
        self.start()

    def destroy(self) -> None:
        """End everything that this Portico brought about: processes, sessions, accounts, homes, cgroups, folders."""
        for person in self._people.values():
            person.close()
        try:
            self.stop()
        finally:
            for entry in [entry for entry in pwd.getpwall() if entry.pw_name.startswith(self.prefix)]:
                end_processes_of(entry.pw_uid)
                remove_leftovers_of(entry.pw_uid)
                shutil.rmtree(entry.pw_dir, ignore_errors=True)
                subprocess.run(["userdel", entry.pw_name], check=False, capture_output=True)
                subprocess.run(["groupdel", entry.pw_name], check=False, capture_output=True)
            for folder in (self.run_dir, self.state_dir):
                shutil.rmtree(folder, ignore_errors=True)
            self.config.unlink(missing_ok=True)
            for root in self.iter_cell_folders():
                for cell in [*root.glob("*/"), root]:
                    with contextlib.suppress(OSError):
                        wait_until(lambda cell=cell: _remove_group(cell), 5)

    def iter_cell_folders(self) -> Iterator[Path]:
        """Yield the folders of this instance in the cgroup file systems."""
        for line in Path("/proc/self/mounts").read_text().splitlines():
            _, where, kind, *_ = line.split()
            if kind in ("cgroup", "cgroup2") and (root := Path(where) / f"portico-{self.instance}").is_dir():
                yield root

    # people

    def get_command(self) -> list[str]:
        """Return the argv of this source's ``portico``."""
        return [str(INSTALL_DIR / "venv/bin/python"), "-s", "-m", "portico.cli"]

    def get_env(self) -> dict[str, str]:
        """Return the environment in which the command line runs."""
        env = {name: value for name, value in os.environ.items() if not name.startswith(("PORTICO_", "PYTEST_"))}
        env["TERM"] = "dumb"
        env.pop("PYTHONPATH", None)
        return env | find_source()

    def cli(self, *arguments: str, user: str = "", check: bool = True, **more: Any) -> subprocess.CompletedProcess[str]:
        """Run ``portico`` against this Portico, as root or as a POSIX user."""
        entry = pwd.getpwnam(user) if user else None
        ids = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []} if entry else {}
        env = self.get_env() | ({"HOME": entry.pw_dir} if entry else {})
        done = subprocess.run(
            [*self.get_command(), "--run-dir", str(self.run_dir), *arguments], env=env, cwd="/", text=True, timeout=120,
            capture_output=True, check=False, **({"stdin": subprocess.DEVNULL} | ids | more),
        )  # fmt: skip
        assert not check or done.returncode == 0, (
            f"portico {arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
        return done

    def admin(self) -> Person:
        """Return the admin, signed in in a browser."""
        return self._get_person(self.admin_name, lambda: self.admin_link)

    def user(self, name: str) -> Person:
        """Return a user, added and signed in at the first call; ``name`` gets this Portico's prefix."""
        full = f"{self.prefix}{name}"

        def make_link() -> str:
            return str(json.loads(self.cli("user", "add", full, "--json").stdout)["link"])

        return self._get_person(full, make_link)

    def get_name(self, name: str) -> str:
        """Return the full name of the user whom a test calls ``name``."""
        return f"{self.prefix}{name}"

    def _get_person(self, name: str, make_link: Callable[[], str]) -> Person:
        return self._people.get(name) or self.sign_up(name, make_link())

    def sign_up(self, name: str, link: str) -> Person:
        """Return somebody who has set a password with a one-time link, and is signed in; ``name`` is the full one."""
        person = Person(self.url)
        person.enrol(link.partition("#")[2], PASSWORD)
        answer = person.sign_in(name, PASSWORD)
        assert answer.status_code in (200, 303), answer.text
        self._people[name] = person
        return person


def _remove_group(path: Path) -> bool:
    if path.exists():
        try:
            path.rmdir()
        except OSError:
            return False
    return True


def remove_leftovers_of(uid: int) -> None:
    """Remove what killed desktops of a test's user leave in /tmp: uids are given again, display sockets would confuse."""
    assert uid >= 20000
    for folder in (Path("/tmp"), Path("/tmp/.X11-unix"), Path("/tmp/.ICE-unix")):
        for path in folder.iterdir() if folder.is_dir() else ():
            with contextlib.suppress(OSError):
                if path.lstat().st_uid == uid:
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def end_processes_of(uid: int, timeout_s: float = 10) -> None:
    """Kill every process of a uid, which is a test's own; wait until none is left."""
    assert uid >= 20000

    def none_left() -> bool:
        left = False
        for process in Path("/proc").iterdir():
            with contextlib.suppress(OSError, ValueError):
                pid = int(process.name)
                state = (process / "stat").read_text().rpartition(")")[2].split()[0]
                if process.stat().st_uid == uid and state not in "ZX":
                    left = True
                    os.kill(pid, signal.SIGKILL)
        return not left

    wait_until(none_left, timeout_s, f"the end of all processes of uid {uid}")
