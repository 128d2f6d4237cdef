"""The portal of the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from event_rig import EventWorld


@pytest.fixture
def world(tmp_path: Path) -> Iterator[EventWorld]:
    world = EventWorld(tmp_path)
    yield world
    world.close()
