"""Sessions whose jobs Slurm ends and begins again: preempted, put back by hand, on a node that died."""

from __future__ import annotations

import json
import pwd
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from running import RunningPortico, wait_until
from slurm_site import Site, make_site

from portico.demo import DemoCluster

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]
SPARE = {"partition": "spare"}


@pytest.fixture(scope="module")
def lasting_site(portico_factory: Callable[..., RunningPortico], slurm: DemoCluster) -> Iterator[Site]:
    """A cluster whose sessions may begin again."""
    made = make_site(portico_factory, slurm, "requeue = true")
    yield made
    made.cancel_jobs()


@pytest.fixture
def lasting(lasting_site: Site) -> Iterator[Site]:
    yield lasting_site
    lasting_site.alice.close_streams()
    lasting_site.stop_all()


@contextmanager
def all_nodes_needed(site: Site) -> Iterator[None]:
    """Have a job of bob's in a partition of higher priority need every node."""
    job = site.submit_as("bob", b"big", "--partition=batch", "--nodes=3", "--exclusive")
    try:
        yield
    finally:
        site.slurm.run("scancel", job)


def wait_for_restart(site: Site, session_id: str, timeout_s: float = 60) -> dict[str, Any]:
    """Return the session once it is told that it was put back."""

    def find() -> dict[str, Any] | None:
        found: dict[str, Any] = site.alice.get(session_id)
        assert found["state"] != "ended", found
        return found if found["restarts"] else None

    try:
        found: dict[str, Any] = wait_until(find, timeout_s, "that it was put back")
    except TimeoutError as error:
        seen = site.alice.get(session_id), site.slurm.run("squeue", "-a", "-o", "%A|%T|%r|%V|%P|%k")
        raise AssertionError(f"{seen}") from error
    return found


def read_notices(site: Site, session_id: str) -> str:
    return " ".join(n["text"] for n in site.alice.http.get("/api/v1/notices").json() if session_id in n["path"])


def test_a_preempted_session_says_so_and_begins_again(lasting: Site) -> None:
    session = lasting.start_ready(placement=SPARE)
    key, job = session["id"], lasting.list_jobs(session["id"])[0]
    terminal = lasting.open_terminal(key)
    terminal.type("there=still; echo a-$there\n")
    terminal.wait(lambda text: "a-still" in text)
    with all_nodes_needed(lasting):
        again = wait_for_restart(lasting, key)
        assert again["state"] == "queued" and not again["node_name"] and not again["ends"], again
        assert again["put_back"] == "its node was needed for work of higher priority"
        page = lasting.alice.http.get(f"/sessions/{key}").text
        assert "put back into the queue: its node was needed" in page and "begins again from its start" in page
        assert "put back into the queue" in read_notices(lasting, key)
        row = lasting.alice.http.get(f"/api/v1/clusters/demo/jobs/{job}").json()
        assert row["state"] == "queued" and row["waiting_for"], row
    ready = lasting.alice.wait(key, timeout_s=150)
    assert ready["node_name"] in lasting.slurm.nodes and ready["restarts"] == 1
    wait_until(lambda: lasting.alice.get(key)["ends"], 20, "its new end")
    terminal = lasting.open_terminal(key)  # a new one: what was in the old one's memory is gone
    terminal.type("echo b-$there-$SLURM_RESTART_COUNT\n")
    terminal.wait(lambda text: "b--1" in text)
    assert lasting.list_jobs(key) == [job]
    assert "is ready again" in read_notices(lasting, key)


@pytest.mark.parametrize("mode", ["REQUEUE", "CANCEL"])
def test_a_session_that_may_not_begin_again_ends_and_says_why(site: Site, mode: str) -> None:
    site.slurm.run("scontrol", "update", "PartitionName=spare", f"PreemptMode={mode}")
    try:
        session = site.start_ready(placement=SPARE)
        with all_nodes_needed(site):
            told = site.alice.wait(session["id"], "ended", 90)
        assert told["reason"] == "preempted" and "higher priority" in told["ended_because"], told
        assert "higher priority" in site.alice.http.get(f"/sessions/{session['id']}").text
    finally:
        site.slurm.run("scontrol", "update", "PartitionName=spare", "PreemptMode=REQUEUE")


def test_put_back_from_outside_also_while_portico_is_away(lasting: Site) -> None:
    session = lasting.start_ready()
    key, job = session["id"], lasting.list_jobs(session["id"])[0]
    lasting.slurm.run("scontrol", "requeue", job)
    again = wait_for_restart(lasting, key)
    assert "not through Portico" in again["put_back"], again
    lasting.alice.wait(key, timeout_s=150)
    lasting.house.stop()
    lasting.slurm.run("scontrol", "requeue", job)

    def runs_again() -> bool:
        told = lasting.slurm.run("scontrol", "show", "job", job)
        return "Restarts=2" in told and "JobState=RUNNING" in told

    wait_until(runs_again, 150, "its third run")
    lasting.house.start()
    wait_until(lambda: lasting.alice.get(key)["restarts"] == 2, 60, "that it is known")
    lasting.alice.wait(key, timeout_s=60)
    terminal = lasting.open_terminal(key)
    terminal.type("echo run-$SLURM_RESTART_COUNT\n")
    terminal.wait(lambda text: "run-2" in text)
    assert lasting.list_jobs(key) == [job]
    lasting.slurm.run("scontrol", "requeuehold", job)
    wait_until(lambda: lasting.alice.get(key)["restarts"] == 3, 60, "its third return")
    held = wait_until(lambda: (s := lasting.alice.get(key))["state"] == "queued" and s, 30, "that it waits")
    assert "release" in held["waiting_for"], held
    lasting.alice.http.post(f"/api/v1/sessions/{key}/stop")
    assert lasting.alice.wait(key, "ended", 60)["reason"] == "stopped"


def test_a_node_dies_and_its_session_begins_again_elsewhere(lasting: Site) -> None:
    session = lasting.start_ready()
    key, node = session["id"], session["node_name"]
    lasting.slurm.kill_node(node)
    try:
        again = wait_for_restart(lasting, key, 120)
        assert again["put_back"] == "the node on which it ran failed", again
        ready = lasting.alice.wait(key, timeout_s=150)
        assert ready["node_name"] in set(lasting.slurm.nodes) - {node}, ready
        # A node that was given up and comes back with its relay has a good secret, but no session any more.
        home = Path(pwd.getpwnam(lasting.house.get_name("alice")).pw_dir)
        settings = json.loads((home / ".local/share/portico/sessions" / key / "relay.json").read_text())
        hello = {"hello": 1, "session": key, "token": settings["token"], "node": node, "run": 0}
        said = subprocess.run(
            ["/usr/bin/python3", "-I", "-c", DIAL, json.dumps(settings), json.dumps(hello)],
            capture_output=True, text=True, timeout=30, check=True,
        ).stdout  # fmt: skip
        assert re.search("refused.*no such session", said), said
        terminal = lasting.open_terminal(key)
        terminal.type("hostname\n")
        terminal.wait(lambda text: ready["node_name"] in text)
    finally:
        lasting.slurm.start_node(node)


DIAL = """
import json, socket, ssl, sys
settings, hello = (json.loads(text) for text in sys.argv[1:])
context = ssl.create_default_context(cadata=settings["certificate"])
context.check_hostname = False
sock = context.wrap_socket(socket.create_connection(tuple(settings["hosts"][0])))
sock.sendall(json.dumps(hello).encode() + b"\\n")
print(sock.recv(4096).decode())
"""
