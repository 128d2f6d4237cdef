"""How often Slurm's controller is asked, and how quick the table of jobs is: many pages, thousands of jobs.

Fills the queue with jobs that do not begin before tomorrow, opens pages that look once a second, and prints what the
controller counted (sdiag(1)) beside what a question per page would cost, asked for real in the same run.

    bench/slurm_queue.py --conf /path/to/slurm.conf --user alice [--jobs 10000] [--pages 200] [--seconds 20]

Needs root, a running Slurm with MaxJobCount above --jobs, and a user who may submit there. Its jobs are cancelled in
the end.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import pwd
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src")]

from portico.schedulers.index import Column, JobFilter, JobIndex  # noqa: E402
from portico.schedulers.slurm.scheduler import SlurmScheduler  # noqa: E402
from portico.sessions import BrokerMachine  # noqa: E402
from portico.sessions.commands import CommandRunner  # noqa: E402

JOB_INFO = re.compile(r"REQUEST_JOB_INFO(?:_SINGLE)?\s.*?count:(\d+)\s+ave_time:(\d+)")


class Slurm:
    """The cluster, by hand."""

    def __init__(self, conf: str, user: str) -> None:
        self.env = {"PATH": os.environ["PATH"], "SLURM_CONF": conf}
        entry = pwd.getpwnam(user)
        self.user = user
        self.ids = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": [], "cwd": entry.pw_dir}

    def run(self, *argv: str, **more: object) -> str:
        done = subprocess.run(argv, env=self.env, check=False, capture_output=True, text=True, **more)  # type: ignore[call-overload]
        return str(done.stdout)

    def fill(self, count: int) -> float:
        """Submit jobs; return how long that took."""

        def submit(number: int) -> None:
            argv = ("sbatch", "--begin=now+1day", "--time=60", "--output=/dev/null", f"--job-name=bench {number}")
            self.run(*argv, input="#!/bin/sh\nsleep 1\n", **self.ids)

        begin = time.perf_counter()
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(submit, range(count)))
        return time.perf_counter() - begin

    def count_questions(self) -> tuple[int, float]:
        """Return how many questions about jobs the controller answered, and its milliseconds for them in all."""
        found = [(int(n), int(n) * int(us) / 1000) for n, us in JOB_INFO.findall(self.run("sdiag"))]
        return sum(n for n, _ in found), sum(ms for _, ms in found)


async def look(scheduler: SlurmScheduler, pages: int, seconds: float) -> list[float]:
    """Open the pages; return how long each look took."""
    times: list[float] = []
    made: dict[str, object] = {}

    async def open_page(number: int) -> None:
        await asyncio.sleep(random.random())
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            begin = time.perf_counter()
            queue = await scheduler.list_jobs()
            if made.get("queue") is not queue:
                made["queue"], made["index"] = queue, JobIndex(queue.jobs)
            index = made["index"]
            assert isinstance(index, JobIndex)
            column = list(Column)[number % len(Column)]
            index.find_page(JobFilter(text=f"bench {number}"), column, offset=number % 7 * 50)
            times.append(time.perf_counter() - begin)
            await asyncio.sleep(1)

    await scheduler.list_jobs()  # the first answer is waited for; the keeper has it long before anybody looks
    await asyncio.gather(*(open_page(number) for number in range(pages)))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--conf", required=True)
    parser.add_argument("--user", required=True)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--pages", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=20)
    options = parser.parse_args()
    slurm = Slurm(options.conf, options.user)
    print(f"{options.jobs} jobs were submitted in {slurm.fill(options.jobs):.1f} s", flush=True)
    try:
        measure(slurm, options.conf, options.pages, options.seconds)
    finally:
        slurm.run("scancel", f"--user={options.user}")


def measure(slurm: Slurm, conf: str, pages: int, seconds: float) -> None:
    ids = slurm.run("squeue", "-h", "-o", "%A").split()
    with tempfile.TemporaryDirectory() as folder:
        environment = (("SLURM_CONF", conf), ("PATH", os.environ["PATH"]))
        runner = CommandRunner(BrokerMachine("/nonexistent"))
        before = slurm.count_questions()
        cpu = time.process_time()

        async def run() -> list[float]:
            scheduler = SlurmScheduler(Path(folder), runner, environment=environment)
            try:
                return await look(scheduler, pages, seconds)
            finally:
                await scheduler.close()

        times = asyncio.run(run())
        cpu = time.process_time() - cpu
    after = slurm.count_questions()
    ours, ours_ms = after[0] - before[0], after[1] - before[1]
    ordered = [time_s * 1000 for time_s in sorted(times)]
    print(f"{len(ids)} jobs in the queue, {pages} pages that look once a second for {seconds:g} s: {len(times)} looks")
    print(
        f"a look: p50 {statistics.median(ordered):.1f} ms, p95 {ordered[int(len(ordered) * 0.95)]:.1f} ms, longest ",
        end="",
    )
    print(f"{ordered[-1]:.1f} ms; {cpu / seconds:.0%} of one core here")
    print(f"questions to the controller: {ours}, about {ours_ms:.0f} ms of its time")
    before = slurm.count_questions()
    begin = time.perf_counter()
    for number in range(100):
        slurm.run("squeue", "-h", "-j", ids[number % len(ids)])
    took = time.perf_counter() - begin
    after = slurm.count_questions()
    each, each_ms = (after[0] - before[0]) / 100, (after[1] - before[1]) / 100
    looks = len(times)
    print(
        f"a question per look instead: {each * looks:.0f} questions, about {each_ms * looks:.0f} ms of its time, ",
        end="",
    )
    print(f"{took / 100 * looks:.0f} s of processes here: {each * looks / max(1, ours):.0f} times as many")


if __name__ == "__main__":
    main()
