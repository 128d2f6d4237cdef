#!/usr/bin/env python3
"""A workshop on this machine: N seats of an event, registered for within a second, with a desktop and a live client
each, two of them real Chromium; Portico beside the classical set-up.

    python bench/workshop.py                       60 seats with XFCE; about 10 minutes, 9 GB
    python bench/workshop.py --seats 4 --app desktop-light
    python bench/workshop.py --kill                and in the end kill -9 of all of Portico while everybody is at work

As root, in the Python of Portico's venv-test. The classical set-up is a websockify a seat behind one nginx with a token
in the path; it reaches the same desktops, and the same people do the same there, round by round. docs/benchmarks.md
says how it is measured and has figures. Nothing stays behind, after Ctrl-C either.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "src"), str(ROOT / "tests/support")]

from gateway_bench import install  # noqa: E402
from gateway_bench.figures import PORTICO, interleave  # noqa: E402
from gateway_bench.processes import Bystanders, Running, raise_descriptor_limit  # noqa: E402
from person import Person  # noqa: E402
from running import INSTALL_DIR, RunningPortico, find_reason_to_skip  # noqa: E402
from workshop_bench import report  # noqa: E402
from workshop_bench.classical import Classical, classical_started  # noqa: E402
from workshop_bench.connection import Way  # noqa: E402
from workshop_bench.desktops import MEMORY_GB, SETTLED_WINDOWS, Seat, start_all  # noqa: E402
from workshop_bench.kill import kill_all  # noqa: E402
from workshop_bench.load import Load, Round, run_round  # noqa: E402
from workshop_bench.registration import WITHIN_S, make_event, register_all  # noqa: E402
from workshop_bench.report import CLASSICAL, NONE  # noqa: E402

DESCRIPTORS: Final = 16_384
STOPPING: Final = (signal.SIGINT, signal.SIGTERM)
QUIET_S: Final = 3.0
"""How long the machine is looked at before anything starts."""


def tell(line: str) -> None:
    """Say what is going on."""
    print(f"· {line}", file=sys.stderr, flush=True)


def measure_bridge(
    name: str, portico: RunningPortico, seats: list[Seat], classical: Classical | None, load: Load, folder: Path
) -> Round:
    """Let everybody live through one bridge for a round."""
    tell(f"{name}: {len(seats)} people for {load.live_s:g} s")
    counted: dict[str, list[Running]] = {}
    if name == PORTICO:
        ways = [seat.find_way(portico, in_browser=seat.number < load.browsers) for seat in seats]
        pids = portico.pids
        counted["bridge"] = [Running(pids["gateway"], folder)]
        counted["portal"] = [Running(pids["portal"], folder)]
    elif name == CLASSICAL:
        assert classical
        ways, counted["bridge"] = classical.ways, classical.running
    else:
        ways = [Way(0, seat.socket) for seat in seats]
    return run_round(seats, ways, load, folder, counted)


def measure(options: argparse.Namespace, portico: RunningPortico, folder: Path, about: dict[str, str]) -> report.Result:
    """Do everything; the caller takes Portico down."""
    tools, missing = install.prepare(not options.no_install, tell)
    left_out = next((f"{name} ({missing[name]})" for name in ("nginx", "websockify") if name in missing), "")
    if left_out:
        about["left out"] = f"{CLASSICAL}: {left_out}"
    portico.start()
    result = report.Result(about)
    tell(f"making an event with {options.seats} seats")
    seats_s = make_event(portico, options.seats, options.app, folder)
    tell(f"{options.seats + 1} people register within {WITHIN_S:g} s")
    seats, result.registration = register_all(portico, options.seats, Person)
    result.registration.seats_s = seats_s
    if len(seats) != options.seats:
        raise RuntimeError(f"not everybody got a seat: {result.registration}")
    tell(f"starting {options.seats} desktops ({options.app})")
    result.start_s = start_all(portico, seats, options.app, threading.Event())
    result.ready_s = [seat.ready_s for seat in seats]
    tell(f"all are there after {result.start_s:.0f} s")
    load = Load(options.seed, options.arrive, options.live, min(options.browsers, options.seats))
    if left_out:
        names, classical = [PORTICO, NONE], None
        result.rounds = run_rounds(names, options.rounds, portico, seats, classical, load, folder)
    else:
        with classical_started(seats, load.browsers, tools, folder, INSTALL_DIR / "assets/novnc") as classical:
            result.rounds = run_rounds(
                [PORTICO, CLASSICAL, NONE], options.rounds, portico, seats, classical, load, folder
            )
    if options.kill:
        tell("kill -9 of all of Portico in the middle of a round")
        result.killing = kill_all(portico, seats, load.browsers, load, folder)
    return result


def run_rounds(
    names: list[str], rounds: int, portico: RunningPortico, seats: list[Seat], classical: Classical | None, load: Load,
    folder: Path,
) -> dict[str, list[Round]]:  # fmt: skip
    """Let everybody live through each of the bridges, in turn."""
    return interleave(
        names, rounds, lambda name: measure_bridge(name, portico, seats, classical, load, folder), lambda name: name
    )


def describe(options: argparse.Namespace) -> dict[str, str]:
    """Return what the figures depend on."""
    bystanders = Bystanders()
    time.sleep(QUIET_S)
    memory = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    return {
        "workshop": f"{options.seats} seats, {options.app}, rounds of {options.live:g} s, seed {options.seed}",
        "clients": f"{min(options.browsers, options.seats)} are Chromium",
        "machine": f"{os.cpu_count()} cores, {int(memory['MemTotal'].split()[0]) / 1e6:.0f} GB",
        "others before": f"load {os.getloadavg()[0]:.1f}, {bystanders.find_share():.0%} of the machine",
    }


def stop(number: int, frame: object) -> None:
    """End with everything taken down, and not be hurried by a second Ctrl-C."""
    for other in STOPPING:
        signal.signal(other, signal.SIG_IGN)
    sys.exit(128 + number)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seats", type=int, default=60)
    parser.add_argument("--app", default="desktop-xfce", choices=list(SETTLED_WINDOWS))
    parser.add_argument("--browsers", type=int, default=2, help="so many of the clients are real Chromium")
    parser.add_argument("--rounds", type=int, default=3, help="of each bridge")
    parser.add_argument("--live", type=float, default=30.0, metavar="S", help="how long a round is")
    parser.add_argument("--arrive", type=float, default=5.0, metavar="S", help="within how long everybody connects")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kill", action="store_true", help="in the end, kill Portico and time how all come back")
    parser.add_argument("--no-install", action="store_true", help="leave the classical set-up out if it is not there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    options = parser.parse_args()
    if reason := find_reason_to_skip():
        sys.exit(reason)
    for number in STOPPING:
        signal.signal(number, stop)
    raise_descriptor_limit(DESCRIPTORS)
    about = describe(options)
    settings: dict[str, Any] = {"cores": float(options.seats), "memory_gb": options.seats * MEMORY_GB}
    portico = RunningPortico(settings)
    try:
        with tempfile.TemporaryDirectory(prefix="pt-workshop-") as name:
            result = measure(options, portico, Path(name), about)
    finally:
        tell("taking everything down")
        portico.destroy()
    print(report.render(result))
    if options.json:
        options.json.write_text(json.dumps(report.make_json(result), indent=1) + "\n")


if __name__ == "__main__":
    main()
