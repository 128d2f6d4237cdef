"""A whole Portico with a Slurm cluster beside this machine, and two people who may use it."""

from __future__ import annotations

import contextlib
import pwd
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from person import Person, TerminalClient
from running import RunningPortico, wait_until
from websockets.exceptions import ConnectionClosed, InvalidStatus

from portico.demo import DemoCluster


def make_site(start: Callable[..., RunningPortico], slurm: DemoCluster, more: str = "", **settings: Any) -> Site:
    """Start a Portico with this cluster, and with alice and bob.

    Args:
        start: What ``portico_factory`` returns.
        more: More lines of the cluster's table.
        settings: Lines of its configuration file.
    """
    table = (
        f'[clusters.demo]\ntitle = "Demo cluster"\nconf = "{slurm.conf}"\nrelay_host = "{slurm.host_address}"\n{more}'
    )
    house = start(settings, tables=table)
    alice, bob = house.user("alice"), house.user("bob")
    for name, person in (("alice", alice), ("bob", bob)):  # the first try makes the POSIX account
        answer = person.http.post("/api/v1/sessions", json={"app_id": "terminal", "cluster": "demo"})
        assert answer.status_code == 422 and "no account in Slurm" in answer.text
        slurm.add_user(house.get_name(name))
    time.sleep(5.5)  # who has no account is asked for again after so long
    return Site(house, slurm, alice, bob)


@dataclass
class Site:
    """A Portico with a cluster besides this machine; alice and bob may submit jobs there."""

    house: RunningPortico
    slurm: DemoCluster
    alice: Person
    bob: Person

    def start(self, app: str = "terminal", who: Person | None = None, **wanted: Any) -> str:
        """Start a session on the cluster; return its id."""
        return str((who or self.alice).start(app, cluster="demo", **{"hours": 1, "memory_gb": 0.5, **wanted})["id"])

    def start_ready(self, app: str = "terminal", **wanted: Any) -> dict[str, Any]:
        """Start a session on the cluster and wait until it is ready."""
        return self.alice.wait(self.start(app, **wanted), timeout_s=90)

    def open_terminal(self, session_id: str) -> TerminalClient:
        """Open its stream, as soon as that is possible."""

        def opened() -> TerminalClient | None:
            with contextlib.suppress(InvalidStatus, OSError, ConnectionClosed):
                return TerminalClient(self.alice.open_stream(f"/sessions/{session_id}/stream"))
            return None

        found: TerminalClient = wait_until(opened, 30, "a stream")
        return found

    def list_jobs(self, session_id: str) -> list[str]:
        """Return Slurm's ids of a session's jobs, those that have ended too."""
        lines = self.slurm.run("squeue", "-a", "-h", "-t", "all", "-o", "%A|%k").splitlines()
        return [line.split("|")[0] for line in lines if line.endswith(f"portico:{session_id}")]

    def find_processes(self, word: bytes) -> list[int]:
        """Return the pids of alice's processes with a word in their command line or environment."""
        uid, found = pwd.getpwnam(self.house.get_name("alice")).pw_uid, []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (
                    process.stat().st_uid == uid
                    and word in (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
                ):
                    found.append(int(process.name))
        return found

    def submit_as(self, name: str, job_name: bytes, *options: str) -> str:
        """Submit a job that sleeps, not through Portico; return its id."""
        account = pwd.getpwnam(self.house.get_name(name))
        return subprocess.run(
            [b"sbatch", b"--parsable", b"--output=/dev/null", b"--job-name=" + job_name, *map(str.encode, options)],
            input=b"#!/bin/sh\nsleep 600\n", env={"PATH": "/usr/bin:/bin", "SLURM_CONF": str(self.slurm.conf)},
            user=account.pw_uid, group=account.pw_gid, extra_groups=[], cwd="/", capture_output=True, check=True,
        ).stdout.decode().strip()  # fmt: skip

    def cancel_jobs(self) -> None:
        """Cancel all jobs of alice's and bob's."""
        for name in ("alice", "bob"):
            self.slurm.run("scancel", "--user", self.house.get_name(name), check=False)

    def stop_all(self) -> None:
        """End all sessions of alice's and bob's."""
        self.cancel_jobs()
        for who in (self.alice, self.bob):
            for session in who.http.get("/api/v1/sessions").json():
                if session["state"] != "ended":
                    who.http.post(f"/api/v1/sessions/{session['id']}/stop")
            for session in who.http.get("/api/v1/sessions").json():
                who.wait(session["id"], "ended", 60)
