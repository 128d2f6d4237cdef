"""A Slurm cluster for tests: that of ``portico cluster demo``, one for each worker, with a traceless end."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from portico.demo import DemoCluster
from portico.demo.cluster import PATH, PROGRAMS

BASE = Path("/var/lib")


def find_reason_to_skip() -> str:
    """Return why no Slurm can be started here; empty where it can."""
    if os.geteuid() != 0:
        return "needs root: namespaces"
    if missing := [name for name in PROGRAMS if not shutil.which(name, path=PATH)]:
        return f"not installed: {', '.join(missing)}; run ./portico test"
    return ""


@contextlib.contextmanager
def running_cluster(nodes: int = 3, elastic: int = 3) -> Iterator[DemoCluster]:
    """Run a cluster of its own; remove those of test runs that were killed."""
    for folder in BASE.glob("pts-*"):
        owner = folder.name.split("-")[1]
        if not Path(f"/proc/{owner}").exists():
            DemoCluster(folder).down()
    suffix = secrets.token_hex(2)
    cluster = DemoCluster(BASE / f"pts-{os.getpid()}-{suffix}", prefix=f"t{suffix}", nodes=nodes, elastic=elastic)
    cluster.up()
    try:
        yield cluster
    finally:
        cluster.down()
