#!/usr/bin/python3
"""How often Slurm's controller is asked, and how quick the pages of jobs are.

    python bench/slurm_queue.py [--jobs 10000] [--pages 200] [--seconds 30]

Starts a demo cluster and a Portico, fills the queue with jobs that do not begin before tomorrow, and opens pages over
HTTP as browsers have them open: each is fetched again every 3 s. Half are tables, each with a filter and an order of
its own; half are pages of one job each, some of them running. Prints how long a page took, and what the controller
counted (sdiag(1), by user) beside what a question for each look would cost it, asked for real in the same run. As
root; ./portico test installs all.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import pwd
import random
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT / "src")]

import cluster  # noqa: E402
from running import RunningPortico  # noqa: E402

from portico.demo import DemoCluster  # noqa: E402
from portico.jobs import Column  # noqa: E402

LOOK_S = 3.0
"""As data-poll in job.html."""
RUNNING = 8
BY_USER = re.compile(r"^\s+(\S+)\s+\(\s*(\d+)\) count:(\d+)\s+ave_time:(\d+)", re.MULTILINE)


class Slurm:
    """The cluster, by hand."""

    def __init__(self, running: DemoCluster, user: str) -> None:
        self.env = {"PATH": os.environ["PATH"], "SLURM_CONF": str(running.conf)}
        entry = pwd.getpwnam(user)
        self.user = user
        self.ids = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": [], "cwd": entry.pw_dir}

    def run(self, *argv: str, **more: object) -> str:
        done = subprocess.run(argv, env=self.env, check=False, capture_output=True, text=True, **more)  # type: ignore[call-overload]
        return str(done.stdout)

    def submit(self, *options: str) -> str:
        argv = ("sbatch", "--parsable", "--time=60", "--mem=100", "--output=/dev/null", *options)
        return self.run(*argv, input="#!/bin/sh\nsleep 1000\n", **self.ids).strip()

    def fill(self, count: int) -> float:
        """Submit jobs that wait; return how long that took."""
        begin = time.perf_counter()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda n: self.submit("--begin=now+1day", f"--job-name=bench {n}"), range(count)))
        return time.perf_counter() - begin

    def count_questions(self, *accounts: str) -> tuple[int, float]:
        """Return how many requests of these accounts the controller answered, and its milliseconds for them in all."""
        _, _, users = self.run("sdiag").partition("statistics by user")
        found = [(int(n), int(n) * int(us) / 1000) for name, _, n, us in BY_USER.findall(users) if name in accounts]
        return sum(n for n, _ in found), sum(ms for _, ms in found)


class Page:
    """A page that a browser has open, on a connection of its own. Costs little itself: both share two cores."""

    def __init__(self, house: RunningPortico, cookie: str, path: str) -> None:
        self._port = house.port
        head = (f"GET {path} HTTP/1.1", f"Host: localhost:{house.port}", f"Cookie: {cookie}", "Accept: text/html")
        self._request = "\r\n".join((*head, "", "")).encode()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def fetch(self) -> float:
        """Fetch it; return the seconds until its last byte."""
        begin = time.perf_counter()
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(self._request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"\r\ncontent-length: (\d+)\r\n", head, re.IGNORECASE)
        if not head.startswith(b"HTTP/1.1 200 ") or length is None:
            raise RuntimeError(f"{self._request!r}: {head!r}")
        body = await reader.readexactly(int(length[1]))
        assert body.rstrip().endswith(b"</html>")
        return time.perf_counter() - begin

    def close(self) -> None:
        """Close its connection."""
        if self._streams:
            self._streams[1].close()


async def look(house: RunningPortico, cookie: str, paths: Sequence[str], seconds: float) -> dict[str, list[float]]:
    """Have the pages open; return how long each look took, in seconds, by kind of page."""
    times: dict[str, list[float]] = {"table": [], "job": []}

    async def open_page(path: str, begin_s: float) -> None:
        page = Page(house, cookie, path)
        await asyncio.sleep(begin_s)
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            took = await page.fetch()
            times["job" if path.startswith("/jobs/") else "table"].append(took)
            await asyncio.sleep(max(0, LOOK_S - took))
        page.close()

    await asyncio.gather(*(open_page(path, LOOK_S * at / len(paths)) for at, path in enumerate(paths)))
    return times


def print_times(name: str, times: Sequence[float]) -> None:
    """Print a line."""
    ordered = sorted(time_s * 1000 for time_s in times)
    p50, p95 = (ordered[int(len(ordered) * part)] for part in (0.5, 0.95))
    print(f"{name}: {len(ordered)} looks, p50 {p50:.0f} ms, p95 {p95:.0f} ms, longest {ordered[-1]:.0f} ms")


def measure_cpu(house: RunningPortico) -> dict[str, float]:
    """Return the seconds of CPU that the processes have used which a page passes, and this one."""
    pids = {"portal": house.pids["portal"], "gateway": house.pids["gateway"], "this program": os.getpid()}
    stats = {name: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for name, pid in pids.items()}
    return {name: (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK") for name, stat in stats.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--pages", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=30)
    options = parser.parse_args()
    if reason := cluster.find_reason_to_skip():
        sys.exit(reason)
    with cluster.running_cluster() as running:
        table = f'[clusters.demo]\nconf = "{running.conf}"\nrelay_host = "{running.host_address}"'
        house = RunningPortico(tables=table)
        try:
            house.start()
            alice, name = house.user("alice"), house.get_name("alice")
            alice.http.post("/api/v1/sessions", json={"app_id": "terminal", "cluster": "demo"})  # makes the account
            running.add_user(name)
            slurm = Slurm(running, name)
            active = [slurm.submit(f"--job-name=runs {n}") for n in range(RUNNING)]
            took_s = slurm.fill(options.jobs)
            print(f"{options.jobs} jobs were submitted in {took_s:.0f} s, {RUNNING} run", flush=True)
            measure(house, slurm, active, options.pages, options.seconds)
        finally:
            house.destroy()


def measure(house: RunningPortico, slurm: Slurm, active: Sequence[str], pages: int, seconds: float) -> None:
    """Open the pages, count, and ask as often as a portal would that asks for every look."""
    alice = house.user("alice")
    ids = slurm.run("squeue", "-h", "-o", "%A").split()
    columns = [column.value for column in Column]
    tables = [f"/jobs?text=bench+{n}&sort={columns[n % len(columns)]}&offset={n % 2 * 50}" for n in range(pages // 2)]
    several = [*active, *ids[:: max(1, len(ids) // pages)]]
    paths = [*tables, *(f"/jobs/demo/{job_id}" for job_id in several[: pages - len(tables)])]
    random.Random(1).shuffle(paths)
    cookie = "; ".join(f"{name}={value}" for name, value in alice.http.cookies.items())
    asyncio.run(look(house, cookie, paths, 1))  # compiled templates, first answers
    askers = ("portico", slurm.user)
    before = slurm.count_questions(*askers)
    load, spent = os.getloadavg()[0], measure_cpu(house)
    times = asyncio.run(look(house, cookie, paths, seconds))
    spent = {name: cpu_s - spent[name] for name, cpu_s in measure_cpu(house).items()}
    after = slurm.count_questions(*askers)
    ours, ours_ms = after[0] - before[0], after[1] - before[1]
    looks = sum(len(found) for found in times.values())
    print(f"{len(ids)} jobs in the queue, {len(paths)} pages open, each fetched every {LOOK_S:g} s for {seconds:g} s")
    print(f"load of the machine before that: {load:.1f} with {os.cpu_count()} cores")
    print_times("a table", times["table"])
    print_times("a job's page", times["job"])
    each_ms = ", ".join(f"{name} {cpu_s * 1000 / looks:.1f}" for name, cpu_s in spent.items())
    print(f"milliseconds of CPU for each look, all that these processes did besides included: {each_ms}")
    print(f"requests of ours to the controller: {ours} ({ours / seconds:.1f} a second), {ours_ms:.0f} ms of its time")
    before, begin = slurm.count_questions("root"), time.perf_counter()
    for number in range(100):
        slurm.run("squeue", "-h", "-j", ids[number % len(ids)])
    took_s = time.perf_counter() - begin
    after = slurm.count_questions("root")
    each, each_ms = (after[0] - before[0]) / 100, (after[1] - before[1]) / 100
    print(
        f"one question for each look instead: {each * looks:.0f} requests, {each_ms * looks:.0f} ms of its time, "
        f"{took_s / 100 * looks:.0f} s of processes here: {each * looks / max(1, ours):.0f} times as many"
    )


if __name__ == "__main__":
    main()
