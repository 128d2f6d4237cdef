"""Fixtures that several rings share: a whole Portico, started for real, and its traceless end."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from typing import Any

import cluster
import pytest
from running import RunningPortico, find_reason_to_skip

from portico.demo import DemoCluster


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the rings in order, and skip, with a reason, what needs root where there is none.

    The browser's ring is last because Playwright leaves an event loop running in its process, in which no test with
    one of its own could run after it.
    """
    rings = ["fast", "system", "browser"]
    items.sort(key=lambda item: next((i for i, ring in enumerate(rings) if f"/tests/{ring}/" in str(item.path)), 0))
    if os.geteuid() == 0:
        return
    for item in items:
        if item.get_closest_marker("system") or item.get_closest_marker("browser"):
            item.add_marker(pytest.mark.skip(reason="needs root: real POSIX users"))


@pytest.fixture(scope="session")
def portico_factory() -> Iterator[Callable[..., RunningPortico]]:
    """Return a function that starts a Portico: ``portico_factory(settings={...}, options=(...))``."""
    if reason := find_reason_to_skip():
        pytest.skip(reason)
    made: list[RunningPortico] = []

    def start(
        settings: dict[str, Any] | None = None, options: tuple[str, ...] = (), tables: str = ""
    ) -> RunningPortico:
        running = RunningPortico(settings, options, tables)
        made.append(running)
        running.start()
        return running

    yield start
    for running in made:
        running.destroy()


@pytest.fixture(scope="session")
def portico(portico_factory: Callable[..., RunningPortico]) -> RunningPortico:
    """Return the Portico that the tests of one worker share. A test that stops it starts it again."""
    return portico_factory()


@pytest.fixture(scope="session")
def slurm() -> Iterator[DemoCluster]:
    """Return a real Slurm that the tests of one worker share. A test that stops a part of it starts that again."""
    if reason := cluster.find_reason_to_skip():
        pytest.skip(reason)
    with cluster.running_cluster() as running:
        yield running


@pytest.fixture(scope="module", autouse=True)
def no_leak_is_blamed_on_others() -> Iterator[None]:
    """Collect what a module left open while it is still this module's: a warning at its teardown, not in a later test."""
    yield
    gc.collect()
