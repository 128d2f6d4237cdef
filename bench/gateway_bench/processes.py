"""Processes of a run: started in groups of their own, pinned to cores, asked for CPU and memory, ended for certain."""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
READY_S: Final = 30.0
END_S: Final = 20.0

_CPUCLOCK_SCHED: Final = 2
_PR_SET_PDEATHSIG: Final = 1
_libc: Final = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Cores:
    """Which cores what is measured (``bridge``) and what measures it (``load``) run on; empty means anywhere."""

    bridge: frozenset[int] = frozenset()
    load: frozenset[int] = frozenset()


def choose_cores(pinned: bool) -> Cores:
    """Return the last core for the bridge and all others for the load; nothing where there is only one."""
    cores = sorted(os.sched_getaffinity(0))
    if not pinned or len(cores) < 2:
        return Cores()
    return Cores(frozenset(cores[-1:]), frozenset(cores[:-1]))


@dataclass
class Running:
    """A process and all that descend from it."""

    pid: int
    log: Path
    with_children: bool = False
    _seen: dict[int, float] = field(default_factory=dict)

    def list_pids(self) -> list[int]:
        """Return what is alive of it."""
        found = [self.pid]
        if self.with_children:
            for one in found:
                with contextlib.suppress(OSError):
                    for task in Path(f"/proc/{one}/task").iterdir():
                        found += [int(child) for child in (task / "children").read_text().split()]
        return found

    def is_alive(self) -> bool:
        """Return whether it runs, itself."""
        with contextlib.suppress(OSError):
            return Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
        return False

    def read_cpu_s(self) -> float:
        """Return the CPU time used so far, user and system, of all threads and of children that ended meanwhile."""
        for pid in self.list_pids():
            with contextlib.suppress(OSError):
                # clock_getcpuclockid(3): nanoseconds, where /proc/PID/stat has ticks of 10 ms.
                self._seen[pid] = time.clock_gettime((~pid << 3) | _CPUCLOCK_SCHED)
        return sum(self._seen.values())

    def read_pss_bytes(self) -> int:
        """Return its memory, a shared page divided by the number of those who share it (proc(5), smaps_rollup)."""
        return sum(_read_rollup(pid, "Pss:") for pid in self.list_pids())


def _read_rollup(pid: int, name: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) * 1024
    return 0


@contextlib.contextmanager
def started(
    argv: Sequence[str],
    log: Path,
    cores: frozenset[int] = frozenset(),
    env: Mapping[str, str] | None = None,
    with_children: bool = False,
) -> Iterator[Running]:
    """Run a program in a group of its own; at the end of the block nothing of it is left.

    Args:
        argv: The program.
        log: File for both of its outputs, quoted where it fails.
        cores: What it may run on; empty means anywhere.
        env: More of the environment.
        with_children: Whether what it forks is counted too.
    """

    def prepare() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # prctl(2): whatever ends us, nothing stays behind
        if cores:
            os.sched_setaffinity(0, cores)

    with log.open("wb") as output:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            env={**os.environ, **(env or {})}, preexec_fn=prepare,
        )  # fmt: skip
    try:
        yield Running(process.pid, log, with_children)
        if process.poll() is not None:
            raise RuntimeError(f"{argv[0]} ended too early:\n{log.read_text(errors='replace')[-2000:]}")
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        with contextlib.suppress(ProcessLookupError):  # children that outlived it; the group is ours alone
            os.killpg(process.pid, signal.SIGKILL)


def started_module(
    name: str, *args: str, log: Path, cores: frozenset[int] = frozenset()
) -> contextlib.AbstractContextManager[Running]:
    """Run a module of this package, with Portico's source on its path."""
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "bench")])
    return started([sys.executable, "-m", f"gateway_bench.{name}", *args], log, cores, {"PYTHONPATH": path})


def wait_for(condition: Callable[[], Any], what: str, running: Running) -> None:
    """Wait until ``condition`` doesn't raise OSError.

    Raises:
        RuntimeError: It raised all the time, or what it waits for has ended; with the end of its log.
    """
    deadline = time.monotonic() + READY_S
    while True:
        try:
            condition()
            return
        except OSError as error:
            if time.monotonic() > deadline or not running.is_alive():
                said = running.log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{what} is not ready: {error}\n{said}") from error
            time.sleep(0.02)


class Bystanders:
    """What everybody else does on this machine meanwhile, which is why figures differ between runs."""

    def __init__(self) -> None:
        self._at_s, self._busy_s, self._own_s = self._read()

    def _read(self) -> tuple[float, float, float]:
        line = Path("/proc/stat").read_text().partition("\n")[0].split()[1:]
        user, nice, system, _idle, _wait, irq, softirq = (int(ticks) for ticks in line[:7])
        busy_s = (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return time.monotonic(), busy_s, sum(one.ru_utime + one.ru_stime for one in used)

    def find_share(self) -> float:
        """Return the share of all cores that others have used since this was made."""
        at_s, busy_s, own_s = self._read()
        others_s = (busy_s - self._busy_s) - (own_s - self._own_s)
        return max(0.0, others_s / ((at_s - self._at_s) * (os.cpu_count() or 1)))


_ports: Final = itertools.count(20_000 + 4 * (os.getpid() % 2_500), 2)


def find_free_port() -> int:
    """Return a port that is free now, like the one behind it; never the same twice in a run."""
    for port in itertools.islice(_ports, 1_000):
        with contextlib.suppress(OSError), socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", port))
            second.bind(("127.0.0.1", port + 1))
            return port
    raise RuntimeError("no free ports")


def raise_descriptor_limit(wanted: int) -> int:
    """Raise RLIMIT_NOFILE for this process and all it starts, as far as we may; return what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (max(wanted, hard), hard):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(wanted, limit)), limit))
            break
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
