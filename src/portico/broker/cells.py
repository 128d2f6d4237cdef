"""Cells: a cgroup a session, with its limits (cgroups(7); kernel docs: cgroup-v2.rst, cgroup-v1/memory.rst).

Only root can set them, so they are the broker's. Whatever runs in a cell can be counted and ended as one, however it
forks, changes its session or its parent.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import Any, Final

from portico.errors import NotFound, Unavailable

PIDS_LIMIT: Final = 4096
PERIOD_US: Final = 100_000
END_TIMEOUT_S: Final = 5.0
_V1_NEEDED: Final = ("cpu", "memory", "pids")


def find_hierarchy() -> dict[str, str]:
    """Return {controller: mount point}; all the same folder with v2, and empty where limits can't be set."""
    unified, v1 = "", {}
    with open("/proc/self/mounts") as mounts:
        for line in mounts:
            _, where, kind, options = line.split()[:4]
            if kind == "cgroup2" and not unified:
                unified = where
            elif kind == "cgroup":
                v1.update({name: where for name in options.split(",") if name in (*_V1_NEEDED, "cpuacct")})
    if unified:
        with contextlib.suppress(OSError):
            has = set(_read(f"{unified}/cgroup.controllers").split())
            if has.issuperset(_V1_NEEDED) and os.access(unified, os.W_OK):
                return dict.fromkeys(_V1_NEEDED, unified)
    if all(name in v1 and os.access(v1[name], os.W_OK) for name in _V1_NEEDED):
        return v1
    return {}


class Cells:
    """The cells of one installation. ``usable`` is False where the machine has no writable cgroups."""

    def __init__(self, instance: str, hierarchy: dict[str, str]) -> None:
        self._hierarchy = hierarchy
        self._folder = f"portico-{instance}" if instance != "portico" else "portico"
        self._roots = sorted({f"{mount}/{self._folder}" for mount in hierarchy.values()})
        self._v2 = bool(hierarchy) and len(set(hierarchy.values())) == 1 and "cpuacct" not in hierarchy
        self.usable = bool(hierarchy)
        if self.usable:
            for mount in set(hierarchy.values()) if self._v2 else ():
                _enable(mount)
            for root in self._roots:
                os.makedirs(root, exist_ok=True)
                if self._v2:
                    _enable(root)

    def make(self, name: str, cores: float, memory_bytes: int) -> None:
        """Make a cell with limits, or set those of the one that is there.

        Raises:
            Unavailable: The kernel did not take them.

        """
        try:
            for root in self._roots:
                os.makedirs(f"{root}/{name}", exist_ok=True)
            quota = max(1000, round(cores * PERIOD_US))
            if self._v2:
                at = f"{self._roots[0]}/{name}"
                _write(f"{at}/cpu.max", f"{quota} {PERIOD_US}")
                _write(f"{at}/memory.max", str(memory_bytes))
                with contextlib.suppress(OSError):  # absent without swap accounting
                    _write(f"{at}/memory.swap.max", "0")
                _write(f"{at}/pids.max", str(PIDS_LIMIT))
                return
            _write(f"{self._at('cpu', name)}/cpu.cfs_period_us", str(PERIOD_US))
            _write(f"{self._at('cpu', name)}/cpu.cfs_quota_us", str(quota))
            _write(f"{self._at('memory', name)}/memory.limit_in_bytes", str(memory_bytes))
            with contextlib.suppress(OSError):
                _write(f"{self._at('memory', name)}/memory.memsw.limit_in_bytes", str(memory_bytes))
            _write(f"{self._at('pids', name)}/pids.max", str(PIDS_LIMIT))
        except OSError as error:
            raise Unavailable("The session's limits could not be set.", why=str(error)) from error

    def join(self, name: str) -> None:
        """Move the calling process into a cell."""
        for root in self._roots:
            _write(f"{root}/{name}/cgroup.procs", "0")

    def look(self) -> dict[str, dict[str, Any]]:
        """Return {name: {processes, oom_kills, memory_bytes, cpu_s}} of all cells."""
        found = {}
        for name in self.list_names():
            with contextlib.suppress(OSError, ValueError):
                found[name] = self._look_at(name)
        return found

    def list_names(self) -> list[str]:
        """Return the names of all cells."""
        if not self.usable:
            return []
        root = self._at("memory", "")
        return [name for name in os.listdir(root) if os.path.isdir(f"{root}/{name}")]

    def end(self, name: str) -> int:
        """Kill all in a cell and remove it; return how many processes there were.

        Raises:
            NotFound: There is no such cell.
            Unavailable: Something in it did not die within END_TIMEOUT_S.

        """
        if name not in self.list_names():
            raise NotFound("There is no such cell.")
        deadline, killed = time.monotonic() + END_TIMEOUT_S, set()
        while pids := {pid for root in self._roots for pid in _list_pids(f"{root}/{name}")}:
            if time.monotonic() > deadline:
                raise Unavailable(f"{len(pids)} processes of the session do not end.", why="They are in the kernel.")
            if self._v2:
                with contextlib.suppress(OSError):  # Linux 5.14
                    _write(f"{self._roots[0]}/{name}/cgroup.kill", "1")
            for pid in pids:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
            killed |= pids
            time.sleep(0.005)
        for root in self._roots:
            _remove(f"{root}/{name}", deadline)
        return len(killed)

    def remove_all_empty(self) -> None:
        """Remove the installation's own folders, if no cell is left."""
        for root in self._roots:
            with contextlib.suppress(OSError):
                os.rmdir(root)

    def _at(self, controller: str, name: str) -> str:
        return f"{self._hierarchy[controller]}/{self._folder}/{name}"

    def _look_at(self, name: str) -> dict[str, Any]:
        memory = self._at("memory", name)
        if self._v2:
            events = _read_pairs(f"{memory}/memory.events")
            used, cpu_s = int(_read(f"{memory}/memory.current")), _read_pairs(f"{memory}/cpu.stat")["usage_usec"] / 1e6
        else:
            events = _read_pairs(f"{memory}/memory.oom_control")
            used = int(_read(f"{memory}/memory.usage_in_bytes"))
            cpu_s = 0.0
            if "cpuacct" in self._hierarchy:
                with contextlib.suppress(OSError):
                    cpu_s = int(_read(f"{self._at('cpuacct', name)}/cpuacct.usage")) / 1e9
        return {
            "processes": len(_list_pids(memory)),
            "oom_kills": events.get("oom_kill", 0),
            "memory_bytes": used,
            "cpu_s": round(cpu_s, 3),
        }


def _enable(folder: str) -> None:
    with contextlib.suppress(OSError):  # already so, or a parent does not allow it: make() then says so
        _write(f"{folder}/cgroup.subtree_control", "+cpu +memory +pids")


def _list_pids(folder: str) -> list[int]:
    pids = []
    for path, _, _ in os.walk(folder):
        with contextlib.suppress(OSError):
            pids += [int(pid) for pid in _read(f"{path}/cgroup.procs").split()]
    return pids


def _remove(folder: str, deadline: float) -> None:
    for path, _, _ in os.walk(folder, topdown=False):
        while True:
            try:
                os.rmdir(path)
                break
            except FileNotFoundError:
                break
            except OSError:  # EBUSY while the last one is being reaped
                if time.monotonic() > deadline:
                    return
                time.sleep(0.005)


def _read(path: str) -> str:
    with open(path) as file:
        return file.read()


def _read_pairs(path: str) -> dict[str, int]:
    return {key: int(value) for key, value in (line.split() for line in _read(path).splitlines())}


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)
