"""What runs, as /proc says (proc(5)): which processes are a session's, and whether a recorded one is still itself.

A process counts as a session's when it has this user's uid and either descends from the session's shepherd or carries
PORTICO_SESSION=<id> in its environment. Nothing here believes a bare pid: a pid is a process only together with its
start time and the boot it belongs to.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


class Process(NamedTuple):
    """A line of /proc/PID/stat: ``start_ticks`` counts clock ticks since boot."""

    pid: int
    parent: int
    state: str
    start_ticks: int


def read_boot_id() -> str:
    """Return this boot's random id (random(4))."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


def find_process(pid: int) -> Process | None:
    """Return a process of that pid, or None."""
    try:
        with open(f"/proc/{pid:d}/stat", "rb") as file:
            text = file.read().decode(errors="replace")
    except (OSError, ValueError, OverflowError):
        return None
    fields = text[text.rindex(")") + 2 :].split()  # the name before it may hold anything
    return Process(pid, int(fields[1]), fields[0], int(fields[19]))


def find_recorded(job: dict[str, Any] | None) -> Process | None:
    """Return the process that ``job`` (job.json, which its owner can write) speaks of, if that one still runs."""
    if not job or job.get("boot_id") != read_boot_id():
        return None
    pid, start = job.get("pid"), job.get("start_ticks")
    if not isinstance(pid, int) or not 1 < pid < 1 << 22 or not isinstance(start, int):
        return None
    process = find_process(pid)
    if process is None or process.start_ticks != start or process.state in "ZX":
        return None
    try:
        return process if os.stat(f"/proc/{pid}").st_uid == os.geteuid() else None
    except OSError:
        return None


def list_own() -> Iterator[Process]:
    """Yield the live processes of this uid."""
    uid = os.geteuid()
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError):
                mine = os.stat(f"/proc/{name}").st_uid == uid
                if mine and (process := find_process(int(name))) and process.state not in "ZX":
                    yield process


def _carries(pid: int, marker: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return marker in file.read(1 << 20).split(b"\0")
    except OSError:
        return False


def find_of_session(session_id: str, shepherd_pid: int | None) -> list[Process]:
    """Return the session's processes, its shepherd and the caller left out."""
    own = {process.pid: process for process in list_own()}
    marker = f"PORTICO_SESSION={session_id}".encode()
    children: dict[int, list[int]] = {}
    for process in own.values():
        children.setdefault(process.parent, []).append(process.pid)
    found: set[int] = set()
    todo = [shepherd_pid] if shepherd_pid else []
    while todo:
        for child in children.get(todo.pop(), ()):
            if child not in found:
                found.add(child)
                todo.append(child)
    found |= {pid for pid in own if pid not in found and _carries(pid, marker)}
    return [own[pid] for pid in found - {os.getpid(), shepherd_pid or 0} if pid in own]


def send_signal(processes: list[Process], number: int) -> int:
    """Send a signal to each process that is still itself; return how many there were.

    pidfd_open(2) pins the process before it is looked at again, so a reused pid is never hit.
    """
    sent = 0
    for process in processes:
        with contextlib.suppress(OSError):
            fd = os.pidfd_open(process.pid)
            try:
                again = find_process(process.pid)
                if again and again.start_ticks == process.start_ticks:
                    signal.pidfd_send_signal(fd, number)
                    sent += 1
            finally:
                os.close(fd)
    return sent


def end_all(session_id: str, shepherd_pid: int | None, timeout_s: float) -> int:
    """Kill the session's processes until none is left or ``timeout_s`` has passed; return how many were killed."""
    deadline, killed = time.monotonic() + timeout_s, 0
    while (left := find_of_session(session_id, shepherd_pid)) and time.monotonic() < deadline:
        killed += send_signal(left, signal.SIGKILL)
        time.sleep(0.01)
    return killed


def sum_memory(processes: list[Process]) -> int:
    """Return the processes' resident memory in bytes, shared pages counted once each (PSS) where the kernel tells."""
    total = 0
    for process in processes:
        with contextlib.suppress(OSError), open(f"/proc/{process.pid}/smaps_rollup") as file:
            total += sum(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
    return total
