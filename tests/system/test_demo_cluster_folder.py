"""The demo cluster's folder: ``down`` removes all of it, so ``up`` takes none that it has not made."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from cluster import find_reason_to_skip

from portico.demo import DemoCluster
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
