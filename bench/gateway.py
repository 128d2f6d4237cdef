#!/usr/bin/env python3
"""The gateway beside its peers, in one run: docs/benchmarks.md says what is measured and how, and has the figures.

    python bench/gateway.py                        everything, about 12 minutes; writes docs/benchmarks.md and its plot
    python bench/gateway.py stream echo            some parts, printed only
    python bench/gateway.py --quick                everything below 2 minutes, printed only

Any Python that can run Portico will do, e.g. the one in /opt/portico/venv. What is missing of the peers is installed
(Debian's packages as root; the rest into a cache folder) unless --no-install is given; then they are left out.
"""

from __future__ import annotations

import argparse
import os
import platform
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "src"), str(ROOT / "tests/support")]

from gateway_bench import authorise, bridges, echo, http, idle, install, report, revoke, stream  # noqa: E402
from gateway_bench.figures import Figure, Report  # noqa: E402
from gateway_bench.processes import Cores, choose_cores, find_free_port, raise_descriptor_limit  # noqa: E402
from gateway_bench.run import Run  # noqa: E402

PARTS: Final[dict[str, Callable[[Run], list[Figure]]]] = {
    "stream": stream.measure,
    "echo": echo.measure,
    "idle": idle.measure,
    "http": http.measure,
    "authorise": authorise.measure,
    "revoke": revoke.measure,
}
DESCRIPTORS: Final = 65_536


def tell(line: str) -> None:
    """Say what is going on."""
    print(f"· {line}", file=sys.stderr, flush=True)


def describe(tools: dict[str, list[str]], missing: dict[str, str], pinned: bool) -> dict[str, str]:
    """Return what the figures depend on; no name of a host."""
    model = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.machine())  # fmt: skip
    commit = subprocess.run(["git", "-C", str(ROOT), "describe", "--always", "--dirty"], capture_output=True, text=True)
    versions = ", ".join(f"{name} {version}" for name, version in install.find_versions(tools).items())
    return {
        "Portico": commit.stdout.strip() or "unknown",
        "machine": f"{model}, {len(os.sched_getaffinity(0))} cores, Linux {platform.release()}",
        "cores": "the bridge alone on one, everything else on the others" if pinned else "not pinned",
        "Python": f"{platform.python_version()}, {ssl.OPENSSL_VERSION}",
        "peers": versions,
        **({"left out": ", ".join(f"{name} ({why})" for name, why in missing.items())} if missing else {}),
    }


def measure(part: str, quick: bool, cores: Cores, tools: dict[str, list[str]], missing: dict[str, str]) -> Run:
    """Do one part in a folder of its own; return it with what it found."""
    with tempfile.TemporaryDirectory(prefix="bench", dir="/tmp") as name:
        folder, port = Path(name), find_free_port()
        certificate = bridges.make_certificate(folder)
        run = Run(bridges.Place(folder, cores, certificate, port, port + 1, tools, missing), quick)
        run.figures = PARTS[part](run)
        return run


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"one or more of {', '.join(PARTS)}; by default all")
    parser.add_argument("--quick", action="store_true", help="less than 2 minutes, less certain")
    parser.add_argument("--no-install", action="store_true", help="leave out peers that are not there")
    parser.add_argument("--no-pin", action="store_true", help="let every process run on every core")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's values")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    tools, missing = install.prepare(not options.no_install, tell)
    result = Report(describe(tools, missing, not options.no_pin))
    raise_descriptor_limit(DESCRIPTORS)
    cores = choose_cores(not options.no_pin)
    if cores.load:
        os.sched_setaffinity(0, cores.load)
    for part in options.parts or PARTS:
        tell(part)
        run = measure(part, options.quick, cores, tools, missing)
        result.figures += run.figures
        result.notes += run.notes
    text = report.render_report(result)
    print(text)
    if options.json:
        options.json.write_text(report.render_json(result))


if __name__ == "__main__":
    main()
