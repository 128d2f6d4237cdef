"""The demo cluster itself: nothing of others is touched, nothing of it is left, whatever became of it."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cluster import BASE, find_reason_to_skip
from running import wait_until

import portico
from portico.demo import DemoCluster
from portico.demo.cluster import PATH
from portico.demo.network import NAMESPACES
from portico.errors import Conflict

SOURCE = str(Path(portico.__file__).parents[1])


@pytest.mark.parametrize("filled", [True, False])
def test_a_folder_that_is_there_is_refused_and_kept(filled: bool) -> None:
    if reason := find_reason_to_skip():
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="pt-", dir="/tmp") as name:
        folder = Path(name)
        if filled:
            (folder / "thesis.tex").write_text("years of work")
        with pytest.raises(Conflict, match="no demo cluster"):
            DemoCluster(folder, prefix="tx").up()
        assert [path.name for path in folder.iterdir()] == (["thesis.tex"] if filled else [])


def test_two_that_start_at_once_are_apart_and_leave_nothing() -> None:
    if reason := find_reason_to_skip():
        pytest.skip(reason)
    suffix = secrets.token_hex(2)
    clusters = [
        DemoCluster(BASE / f"pts-{os.getpid()}-{suffix}{letter}", prefix=f"t{suffix}{letter}", nodes=1, elastic=0)
        for letter in "ab"
    ]
    with ThreadPoolExecutor() as pool:
        try:
            list(pool.map(lambda cluster: cluster.up(), clusters))
            assert len({cluster.host_address for cluster in clusters}) == 2
            assert [cluster.describe()["state"] for cluster in clusters] == ["up", "up"]
        finally:
            list(pool.map(lambda cluster: cluster.down(), clusters))
    assert not [cluster.folder for cluster in clusters if cluster.folder.exists()]
    assert not list(NAMESPACES.glob(f"t{suffix}*"))


@pytest.fixture
def folder() -> Iterator[Path]:
    if reason := find_reason_to_skip():
        pytest.skip(reason)
    path = BASE / f"pts-{os.getpid()}-{secrets.token_hex(2)}"
    yield path
    DemoCluster(path).down()


def find_traces(folder: Path) -> list[str]:
    """Return what is left of the cluster in a folder: its processes, namespaces, links, mounts."""
    prefix = f"t{folder.name.rpartition('-')[2]}"
    found = [str(path) for path in (folder, *NAMESPACES.glob(f"{prefix}-*")) if path.exists()]
    found += [name for name in os.listdir("/sys/class/net") if name.startswith(f"{prefix}-")]
    found += [line for line in Path("/proc/mounts").read_text().splitlines() if str(folder) in line]
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"SLURM_CONF={folder}/".encode() in (process / "environ").read_bytes():
                found.append((process / "cmdline").read_text())
    return found


@pytest.mark.parametrize("step", ["munge", "database", "accounting", "nodes"])
def test_down_finds_what_a_killed_up_has_begun(folder: Path, step: str) -> None:
    program = (
        "import sys; from pathlib import Path; from portico.demo import DemoCluster\n"
        "tell = lambda line: print(line, flush=True)\n"
        "DemoCluster(Path(sys.argv[1]), prefix=sys.argv[2], nodes=1, elastic=1, tell=tell).up()"
    )
    argv = [sys.executable, "-c", program, str(folder), f"t{folder.name.rpartition('-')[2]}"]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": SOURCE}) as up:
        assert up.stdout
        assert any(line.strip() == step for line in up.stdout)
        if step == "database":  # in the middle of what makes it, which has children of its own
            wait_until(lambda: list((folder / "mysql").glob("*")), 20, "the first file of the database")
        up.kill()
    DemoCluster(folder).down()
    assert find_traces(folder) == []


def test_nodes_of_its_own_and_down_after_everything_was_killed(folder: Path) -> None:
    cluster = DemoCluster(folder, prefix=f"t{folder.name.rpartition('-')[2]}", nodes=2, elastic=1)
    cluster.up()
    with pytest.raises(Conflict, match="already"):
        DemoCluster(folder).up()
    cluster.add_user("nobody")
    assert run_as_nobody(cluster, "--nodes=2", "hostname") == {"n1", "n2"}
    assert run_as_nobody(cluster, "--partition=elastic", "hostname") == {"n3"}
    assert run_as_nobody(cluster, "id", "-un") == {"nobody"}
    for process in json.loads((folder / "processes.json").read_text()).values():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process["pid"], signal.SIGKILL)
    wait_until(lambda: cluster.describe()["state"] == "broken", 20, "the end of what was killed")
    DemoCluster(folder).down()
    assert find_traces(folder) == []
    DemoCluster(folder).down()


def run_as_nobody(cluster: DemoCluster, *argv: str) -> set[str]:
    """Return the lines that a program says in a job of the user nobody."""
    user = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "--"]
    done = subprocess.run(
        [*user, "srun", *argv], env={"SLURM_CONF": str(cluster.conf), "PATH": PATH}, cwd="/tmp",
        capture_output=True, text=True, timeout=90, check=True,
    )  # fmt: skip
    return set(done.stdout.split())
