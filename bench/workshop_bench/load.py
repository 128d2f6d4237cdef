"""One round of load: all seats' clients live through one bridge for a while, and what it cost whom."""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from gateway_bench.processes import ROOT, Running, started

from workshop_bench.clients import Event, Visit, parse_result, render_plan
from workshop_bench.connection import Way
from workshop_bench.desktops import Seat

PROCESSES: Final = 2
"""Of clients: a core each is more than they need, and one alone could be late."""
LEAD_S: Final = 2.0
BROWSER_LEAD_S: Final = 8.0
"""Until the first client comes: what their processes take to start."""
TAIL_S: Final = 20.0

_ticks: Final = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Load:
    """What the people do, the same for every bridge.

    Args:
        seed: Of all chance.
        arrive_s: They come within this time.
        live_s: How long a round is.
        browsers: So many of the people are at a real Chromium, where there is one to be at.
    """

    seed: int
    arrive_s: float
    live_s: float
    browsers: int = 0


@dataclass
class Round:
    """What came out.

    Args:
        events: Of all clients.
        cpu: Of a core, by what was counted; ``desktops`` are all that the seats' users run, ``others`` is the rest.
        memory_mb: PSS at the end, all clients connected, by the same names.
        begin_s: time.monotonic.
    """

    begin_s: float
    events: list[Event] = field(default_factory=list)
    cpu: dict[str, float] = field(default_factory=dict)
    memory_mb: dict[str, float] = field(default_factory=dict)

    def list_times_ms(self, what: str) -> list[float]:
        """Return how long each of these took, in milliseconds."""
        return [event.took_s * 1000 for event in self.events if event.what == what]

    def list_failures(self) -> list[Event]:
        """Return what should not have happened."""
        return [event for event in self.events if event.what in ("lost", "refused") or event.what.startswith("late ")]


@contextlib.contextmanager
def clients_started(
    seats: list[Seat], ways: list[Way], load: Load, folder: Path
) -> Iterator[tuple[float, list[Running]]]:
    """Run the clients until the block ends; yield when they begin, and their processes."""
    begin = time.monotonic() + (BROWSER_LEAD_S if any(way.page for way in ways) else LEAD_S)
    chance = random.Random(load.seed)
    visits = [
        Visit(seat.number, way, seat.terminal, f"{load.seed}/{seat.number}",
              begin + chance.uniform(0, load.arrive_s), begin + load.live_s)
        for seat, way in zip(seats, ways, strict=True)
    ]  # fmt: skip
    with contextlib.ExitStack() as stack:
        running = []
        ours, browsers = [one for one in visits if not one.way.page], [one for one in visits if one.way.page]
        parts = [("clients", ours[number::PROCESSES]) for number in range(PROCESSES)]
        for number, (module, part) in enumerate([*parts, *([("browsers", browsers)] if browsers else [])]):
            plan, result = folder / f"plan-{number}", folder / f"result-{number}"
            plan.touch(0o600)  # cookies
            plan.write_text(render_plan(part))
            result.unlink(missing_ok=True)
            argv = [sys.executable, "-m", f"workshop_bench.{module}", str(plan), str(result)]
            env = {"PYTHONPATH": os.pathsep.join([str(ROOT / "bench"), str(ROOT / "src")])}
            running.append(
                stack.enter_context(
                    started(argv, folder / f"clients-{number}.log", env=env, with_children=module == "browsers")
                )
            )
        yield begin, running


def run_round(
    seats: list[Seat], ways: list[Way], load: Load, folder: Path, counted: dict[str, list[Running]],
    meanwhile: Callable[[float], None] | None = None,
) -> Round:  # fmt: skip
    """Let everybody live through a bridge.

    Args:
        seats: All.
        ways: One for each.
        load: What they do.
        folder: For files.
        counted: Processes whose CPU time and memory are told, by name; they have to be the same all the time.
        meanwhile: Called with the time at which the clients begin.
    """
    with clients_started(seats, ways, load, folder) as (begin, clients):
        counted = counted | {"clients": clients}
        time.sleep(max(0.0, begin - time.monotonic()))
        at, before, busy, desktops = time.monotonic(), _read_cpu(counted), _read_busy_s(), _read_users_s(seats)
        if meanwhile:
            meanwhile(begin)
        time.sleep(max(0.0, begin + load.live_s - 1 - time.monotonic()))
        took, after = time.monotonic() - at, _read_cpu(counted)
        found = Round(begin)
        found.cpu = {name: (after[name] - before[name]) / took for name in counted}
        machine = (_read_busy_s() - busy) / took
        found.cpu["desktops"] = (_read_users_s(seats) - desktops) / took
        found.cpu["others"] = max(0.0, machine - sum(found.cpu.values()))
        found.memory_mb = {name: sum(one.read_pss_bytes() for one in them) / 1e6 for name, them in counted.items()}
        for number, client in enumerate(clients):
            found.events += parse_result(_await_text(folder / f"result-{number}", client))
    return found


def _await_text(path: Path, client: Running) -> str:
    deadline = time.monotonic() + TAIL_S
    while not path.exists() and client.is_alive() and time.monotonic() < deadline:
        time.sleep(0.1)
    if not path.exists():
        raise RuntimeError(f"clients failed:\n{client.log.read_text(errors='replace')[-3000:]}")
    return path.read_text()


def _read_cpu(counted: dict[str, list[Running]]) -> dict[str, float]:
    return {name: sum(one.read_cpu_s() for one in them) for name, them in counted.items()}


def _read_users_s(seats: list[Seat]) -> float:
    """Return the CPU time of all processes that are the seats' users', and of their children that ended."""
    uids, ticks = {pwd.getpwnam(seat.name).pw_uid for seat in seats}, 0
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdigit() and process.stat().st_uid in uids:
                fields = (process / "stat").read_text().rpartition(")")[2].split()
                ticks += sum(int(field) for field in fields[11:15])  # proc(5): utime, stime, cutime, cstime
    return ticks / _ticks


def _read_busy_s() -> float:
    line = Path("/proc/stat").read_text().partition("\n")[0].split()[1:]
    user, nice, system, _idle, _wait, irq, softirq = (int(ticks) for ticks in line[:7])
    return (user + nice + system + irq + softirq) / _ticks
