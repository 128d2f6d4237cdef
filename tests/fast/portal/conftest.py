"""The portal of the tests of this folder."""

from __future__ import annotations

import pwd
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from portal_rig import UIDS, World


def find_user(uid: int) -> SimpleNamespace | pwd.struct_passwd:
    """Return the account of a uid: these tests', or the machine's."""
    return SimpleNamespace(pw_name=UIDS[uid]) if uid in UIDS else pwd.getpwuid(uid)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Return the portal that the tests of one worker share; each makes what it needs in it."""
    with pytest.MonkeyPatch.context() as patch:
        # The name in that module alone: the real pwd is other tests' too, and this lives as long as the worker.
        patch.setattr("portico.accounts.accounts.pwd", SimpleNamespace(getpwuid=find_user))
        world = World(tmp_path_factory.mktemp("world"))
        yield world
        world.close()


@pytest.fixture
def own_world(tmp_path: Path) -> Iterator[World]:
    """Return a portal of the test's own."""
    world = World(tmp_path)
    yield world
    world.close()
