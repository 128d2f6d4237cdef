"""The demo cluster's folder: ``down`` removes all of it, so ``up`` takes none that it has not made."""

from __future__ import annotations

import os
import secrets
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cluster import BASE, find_reason_to_skip

from portico.demo import DemoCluster
from portico.demo.network import NAMESPACES
from portico.errors import Conflict


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
