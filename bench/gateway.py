#!/usr/bin/env python3
"""The gateway beside its peers, in one run: docs/benchmarks.md says what is measured and how, and has the figures.

    python bench/gateway.py                        everything, about 7 minutes; writes docs/benchmarks.md and its plot
    python bench/gateway.py stream echo            some parts, printed only
    python bench/gateway.py --quick                everything below 2 minutes, printed only

Any Python that can run Portico will do, e.g. the one in /opt/portico/venv. What is missing of the peers is installed
(Debian's packages as root; the rest into a cache folder) unless --no-install is given; then they are left out.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import signal
import ssl
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "src"), str(ROOT / "tests/support")]

from gateway_bench import authorise, bridges, echo, http, idle, install, plot, report, revoke, stream  # noqa: E402
from gateway_bench.figures import Figure, Report  # noqa: E402
from gateway_bench.processes import Bystanders, Cores, choose_cores, find_free_port, raise_descriptor_limit  # noqa: E402
from gateway_bench.run import Run  # noqa: E402

PARTS: Final[dict[str, Callable[[Run], list[Figure]]]] = {
    "stream": stream.measure,
    "echo": echo.measure,
    "idle": idle.measure,
    "http": http.measure,
    "authorise": authorise.measure,
    "revoke": revoke.measure,
}
DOCS: Final = ROOT / "docs"
DESCRIPTORS: Final = 65_536


def tell(line: str) -> None:
    """Say what is going on."""
    print(f"· {line}", file=sys.stderr, flush=True)


def find_commit() -> str:
    """Return the commit that last changed what is measured, and whether it was changed since."""
    git = ["git", "-C", str(ROOT)]
    log, status = (
        subprocess.run([*git, *options, "--", "src"], capture_output=True, text=True, check=False).stdout.strip()
        for options in (["log", "-1", "--format=%h"], ["status", "--porcelain"])
    )
    return (log or "not from a clone") + (" and changes since" if status else "")


def describe(tools: dict[str, list[str]], missing: dict[str, str], pinned: bool) -> dict[str, str]:
    """Return what the figures depend on; no name of a host."""
    model = next((line.partition(":")[2].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                  if line.startswith("model name")), platform.machine())  # fmt: skip
    versions = ", ".join(f"{name} {version}" for name, version in install.find_versions(tools).items())
    return {
        "Portico": f"{find_commit()}, measured on {datetime.date.today():%d %B %Y}",
        "machine": f"{model}, {len(os.sched_getaffinity(0))} cores, Linux {platform.release()}",
        "cores": "the bridge alone on one, everything else on the others" if pinned else "not pinned",
        "Python": f"{platform.python_version()}, {ssl.OPENSSL_VERSION}",
        "peers": versions,
        **({"left out": ", ".join(f"{name} ({why})" for name, why in missing.items())} if missing else {}),
    }


def measure_part(part: str, quick: bool, cores: Cores, tools: dict[str, list[str]], missing: dict[str, str]) -> Run:
    """Do one part in a folder of its own; return it with what it found."""
    with tempfile.TemporaryDirectory(prefix="bench", dir="/tmp") as name:
        folder, port = Path(name), find_free_port()
        certificate = bridges.make_certificate(folder)
        run = Run(bridges.Place(folder, cores, certificate, port, port + 1, tools, missing), quick)
        run.figures = PARTS[part](run)
        return run


def measure_all(options: argparse.Namespace) -> Report:
    """Do the parts that are asked for, one after the other."""
    tools, missing = install.prepare(not options.no_install, tell)
    result = Report(describe(tools, missing, not options.no_pin))
    raise_descriptor_limit(DESCRIPTORS)
    cores = choose_cores(not options.no_pin)
    if cores.load:
        os.sched_setaffinity(0, cores.load)
    bystanders = Bystanders()
    for part in options.parts or PARTS:
        tell(part)
        run = measure_part(part, options.quick, cores, tools, missing)
        result.figures += run.figures
        result.notes += run.notes
    result.about["others"] = f"used {bystanders.find_share():.0%} of the machine meanwhile"
    return result


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"one or more of {', '.join(PARTS)}; by default all")
    parser.add_argument("--quick", action="store_true", help="less than 2 minutes, less certain")
    parser.add_argument("--no-install", action="store_true", help="leave out peers that are not there")
    parser.add_argument("--no-pin", action="store_true", help="let every process run on every core")
    parser.add_argument("--from", type=Path, dest="earlier", metavar="FILE", help="measure nothing: an earlier --json")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every round's values")
    options = parser.parse_args()
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that everything is taken down
    result = report.parse_json(options.earlier.read_text()) if options.earlier else measure_all(options)
    text = report.render_report(result)
    print(text)
    if options.json:
        options.json.write_text(report.render_json(result))
    if not options.parts and not options.quick:
        report.write_docs(DOCS / "benchmarks.md", text)
        (DOCS / "benchmarks.svg").write_text(plot.draw(result))
        tell(f"written: {DOCS}/benchmarks.md and benchmarks.svg")


if __name__ == "__main__":
    main()
