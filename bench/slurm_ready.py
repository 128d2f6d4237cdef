#!/usr/bin/python3
"""How much a session on a Slurm cluster takes beyond the bare job: from sbatch's answer to "ready".

    python bench/slurm_ready.py [--rounds 10] [--app terminal]

Starts a demo cluster and a Portico, and alternates: a bare job that writes down when it began, and a session of the
same size. Both are counted from the moment at which Slurm had taken the job. As root; ./portico test installs all.
"""

from __future__ import annotations

import argparse
import json
import os
import pwd
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT / "src")]

import cluster  # noqa: E402
from person import Person  # noqa: E402
from running import RunningPortico  # noqa: E402

from portico.demo import DemoCluster  # noqa: E402


def run_bare(slurm: DemoCluster, name: str) -> float:
    """Return how long a bare job took to begin, in seconds."""
    account = pwd.getpwnam(name)
    mark = Path(account.pw_dir) / "began"
    mark.unlink(missing_ok=True)
    script = f"date +%s.%N >{mark}.new; mv {mark}.new {mark}"
    subprocess.run(
        ["sbatch", "--mem=500", "--time=60", "--output=/dev/null", "--wrap", script],
        user=account.pw_uid, group=account.pw_gid, extra_groups=[], cwd=account.pw_dir, check=True, capture_output=True,
        env={"PATH": "/usr/bin:/bin", "SLURM_CONF": str(slurm.conf), "HOME": account.pw_dir},
    )  # fmt: skip
    accepted = time.time()
    deadline = accepted + 60
    while not mark.exists():
        if time.time() > deadline:
            raise TimeoutError("the bare job did not begin")
        time.sleep(0.005)
    return max(0.0, float(mark.read_text()) - accepted)


def run_session(who: Person, app: str) -> float:
    """Return how long a session took from its acceptance to ready, in seconds."""
    session = who.start(app, cluster="demo", memory_gb=0.5, hours=1)
    accepted = time.time()
    who.wait(session["id"], timeout_s=60)
    took = time.time() - accepted
    who.http.post(f"/api/v1/sessions/{session['id']}/stop")
    who.wait(session["id"], "ended", 60)
    return took


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--app", default="terminal")
    parser.add_argument("--json", help="write the figures there")
    arguments = parser.parse_args()
    if reason := cluster.find_reason_to_skip():
        sys.exit(reason)
    with cluster.running_cluster() as slurm:
        table = f'[clusters.demo]\nconf = "{slurm.conf}"\nrelay_host = "{slurm.host_address}"'
        house = RunningPortico(tables=table)
        try:
            house.start()
            alice, name = house.user("alice"), house.get_name("alice")
            alice.http.post("/api/v1/sessions", json={"app_id": "terminal", "cluster": "demo"})  # makes the account
            slurm.add_user(name)
            time.sleep(6)
            bare, whole = [], []
            for number in range(arguments.rounds + 1):
                one, two = run_bare(slurm, name), run_session(alice, arguments.app)
                if number:  # the first of each warms up
                    bare.append(one)
                    whole.append(two)
        finally:
            house.destroy()
    figures = {"bare_s": statistics.median(bare), "session_s": statistics.median(whole), "cores": os.cpu_count()}
    figures["added_s"] = figures["session_s"] - figures["bare_s"]
    added = sorted(b - a for a, b in zip(bare, whole, strict=True))
    print(f"bare job, sbatch to its first command: {figures['bare_s']:.2f} s (median of {len(bare)})")
    print(f"session ({arguments.app}), accepted to ready: {figures['session_s']:.2f} s")
    print(f"added: {figures['added_s']:.2f} s (from {added[0]:.2f} to {added[-1]:.2f}); wanted: 1 s at most")
    if arguments.json:
        Path(arguments.json).write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
