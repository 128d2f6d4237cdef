"""The same clients into a session on a compute node, which listens on nothing: through the relay."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rfb import RfbClient
from running import RunningPortico, find_free_ports
from slurm_site import Site
from ssh_client import (
    STRICT,
    Client,
    list_processes,
    outer_display,
    set_up,
    start_open,
    wait_for_nothing_left,
)

from portico.demo import DemoCluster

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def site(portico_factory: Callable[..., RunningPortico], slurm: DemoCluster) -> Site:
    """Return a Portico with an sshd and a cluster; alice may submit jobs there."""
    table = f'[clusters.demo]\ntitle = "Demo cluster"\nconf = "{slurm.conf}"\nrelay_host = "{slurm.host_address}"'
    house = portico_factory({"ssh_port": find_free_ports()[0]}, tables=table)
    alice = house.user("alice")
    alice.http.post("/api/v1/sessions", json={"app_id": "terminal", "cluster": "demo"})  # makes the POSIX account
    slurm.add_user(house.get_name("alice"))
    time.sleep(5.5)  # who has no account is asked for again after so long
    return Site(house, slurm, alice, alice)


def test_ssh_copies_and_a_viewers_tunnel_reach_a_node(site: Site) -> None:
    name = site.house.get_name("alice")
    desktop = site.start("desktop-light")
    session = site.alice.wait(desktop, timeout_s=120)
    try:
        alice = Client(site.house, name)
        set_up(alice)
        target = f"{desktop}.portico"
        told = alice.run("ssh", *STRICT, target, "hostname; id -un; echo $SLURM_JOB_ID").stdout.split()
        assert told[:2] == [session["node_name"], name]
        assert told[2] in site.list_jobs(desktop)
        data = alice.home / "data"
        alice.run("tee", str(data), input="on the way\n", stdin=None)
        alice.run("scp", "-q", *STRICT, str(data), f"{target}:/tmp/{desktop}")
        assert alice.run("ssh", *STRICT, target, f"cat /tmp/{desktop}; rm /tmp/{desktop}").stdout == "on the way\n"

        port = find_free_ports()[0]
        opened = start_open(site.house, alice, desktop, "--tunnel", "--port", str(port))
        try:
            assert opened.stdout is not None
            opened.stdout.readline()
            assert f"localhost::{port}" in opened.stdout.readline()
            with socket.create_connection(("localhost", port), 10) as sock:
                RfbClient(sock).wait(lambda client: client.count_colours() > 1, 30)
            opened.send_signal(signal.SIGINT)
            opened.wait(20)
        finally:
            opened.kill()
            print(opened.communicate()[0])
        wait_for_nothing_left(alice)

        scratch = Path(tempfile.mkdtemp(prefix="pt-", dir="/tmp"))
        os.chown(scratch, alice.uid, -1)
        with outer_display(alice, scratch) as (display, eyes):
            opened = start_open(site.house, alice, desktop, "--password", "--view-only", DISPLAY=display)
            try:
                eyes.wait(lambda client: client.count_colours() > 20, 60)
                (viewer,) = list_processes(alice, "xtigervncviewer")
                os.kill(viewer, signal.SIGTERM)
                opened.wait(20)
            finally:
                opened.kill()
                print(opened.communicate()[0])
        wait_for_nothing_left(alice)
        shutil.rmtree(scratch)
        door = alice.run("ssh", *STRICT, target, "stat -c %a $PORTICO_SOCKET.password; pgrep -fc vnc_door.py").stdout
        assert door.split() == ["600", "1"], "on the node, inside the job"
    finally:
        site.slurm.run("scancel", "--user", name, check=False)
        site.alice.http.post(f"/api/v1/sessions/{desktop}/stop")
        site.alice.wait(desktop, "ended", 60)
