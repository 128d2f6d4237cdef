"""The portal of the tests of this folder."""

from __future__ import annotations

import pwd
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from portal_rig import UIDS, World


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Return the portal that the tests of one worker share; each makes what it needs in it."""
    with pytest.MonkeyPatch.context() as patch:
        real = pwd.getpwuid
        patch.setattr(
            "portico.accounts.accounts.pwd.getpwuid",
            lambda uid: SimpleNamespace(pw_name=UIDS[uid]) if uid in UIDS else real(uid),
        )
        world = World(tmp_path_factory.mktemp("world"))
        yield world
        world.close()


@pytest.fixture
def own_world(tmp_path: Path) -> Iterator[World]:
    """Return a portal of the test's own."""
    world = World(tmp_path)
    yield world
    world.close()
