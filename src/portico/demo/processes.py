"""Processes that outlive whoever started them: known by pid and start time, so that no other is ever signalled."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from portico.errors import Unavailable

STOP_S = 10.0


class Processes:
    """The processes of one folder; ``processes.json`` in it is written before anybody depends on it.

    Args:
        folder: Where that file and the logs (``log/NAME``) are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "processes.json"

    def start(
        self, name: str, argv: Sequence[str], env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        """Start a process in a session of its own, its outputs in its log.

        It becomes the program only once it is written down; whoever starts it may be killed before that.

        Raises:
            Unavailable: No process can be made.
        """
        log = self._folder / "log" / f"{name}.out"
        with open(log, "ab") as output:
            try:
                process = subprocess.Popen(
                    ["sh", "-c", 'read -r go && exec "$@" </dev/null', "sh", *argv], stdin=subprocess.PIPE,
                    stdout=output, stderr=output, start_new_session=True, env={**os.environ, **(env or {})},
                    cwd=cwd or self._folder,
                )  # fmt: skip
            except OSError as error:
                raise Unavailable(f"{argv[0]} can't be started.", why=str(error)) from error
        process.returncode = 0  # it is nobody's child from now on: this object does not wait for it
        with hold_lock(self._folder):  # the elastic nodes' provider writes there too
            known = self._read()
            known[name] = {"pid": process.pid, "start_ticks": read_start_ticks(process.pid)}
            self._write(known)
        assert process.stdin
        with contextlib.suppress(BrokenPipeError), process.stdin:
            process.stdin.write(b"go\n")

    def run(self, name: str, argv: Sequence[str], env: Mapping[str, str] | None = None, timeout_s: float = 60) -> None:
        """Run a program to its end. Whoever is killed meanwhile leaves it where ``stop`` finds it.

        Raises:
            Unavailable: It failed, or did not end in time.
        """
        self.start(name, argv, env)
        pid = self.find_pid(name)
        deadline, status = time.monotonic() + timeout_s, 0
        try:
            while pid is not None and not (found := os.waitpid(pid, os.WNOHANG))[0]:
                if time.monotonic() > deadline:
                    raise Unavailable(f"{argv[0]} did not end within {timeout_s:g} s.", why=self.read_log(name))
                time.sleep(0.02)
            status = os.waitstatus_to_exitcode(found[1]) if pid is not None else 1
        finally:
            self.stop(name, signal.SIGKILL)
        if status:
            raise Unavailable(f"{argv[0]} failed.", why=self.read_log(name))

    def is_running(self, name: str) -> bool:
        """Return whether it runs."""
        return self._find(name) is not None

    def find_pid(self, name: str) -> int | None:
        """Return its pid, if it runs."""
        return self._find(name)

    @property
    def names(self) -> list[str]:
        """All that were started and not stopped, the oldest first."""
        return list(self._read())

    def send(self, name: str, number: signal.Signals) -> None:
        """Send a signal, if it runs."""
        if pid := self._find(name):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def stop(self, name: str, number: signal.Signals = signal.SIGTERM) -> None:
        """End it, at last with KILL; return when it is gone."""
        deadline = time.monotonic() + STOP_S
        self.send(name, number)
        while self.is_running(name):
            if time.monotonic() > deadline:
                self.send(name, signal.SIGKILL)
            time.sleep(0.02)
        if found := self._read().get(name):
            end_group(int(found["pid"]), int(found["start_ticks"] or 0))
        with hold_lock(self._folder):
            known = self._read()
            known.pop(name, None)
            self._write(known)

    def read_log(self, name: str, lines: int = 5) -> str:
        """Return the end of what it wrote."""
        with contextlib.suppress(OSError):
            return "\n".join((self._folder / "log" / f"{name}.out").read_text(errors="replace").splitlines()[-lines:])
        return ""

    def _find(self, name: str) -> int | None:
        found = self._read().get(name)
        if found is None:
            return None
        pid = int(found["pid"])
        with contextlib.suppress(ChildProcessError, OSError):
            os.waitpid(pid, os.WNOHANG)  # where it is our own, it may be a zombie
        return pid if read_start_ticks(pid) == found["start_ticks"] is not None else None

    def _read(self) -> dict[str, Any]:
        try:
            value: dict[str, Any] = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return {}
        return value

    def _write(self, known: dict[str, Any]) -> None:
        temporary = self._path.with_suffix(".new")
        temporary.touch(0o600)
        temporary.write_text(json.dumps(known))
        temporary.replace(self._path)


@contextlib.contextmanager
def hold_lock(folder: Path) -> Iterator[None]:
    """Keep others that ask for a folder's lock waiting meanwhile; it ends with the process and leaves no file."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def end_group(leader: int, start_ticks: int) -> None:
    """Kill what is left of the session of a process that is gone: its children that it did not wait for."""
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (process / "stat").read_text().rpartition(")")[2].split()
            if int(words[3]) == leader != int(process.name) and int(words[19]) >= start_ticks:
                os.kill(int(process.name), signal.SIGKILL)


def read_start_ticks(pid: int) -> int | None:
    """Return when a process started, in clock ticks since boot (proc(5)); None for one that has ended."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if words[0] in "ZX" else int(words[19])


def wait_until(condition: Callable[[], Any], timeout_s: float, what: str, why: Callable[[], str]) -> None:
    """Wait until something is so.

    Raises:
        Unavailable: It was not in time.
    """
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise Unavailable(f"{what} did not happen within {timeout_s:g} s.", why=why())
        time.sleep(0.05)
