"""What a real Slurm said, kept as files: the first line is JSON (version, argv, status, stderr), the rest stdout as it was.

``python tests/support/slurm_fixtures.py CONF ALICE BOB`` records them again on a running Slurm with an idle partition
``batch`` of three nodes, one ``closed`` that is down, an account ``proj1`` and a QOS ``one`` (MaxJobsPU=1) of alice's.
"""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from portico.schedulers.slurm import control, history, queue, site
from portico.schedulers.slurm.command import Command, Result

FOLDER = Path(__file__).resolve().parents[1] / "fast/schedulers/slurm/fixtures"
MARK = "a1b2c3d4e5f60718"
SINCE = datetime(2026, 11, 1, tzinfo=UTC)


def load(name: str) -> Result:
    """Return what the command said."""
    head, _, stdout = (FOLDER / name).read_bytes().partition(b"\n")
    meta = json.loads(head)
    return Result(meta["status"], stdout, meta["stderr"].encode())


class Recorder:
    """Runs commands on a real Slurm and writes down what it says, under names that are nobody's."""

    def __init__(self, conf: str, alice: str, bob: str) -> None:
        self._conf, self._users = conf, {"alice": alice, "bob": bob}
        self._version = self._run(None, ("sinfo", "--version")).stdout.decode().split()[-1]

    def _run(self, user: str | None, argv: tuple[str, ...], stdin: bytes = b"", env: Any = ()) -> Any:
        more: dict[str, Any] = {"PATH": "/usr/bin:/bin", "SLURM_CONF": self._conf, **dict(env)}
        ids: dict[str, Any] = {}
        if user:
            entry = pwd.getpwnam(self._users[user])
            ids = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": [], "cwd": entry.pw_dir}
        return subprocess.run(argv, input=stdin, env=more, capture_output=True, check=False, **ids)

    def submit(self, user: str, *options: str, script: bytes = b"#!/bin/sh\nsleep 300\n") -> str:
        """Submit a job; return its id."""
        done = self._run(user, ("sbatch", "--parsable", *options), script)
        assert done.returncode == 0, done.stderr
        return str(done.stdout.decode().strip())

    def run(self, user: str | None, *argv: str) -> None:
        """Run something that is not recorded."""
        self._run(user, argv)

    def record(self, name: str, user: str | None, command: Command[Any] | tuple[str, ...], stdin: bytes = b"") -> None:
        """Run a command and keep what it says."""
        argv, env = (command.argv, command.env) if isinstance(command, Command) else (command, ())
        done = self._run(user, argv, stdin, env)
        stdout, stderr = self._clean(done.stdout), self._clean(done.stderr).decode()
        head = {"version": self._version, "argv": list(argv), "status": done.returncode, "stderr": stderr}
        FOLDER.mkdir(exist_ok=True)
        (FOLDER / name).write_bytes(json.dumps(head).encode() + b"\n" + stdout)

    def _clean(self, data: bytes) -> bytes:
        for name, real in self._users.items():
            data = data.replace(pwd.getpwnam(real).pw_dir.encode(), f"/home/{name}".encode())
            data = data.replace(real.encode(), name.encode())
        return data

    def wait(self, condition: Callable[[], bool]) -> None:
        """Wait, bounded."""
        deadline = time.monotonic() + 90
        while not condition():
            assert time.monotonic() < deadline
            time.sleep(0.2)

    def state(self, job_id: str) -> str:
        """Return a job's state."""
        return str(self._run(None, ("squeue", "-h", "-t", "all", "-o", "%T", "-j", job_id)).stdout.decode().strip())


