"""Sessions inside Slurm jobs on compute nodes: a whole Portico, a real Slurm, real apps, and what goes wrong."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from running import wait_for_exit, wait_until
from slurm_site import Site
from websockets.exceptions import InvalidStatus

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def test_a_terminal_on_a_node_outlives_everything(site: Site) -> None:
    session = site.start_ready()
    assert session["node_name"] in site.slurm.nodes and session["cluster"] == "demo"
    terminal = site.open_terminal(session["id"])
    terminal.type("hostname; id -un; there=still\n")
    shown = terminal.wait(lambda text: site.house.get_name("alice") in text.split("id -un")[-1])
    assert session["node_name"] in shown
    site.alice.close_streams()
    site.house.kill()
    site.house.start()
    terminal = site.open_terminal(session["id"])
    terminal.type("echo $there-here\n")
    terminal.wait(lambda text: "still-here" in text)
    # One process after the other: the one where relays dial in, the gateway, the portal, and the relay itself.
    for process in ("rendezvous", "gateway", "portal"):
        site.alice.close_streams()
        pid = site.house.pids[process]
        os.kill(pid, signal.SIGKILL)
        wait_for_exit(pid, 10)
        wait_until(lambda name=process: site.house.pids.get(name), 20, f"a new {process}")
        wait_until(lambda: site.alice.http.get("/api/v1/health").status_code == 200, 20, "an answer")
        terminal = site.open_terminal(session["id"])
        terminal.type(f"echo {process}-$there\n")
        terminal.wait(lambda text, name=process: f"{name}-still" in text)
    site.alice.close_streams()
    for pid in find_processes(site.house.get_name("alice"), b"carry"):
        os.kill(pid, signal.SIGKILL)
    terminal = site.open_terminal(session["id"])
    terminal.type("echo relay-$there\n")
    terminal.wait(lambda text: "relay-still" in text)
    assert len(site.list_jobs(session["id"])) == 1


def test_a_desktop_and_a_notebook_on_a_node(site: Site) -> None:
    desktop, lab = site.start("desktop-light"), site.start("jupyter", memory_gb=1)
    session = site.alice.wait(desktop, timeout_s=90)
    client, _ = site.alice.open_desktop(f"/sessions/{desktop}/stream")
    client.request(incremental=False)
    client.wait(lambda one: one.count_colours() > 1, 30)
    session = site.alice.wait(lab, timeout_s=90)
    assert session["node_name"] in site.slurm.nodes
    page = site.alice.http.post(f"/sessions/{lab}/connect").text
    ticket = re.search(r'name="ticket" value="([^"]+)"', page)
    assert ticket
    apps = site.house.url.replace(str(site.house.port), str(site.house.apps_port))
    with httpx.Client(base_url=apps, follow_redirects=True, timeout=30) as browser:
        browser.post("/_portico/enter", data={"ticket": ticket[1]}, headers={"Origin": site.house.url})
        status = browser.get(f"/s/{lab}/api/status")
        assert status.status_code == 200 and "kernels" in status.json(), status.text
        # Pages of some MB come whole.
        page = browser.get(f"/s/{lab}/lab").text
        scripts = re.findall(r'src="(/s/[^"]+\.js[^"]*)"', page)
        assert scripts and all(len(browser.get(path).content) > 1000 for path in scripts)


def test_nobody_else_gets_in(site: Site) -> None:
    session = site.start_ready()
    key, node = session["id"], session["node_name"]
    for path in (f"/sessions/{key}/stream", f"/shared/{key}/stream"):
        with pytest.raises(InvalidStatus):
            site.bob.open_stream(path)
    assert site.bob.http.get(f"/api/v1/sessions/{key}").status_code == 404
    # On the node itself: nothing of alice's listens on TCP, and her socket's folder is hers.
    bob = pwd.getpwnam(site.house.get_name("bob"))
    listening = run_on(site, node, ["ss", "-Htln"])
    assert not [line for line in listening.splitlines() if not re.search(r":(6818|68\d\d)\s", line)], listening
    folder = find_run_folder(site.house.get_name("alice"))
    tried = run_on(site, node, ["setpriv", f"--reuid={bob.pw_uid}", "--clear-groups", "ls", folder], check=False)
    assert "app.sock" not in tried
    # No secret where Slurm or /proc shows it to others; it stands in one file, which is alice's alone.
    home = Path(pwd.getpwnam(site.house.get_name("alice")).pw_dir)
    settings = home / ".local/share/portico/sessions" / key / "relay.json"
    assert settings.stat().st_mode & 0o777 == 0o600
    token = json.loads(settings.read_text())["token"]
    job = site.list_jobs(key)[0]
    seen = site.slurm.run("scontrol", "show", "job", "-dd", job) + site.slurm.run("sacct", "-j", job, "-o", "ALL", "-p")
    for pid in find_processes(site.house.get_name("alice"), b""):
        with contextlib.suppress(OSError):
            seen += Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            seen += Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
    assert "portico" in seen and token not in seen
    for log in (site.house.state_dir / "log").iterdir():
        assert token not in log.read_text(errors="replace")
    # bob dials in with alice's session and a secret of his own.
    other = site.start(who=site.bob)
    site.bob.wait(other)
    foreign = Path(bob.pw_dir) / ".local/share/portico/sessions" / other / "relay.json"
    code = FORGE.format(settings=str(foreign), session=key)
    done = subprocess.run(
        ["setpriv", f"--reuid={bob.pw_uid}", "--clear-groups", "/usr/bin/python3", "-I", "-c", code],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert "no right" in done.stdout, done


FORGE = """
import json, socket, ssl
settings = json.load(open({settings!r}))
context = ssl.create_default_context(cadata=settings["certificate"])
context.check_hostname = False
sock = context.wrap_socket(socket.create_connection(tuple(settings["hosts"][0])))
hello = dict(hello=1, session={session!r}, token=settings["token"], node="n1")
sock.sendall(json.dumps(hello).encode() + b"\\n")
print(sock.recv(4096).decode())
"""


def test_how_a_session_ends_is_told(site: Site) -> None:
    cancelled, stopped = site.start_ready(), site.start_ready()
    site.slurm.run("scancel", site.list_jobs(cancelled["id"])[0])
    told = site.alice.wait(cancelled["id"], "ended", 60)
    assert told["reason"] == "cancelled" and "not through Portico" in told["ended_because"]
    site.alice.http.post(f"/api/v1/sessions/{stopped['id']}/stop")
    assert site.alice.wait(stopped["id"], "ended", 60)["reason"] == "stopped"
    leaving = site.start_ready()
    terminal = site.open_terminal(leaving["id"])
    terminal.type("exit 3\n")
    told = site.alice.wait(leaving["id"], "ended", 60)
    assert told["reason"] == "failed" and "3" in told["ended_because"]


def test_a_node_that_dies_is_told(site: Site) -> None:
    session = site.start_ready()
    node = session["node_name"]
    site.slurm.kill_node(node)
    try:
        told = site.alice.wait(session["id"], "ended", 90)
        assert told["reason"] == "node-failed", told
    finally:
        site.slurm.start_node(node)


def test_what_can_never_run_is_said_before(site: Site) -> None:
    wanted = {"app_id": "terminal", "cluster": "demo", "cores": 64}
    answer = site.alice.http.post("/api/v1/sessions", json=wanted)
    assert answer.status_code == 422 and answer.json()["error"]["field"] == "cores", answer.text
    wanted = {"app_id": "terminal", "cluster": "demo", "placement": {"partition": "secret"}}
    answer = site.alice.http.post("/api/v1/sessions", json=wanted)
    assert answer.status_code == 422 and answer.json()["error"]["field"] == "partition"
    wanted = {"app_id": "terminal", "cluster": "nowhere"}
    assert site.alice.http.post("/api/v1/sessions", json=wanted).status_code == 422
    form = site.alice.http.get("/apps/terminal?cluster=demo").text
    assert "batch" in form and "Demo cluster" in form


def test_extend_says_who_may(site: Site) -> None:
    session = site.start_ready()
    wait_until(lambda: site.alice.get(session["id"])["ends"], 20, "a deadline")
    answer = site.alice.http.post(f"/api/v1/sessions/{session['id']}/extend")
    assert answer.status_code == 403 and "operator" in answer.text, answer.text


def test_a_controller_that_is_away_loses_nothing(site: Site) -> None:
    before = site.start_ready()
    site.slurm.stop_controller()
    try:
        key = site.start()
        wait_until(lambda: "Slurm" in site.alice.get(key)["waiting_for"], 60, "that it says what it waits for")
        terminal = site.open_terminal(before["id"])  # what runs goes on meanwhile
        terminal.type("echo on-$((40+2))\n")
        terminal.wait(lambda text: "on-42" in text)
    finally:
        site.slurm.start_controller()
    site.alice.wait(key, timeout_s=90)
    assert len(site.list_jobs(key)) == 1
    assert site.alice.get(before["id"])["state"] == "ready"


def test_a_full_home_is_told(site: Site) -> None:
    account = pwd.getpwnam(site.house.get_name("alice"))
    folder = Path(account.pw_dir) / ".local/share/portico/sessions"
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k,nr_inodes=2", "none", str(folder)], check=True)
    try:
        os.chown(folder, account.pw_uid, account.pw_gid)
        answer = site.alice.http.post("/api/v1/sessions", json={"app_id": "terminal", "cluster": "demo"})
        assert answer.status_code == 503 and "full" in answer.text, answer.text
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_lost_database_and_spool_lose_no_session(site: Site) -> None:
    session = site.start_ready()
    site.house.stop()
    shutil.rmtree(site.house.state_dir / "clusters")
    (site.house.state_dir / "clusters").mkdir()
    os.chown(site.house.state_dir / "clusters", pwd.getpwnam("portico").pw_uid, -1)
    with contextlib.closing(connect(site.house.state_dir / "portico.db")) as database:
        database.execute("DELETE FROM sessions")
        database.commit()
    site.house.start()
    found = wait_until(
        lambda: [s for s in site.alice.http.get("/api/v1/sessions").json() if s["id"] == session["id"]], 60, "it"
    )[0]
    assert found["cluster"] == "demo"
    site.alice.wait(session["id"], timeout_s=60)
    terminal = site.open_terminal(session["id"])
    terminal.type("hostname\n")
    terminal.wait(lambda text: text.count(session["node_name"]) >= 2)


def connect(path: Path) -> Any:
    import sqlite3

    return sqlite3.connect(path)


def find_processes(user_name: str, word: bytes) -> list[int]:
    """Return the pids of a user's processes with a word in their command line."""
    uid, found = pwd.getpwnam(user_name).pw_uid, []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if process.stat().st_uid == uid and word in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


def find_run_folder(user_name: str) -> str:
    """Return the folder of an app's socket, as the relay has made it."""
    for pid in find_processes(user_name, b"carry"):
        for variable in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if variable.startswith(b"PORTICO_SOCKET="):
                return str(Path(variable.partition(b"=")[2].decode()).parent)
    raise LookupError("no relay runs")


def run_on(site: Site, node: str, argv: list[str], check: bool = True) -> str:
    """Run something in a node's network namespace, as root."""
    done = subprocess.run(
        ["nsenter", f"--net={site.slurm.network.get_namespace(node)}", *argv],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert not check or done.returncode == 0, done
    return done.stdout + done.stderr
