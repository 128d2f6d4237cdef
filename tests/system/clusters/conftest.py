"""The site that tests of one worker share."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from containers import IMAGES
from running import RunningPortico
from slurm_site import Site, make_site

from portico.demo import DemoCluster


@pytest.fixture(scope="session")
def whole_site(portico_factory: Callable[..., RunningPortico], slurm: DemoCluster) -> Iterator[Site]:
    made = make_site(portico_factory, slurm, image_dirs=[str(IMAGES)])
    yield made
    made.cancel_jobs()


@pytest.fixture
def site(whole_site: Site) -> Iterator[Site]:
    yield whole_site
    whole_site.alice.close_streams()
    whole_site.stop_all()