def record(conf: str, alice: str, bob: str) -> None:
    """Record all."""
    recorder = Recorder(conf, alice, bob)
    comment, name = queue.render_key("kabcdefghijk")
    failed = recorder.submit("alice", script=b"#!/bin/sh\nexit 3\n")
    launch = recorder.submit("alice", "--output=/nonexistent/x")
    killed = recorder.submit("alice", script=b"#!/bin/sh\nkill -9 $$\n")
    ran = recorder.submit("alice", f"--comment={comment}", f"--job-name={name}")
    gone = recorder.submit("alice", "--job-name=gone")
    recorder.wait(lambda: recorder.state(gone) == "RUNNING")
    recorder.run("alice", "scancel", gone)
    recorder.submit("alice", "-H", "-J", "new\nline|x\n1|1", f"--comment={comment}\n{MARK[::-1]}|2|")
    recorder.submit("alice", "-H", "-J", os.fsdecode(b"caf\xc3\xa9 \xff\xfe"), "--comment=a|b")
    recorder.submit("alice", "-H", "-J", "tab\tcr\rx\x1b[31mred")
    recorder.submit("alice", "-a", "1-1000:3%2", "-t", "1-00:00:00")
    recorder.submit("alice", "-q", "one")
    recorder.submit("alice", "-q", "one")
    recorder.submit("alice", "-p", "closed")
    recorder.submit("alice", f"--dependency=afterok:{ran}")
    recorder.submit("alice", f"--dependency=afterok:{failed}")
    recorder.submit("alice", "--begin=now+3600")
    recorder.submit("bob", "-N3", "-n12", "--exclusive", "-J", "large")
    time.sleep(3)
    recorder.record("squeue", None, queue.list_queue(MARK))
    recorder.record("squeue-nothing", None, Command((*queue.list_queue(MARK).argv, "--user=root"), lambda r: r))
    recorder.record("sacct-ends", None, history.find_ends([failed, launch, killed, ran, gone, "999999"]))
    recorder.record("sacct-history", None, history.list_history(None, SINCE, MARK))
    recorder.record("show-job", None, history.describe(ran))
    recorder.record("show-job-failed", None, history.find_exit_code(failed))
    recorder.record("show-job-unknown", None, history.describe("999999"))
    recorder.record("sstat", "alice", history.measure_live(ran))
    recorder.record("sstat-other", "bob", history.measure_live(ran))
    recorder.record("sacct-usage", None, history.measure_ended(gone))
    recorder.record("show-partition", None, site.list_partitions())
    recorder.record("show-node", None, site.list_nodes())
    recorder.record("show-config", None, site.read_settings())
    settings = site.read_settings().parse(load("show-config"))
    recorder.record("sacctmgr-association", None, site.list_associations(settings["ClusterName"]))
    recorder.record("sacctmgr-user", None, site.list_default_accounts())
    recorder.record("sacctmgr-qos", None, site.list_qos())
    _record_refusals(recorder, ran, failed)
    _record_reservations(recorder, alice, bob)
    recorder.run(None, "scancel", "--user", alice)
    recorder.run(None, "scancel", "--user", bob)


def _record_refusals(recorder: Recorder, ran: str, failed: str) -> None:
    script = b"#!/bin/sh\nsleep 1\n"
    for name, options in {
        "partition": "-p nope", "account": "-A nope", "qos": "-q nope", "node": "-w nosuch", "feature": "-C gpu",
        "gres": "--gres=gpu:1", "memory": "--mem=999G", "time": "-t abc", "cores": "-c 64", "nodes": "-N 99",
        "dependency": "--dependency=afterok:x", "array": "--array=x", "reservation": "--reservation=nope",
        "begin": "--begin=foo", "tasks": "-n 0", "licence": "--licenses=foo",
    }.items():  # fmt: skip
        recorder.record(f"refused-{name}", "alice", ("sbatch", "--parsable", *options.split()), script)
    for name, text in {
        "shebang": b"echo\n",
        "crlf": b"#!/bin/sh\r\nls\r\n",
        "empty": b"",
        "nul": b"#!/bin/sh\n\0\n",
    }.items():
        recorder.record(f"refused-script-{name}", "alice", ("sbatch", "--parsable"), text)
    recorder.record("refused-cancel", "bob", control.act(ran, control.Action.CANCEL))
    recorder.record("refused-hold", "bob", control.act(ran, control.Action.HOLD))
    recorder.record("refused-hold-ended", "alice", control.act(failed, control.Action.HOLD))
    recorder.record("refused-hold-unknown", "alice", control.act("999999", control.Action.HOLD))
    recorder.record("refused-suspend", "alice", control.act(ran, control.Action.SUSPEND))
    recorder.record("refused-requeue", "bob", control.act(ran, control.Action.REQUEUE))
    recorder.record("refused-limit", "alice", control.change_limit(ran, timedelta(days=9).total_seconds()))
    recorder.record("refused-limit-ended", "alice", control.change_limit(failed, 600))


def _record_reservations(recorder: Recorder, alice: str, bob: str) -> None:
    recorder.record("show-reservation-nothing", None, site.list_reservations())
    create = ("scontrol", "create", "reservation")
    hour = ("StartTime=now", "Duration=60")
    later = ("StartTime=2030-01-01T08:00", "Duration=1-00:00:00", "Flags=WEEKLY")
    recorder.run(None, *create, "ReservationName=course", *hour, f"Users={alice}", "Nodes=n1")
    recorder.run(None, *create, "ReservationName=later", *later, "Accounts=demo", "Nodes=n2", "PartitionName=short")
    recorder.run(None, *create, "ReservationName=shared", *hour, f"Groups={bob}", "Nodes=n3")
    recorder.run(None, *create, *hour, f"Users=-{bob}", "Nodes=n2")
    recorder.run(
        None, *create, "ReservationName=m ain,t", *later[:2], "Users=root", "Flags=MAINT,IGNORE_JOBS", "Nodes=ALL"
    )
    recorder.record("show-reservation", None, site.list_reservations())
    recorder.record(
        "refused-reservation-access", "bob", ("sbatch", "--parsable", "--reservation=course"), b"#!/bin/sh\nsleep 1\n"
    )


if __name__ == "__main__":
    record(*sys.argv[1:4])
