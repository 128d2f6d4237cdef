"""A cluster that is named, changed and taken out again while Portico runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from running import RunningPortico
from slurm_site import Site

from portico.demo import DemoCluster

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def test_a_cluster_comes_changes_and_goes(portico_factory: Callable[..., RunningPortico], slurm: DemoCluster) -> None:
    house = portico_factory()
    alice, bob = house.user("alice"), house.user("bob")
    alice.wait(alice.start("terminal")["id"])  # her POSIX account is there
    slurm.add_user(house.get_name("alice"))
    site = Site(house, slurm, alice, bob)
    before, without = house.pids, house.config.read_text()
    assert "rendezvous" not in before

    def name_cluster(title: str) -> None:
        table = f'[clusters.demo]\ntitle = "{title}"\nconf = "{slurm.conf}"\nrelay_host = "{slurm.host_address}"\n'
        house.config.write_text(f"{without}\n{table}")
        told = house.cli("reload").stderr
        assert "Only a new start" not in told

    try:
        name_cluster("First title")
        assert "First title" in alice.http.get("/apps/terminal").text
        session = site.start_ready()
        terminal = site.open_terminal(session["id"])
        terminal.type("there=still\n")
        rendezvous = house.pids["rendezvous"]
        name_cluster("Second title")
        assert "Second title" in alice.http.get("/apps/terminal").text
        terminal.type("echo on-$there\n")  # the very same stream
        terminal.wait(lambda text: "on-still" in text)
        assert house.pids["rendezvous"] == rendezvous and house.pids["supervisor"] == before["supervisor"]
        house.config.write_text(without)
        house.cli("reload")
        assert "Second title" not in alice.http.get("/apps/terminal").text
        answer = alice.http.post(f"/api/v1/sessions/{session['id']}/stop")
        assert answer.status_code >= 400 and "not there any more" in answer.text
        name_cluster("Third title")  # what ran on it meanwhile is there again
        site.open_terminal(session["id"]).type("true\n")
        site.stop_all()
    finally:
        slurm.run("scancel", "--user", house.get_name("alice"), check=False)
