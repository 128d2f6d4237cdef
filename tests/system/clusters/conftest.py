"""The site that tests of one worker share."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from running import RunningPortico
from slurm_site import Site

from portico.demo import DemoCluster


@pytest.fixture(scope="session")
def whole_site(portico_factory: Callable[..., RunningPortico], slurm: DemoCluster) -> Iterator[Site]:
    table = f'[clusters.demo]\ntitle = "Demo cluster"\nconf = "{slurm.conf}"\nrelay_host = "{slurm.host_address}"'
    house = portico_factory(tables=table)
    alice, bob = house.user("alice"), house.user("bob")
    for name, person in (("alice", alice), ("bob", bob)):  # the first try makes the POSIX account
        answer = person.http.post("/api/v1/sessions", json={"app_id": "terminal", "cluster": "demo"})
        assert answer.status_code == 422 and "no account in Slurm" in answer.text
        slurm.add_user(house.get_name(name))
    time.sleep(5.5)  # who has no account is asked for again after so long
    yield Site(house, slurm, alice, bob)
    for name in ("alice", "bob"):
        slurm.run("scancel", "--user", house.get_name(name), check=False)


@pytest.fixture
def site(whole_site: Site) -> Iterator[Site]:
    yield whole_site
    whole_site.alice.close_streams()
    whole_site.stop_all()
