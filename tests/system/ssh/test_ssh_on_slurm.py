"""SSH into sessions on compute nodes: by the front door and through the relay, with OpenSSH's own client."""

from __future__ import annotations

import contextlib
import filecmp
import os
import pwd
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from running import RunningPortico, find_free_ports, wait_until
from slurm_site import Site, make_site
from ssh_person import SshPerson, run

from portico.demo import DemoCluster

pytestmark = [pytest.mark.system, pytest.mark.timeout(120)]


@dataclass
class Way:
    """A session of alice's on a node, and who would like to get in."""

    site: Site
    alice: SshPerson
    bob: SshPerson
    session_id: str
    node: str

    def popen(self, *command: str) -> subprocess.Popen[str]:
        """Start a command in the session, which has said "in" when this returns."""
        argv = self.alice.session(self.session_id, *command)
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        if (said := process.stdout.readline()) != "in\n":
            process.kill()
            raise AssertionError(f"{command}: {said!r}")
        return process


@pytest.fixture(scope="module")
def people(
    portico_factory: Callable[..., RunningPortico], slurm: DemoCluster
) -> Iterator[tuple[Site, SshPerson, SshPerson]]:
    port, *_ = find_free_ports()
    site = make_site(portico_factory, slurm, ssh_port=port)
    alice, bob = (SshPerson(site.house, name, port) for name in ("alice", "bob"))
    for person in (alice, bob):
        person.add_key()
    yield site, alice, bob
    site.cancel_jobs()
    for person in (alice, bob):
        person.close()


@pytest.fixture
def way(people: tuple[Site, SshPerson, SshPerson]) -> Iterator[Way]:
    site, alice, bob = people
    session = site.start_ready()
    yield Way(site, alice, bob, session["id"], session["node_name"])
    site.stop_all()


def test_it_is_the_node_and_the_job(way: Way) -> None:
    done = run(way.alice.session(way.session_id, "hostname; id -un; echo $SLURM_JOB_ID $PORTICO_SESSION; exit 7"))
    job = way.site.list_jobs(way.session_id)[0]
    assert done.stdout.split() == [way.node, way.alice.name, job, way.session_id], done
    assert done.returncode == 7
    # Which app it is will do, as long as there is one of it.
    assert run(way.alice.session("terminal", "hostname")).stdout.split() == [way.node]


def test_what_runs_there_ends_with_the_job(way: Way) -> None:
    with way.popen("echo in; sleep 98765"), way.popen("-tt", "stty -opost; echo in; sleep 98764") as second:
        assert len(find_pids(way.alice.name, b"9876")) >= 2
        way.site.slurm.run("scancel", way.site.list_jobs(way.session_id)[0])
        second.wait(60)
    wait_until(lambda: not find_pids(way.alice.name, b"9876"), 20, "the end of what ran in the job")
    wait_until(lambda: not find_pids(way.alice.name, b"ssh/connect"), 20, "the end of its way in")
    way.site.alice.wait(way.session_id, "ended", 60)
    done = run(way.alice.session(way.session_id, "hostname"))
    assert done.returncode == 255 and "does not run" in done.stderr, done


def test_files_go_both_ways(way: Way, tmp_path: Path) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    there.write_bytes(os.urandom(5_000_000))
    copy = way.alice.session(way.session_id, program="scp")
    target = way.alice.name_in(way.session_id, "copied")
    assert run([*copy, str(there), target]).returncode == 0
    shown = run(way.alice.session(way.session_id, "stat -c %s copied")).stdout
    assert shown.strip() == "5000000"
    assert run([*copy, target, str(back)]).returncode == 0
    assert filecmp.cmp(there, back, shallow=False)
    # Bytes that nobody splits into files: all of them, in order, and the end of them.
    with there.open("rb") as file:
        done = run(way.alice.session(way.session_id, "sha256sum"), stdin=file)
    assert done.stdout.split()[0] == run(["sha256sum", str(there)]).stdout.split()[0]


def test_a_port_of_the_node_is_forwarded(way: Way) -> None:
    local, remote, _ = find_free_ports()
    serve = f"import socket; s = socket.create_server(('127.0.0.1', {remote})); print('in', flush=True); " \
            "c, _ = s.accept(); c.sendall(socket.gethostname().encode()); c.close()"  # fmt: skip
    with way.popen(f'/usr/bin/python3 -c "{serve}"'):
        with pytest.raises(ConnectionRefusedError):  # it is the node's, not this machine's
            socket.create_connection(("127.0.0.1", remote))
        options = ("-N", "-L", f"{local}:127.0.0.1:{remote}")
        with subprocess.Popen(way.alice.session(way.session_id, options=options)) as forward:
            try:
                said = wait_until(lambda: read_all(local), 20, "an answer through the forwarded port")
            finally:
                forward.terminate()
    assert said == way.node.encode()


def test_nobody_else_gets_in(way: Way) -> None:
    done = run(way.bob.session(way.session_id, "hostname"))
    assert done.returncode == 255 and "no session" in done.stderr and not done.stdout, done
    # With a session of his own for a way in, he still is not alice there.
    own = way.site.start(who=way.site.bob)
    way.site.bob.wait(own)
    argv = way.bob.session(own, "id -un")
    assert run(argv).stdout.split() == [way.bob.name]
    asked = [word.replace(f"{way.bob.name}@{own}", f"{way.alice.name}@{own}") for word in argv]
    done = run(asked)
    assert done.returncode == 255 and not done.stdout, done
    # On the node, what alice's sshd is given is hers to read.
    assert run(way.alice.session(way.session_id, "true")).returncode == 0
    found = run(way.alice.session(way.session_id, "cd $(dirname $PORTICO_SOCKET)/ssh; pwd; stat -c '%a %U' . *")).stdout
    folder, *modes = found.splitlines()
    assert set(modes) == {f"700 {way.alice.name}", f"600 {way.alice.name}"}, modes
    done = run(way.bob.session(own, f"ls {folder}; cat {folder}/host_key"))
    assert done.returncode != 0 and not done.stdout, done


def test_a_relay_that_dies_is_there_again(way: Way) -> None:
    with way.popen("echo in; cat") as process:
        (carrier,) = find_pids(way.alice.name, b"\0carry")
        before = find_pids(way.alice.name, b"sshd")
        os.kill(carrier, signal.SIGKILL)
        began = time.monotonic()
        assert process.wait(20) == 255
        assert time.monotonic() - began < 5
    wait_until(lambda: not find_pids(way.alice.name, b"ssh/connect"), 20, "the end of its way in")
    # What it had started has nobody left to talk to.
    wait_until(lambda: not set(before) & set(find_pids(way.alice.name, b"sshd")), 20, "the end of its sshd")
    done = wait_until(
        lambda: (tried := run(way.alice.session(way.session_id, "hostname"))).returncode == 0 and tried, 20, "a new way"
    )
    assert done.stdout.split() == [way.node]
    assert len(way.site.list_jobs(way.session_id)) == 1


def find_pids(user_name: str, word: bytes) -> list[int]:
    """Return the pids of a user's processes with a word in their command line."""
    uid, found = pwd.getpwnam(user_name).pw_uid, []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if process.stat().st_uid == uid and word in (process / "cmdline").read_bytes():
                found.append(int(process.name))
    return found


def read_all(port: int) -> bytes:
    """Return all that somebody says at a port; nothing where nobody listens."""
    said = b""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as sock:
        while data := sock.recv(1000):
            said += data
    return said
