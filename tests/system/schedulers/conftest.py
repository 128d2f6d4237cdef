"""The places in which schedulers are tested; each module has its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from brokered import find_reason_to_skip
from scheduler_places import LocalBatchPlace, LocalPlace, Place, SlurmPlace


@pytest.fixture(scope="module")
def slurm_place(request: pytest.FixtureRequest) -> Iterator[SlurmPlace]:
    """Return a place on a real Slurm."""
    if reason := find_reason_to_skip():
        pytest.skip(reason)
    place = SlurmPlace(request.getfixturevalue("slurm"))
    yield place
    place.destroy()


@pytest.fixture(scope="module", params=["local", "local-batch", "slurm"])
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Return a place of each kind, one after the other."""
    if reason := find_reason_to_skip():
        pytest.skip(reason)
    if request.param == "slurm":
        yield request.getfixturevalue("slurm_place")
        return
    place = LocalBatchPlace() if request.param == "local-batch" else LocalPlace()
    yield place
    place.destroy()
