"""How sessions on a cluster end when something goes wrong there; each is told in a sentence."""

from __future__ import annotations

import os
import signal

import pytest
from running import wait_until
from slurm_site import Site

from portico.demo import DemoCluster

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def test_its_time_is_over(site: Site) -> None:
    session = site.start_ready()
    site.slurm.run("scontrol", "update", f"JobId={site.list_jobs(session['id'])[0]}", "TimeLimit=1")
    told = site.alice.wait(session["id"], "ended", 150)
    assert told["reason"] == "time-limit" and told["ended_because"] == "Its time was over."


def test_accounting_is_down(site: Site) -> None:
    """What ends meanwhile is told with what the controller knows, and what runs goes on."""
    slurm: DemoCluster = site.slurm
    ending, lasting = site.start_ready(), site.start_ready()
    slurm.stop_accounting()
    try:
        slurm.run("scancel", site.list_jobs(ending["id"])[0])
        told = site.alice.wait(ending["id"], "ended", 90)
        assert told["reason"] == "cancelled" and "not through Portico" in told["ended_because"]
        terminal = site.open_terminal(lasting["id"])
        terminal.type("echo on-$((40+2))\n")
        terminal.wait(lambda text: "on-42" in text)
        page = site.alice.http.get("/jobs/history?cluster=demo").text
        assert "accounting" in page
    finally:
        slurm.start_accounting()
    wait_until(lambda: site.alice.http.get("/jobs/history?cluster=demo").status_code == 200, 90, "the history")


def test_the_relay_is_killed(site: Site) -> None:
    """It is the job: without it the session has ended, and says so; its own children go with it."""
    session = site.start_ready()
    relay = [
        pid
        for pid in site.find_processes(session["id"].encode())
        if b"relay.py" in read_argv(pid) and b"carry" not in read_argv(pid)
    ]
    assert len(relay) == 1, relay
    os.kill(relay[0], signal.SIGKILL)
    told = site.alice.wait(session["id"], "ended", 90)
    assert told["reason"] in ("failed", "lost") and "KILL" in told["ended_because"], told
    wait_until(lambda: not site.find_processes(session["id"].encode()), 30, "the end of all that it started")


def read_argv(pid: int) -> bytes:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read()


def test_a_gateway_is_restarted(site: Site) -> None:
    session = site.start_ready()
    terminal = site.open_terminal(session["id"])
    terminal.type("there=still\n")
    site.house.cli("reload")  # a new gateway; the old one keeps its stream
    terminal.type("echo a-$there\n")
    terminal.wait(lambda text: "a-still" in text)
    old = site.house.pids["gateway"]
    os.kill(old, signal.SIGKILL)
    wait_until(lambda: site.house.pids.get("gateway", old) != old, 20, "a new gateway")
    again = site.open_terminal(session["id"])
    again.type("echo b-$there\n")
    again.wait(lambda text: "b-still" in text)


def test_names_that_nobody_can_read_disturb_no_session(site: Site) -> None:
    """Others' jobs with bytes that are no UTF-8, separators and line breaks: ours is followed as before."""
    for name in (b"\xff\xfe\x80", b"a|b|c|d", b"two\nlines 12|PENDING", b"portico-aaaaaaaaaaaa"):
        site.submit_as("bob", name)
    session = site.start_ready()
    page = site.alice.http.get("/jobs?cluster=demo")
    assert page.status_code == 200 and session["id"] not in site.bob.http.get("/jobs?cluster=demo").text
    wait_until(lambda: "lines" in site.bob.http.get("/jobs?cluster=demo").text, 30, "bob's job in his table")
    site.slurm.run("scancel", site.list_jobs(session["id"])[0])
    assert site.alice.wait(session["id"], "ended", 60)["reason"] == "cancelled"
