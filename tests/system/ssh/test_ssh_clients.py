"""The real clients, as people have them set up by `portico ssh config`: ssh, scp, sftp, rsync, and a VNC viewer."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from rfb import RfbClient, connect_unix
from running import RunningPortico, find_free_ports, wait_until

from portico.model import SshKey, now
from portico.ssh.authority import compute_fingerprint
from portico.store import Store

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

BLUE = 0x2060C0
STRICT = ("-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=yes")


@dataclass(frozen=True)
class Client:
    """Somebody with an account on this machine, whose home has a key and what `portico ssh config` wrote."""

    house: RunningPortico
    name: str

    @property
    def home(self) -> Path:
        return Path(pwd.getpwnam(self.name).pw_dir)

    def options(self, **env: str) -> dict[str, object]:
        entry = pwd.getpwnam(self.name)
        clean = {"HOME": entry.pw_dir, "PATH": "/usr/local/bin:/usr/bin:/bin", "USER": self.name, "LC_ALL": "C.UTF-8"}
        return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": [], "env": clean | env, "cwd": entry.pw_dir}

    def run(self, *argv: str, check: bool = True, **more: object) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=60, check=False,
            **({"stdin": subprocess.DEVNULL} | self.options() | more),
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done


@pytest.fixture(scope="module")
def house(portico_factory: Callable[..., RunningPortico]) -> RunningPortico:
    """Return a Portico with an sshd of its own."""
    if not shutil.which("sshd", path="/usr/sbin:/usr/bin"):
        pytest.skip("sshd is not installed: run ./portico test")
    return portico_factory({"ssh_port": find_free_ports()[0]})


@pytest.fixture(scope="module")
def terminal(house: RunningPortico) -> str:
    """Return the id of a terminal of alice's, which runs."""
    alice = house.user("alice")
    session_id = str(alice.start("terminal", memory_gb=0.5)["id"])
    alice.wait(session_id)
    return session_id


@pytest.fixture(scope="module")
def alice(house: RunningPortico, terminal: str) -> Client:
    """Return alice, whose home has a key, and who has run `portico ssh config --write`."""
    client = Client(house, house.get_name("alice"))
    folder = client.home / ".ssh"
    client.run("mkdir", "-m", "700", str(folder))
    client.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "id_ed25519"))
    kind, body, _ = (folder / "id_ed25519.pub").read_text().split()
    with Store(house.state_dir / "portico.db").begin() as tx:
        tx.add_ssh_key(SshKey(0, client.name, "laptop", kind, body, compute_fingerprint(body), 256, (), now()))
    (folder / "config").write_text("Host *\n    LogLevel ERROR\n")
    os.chown(folder / "config", pwd.getpwnam(client.name).pw_uid, pwd.getpwnam(client.name).pw_gid)
    house.cli("ssh", "config", "--write", "--yes", user=client.name)
    return client


def test_the_files_are_there_and_what_was_there_is_there_still(
    house: RunningPortico, alice: Client, terminal: str
) -> None:
    folder = alice.home / ".ssh"
    text = "Include portico_config\n\nHost *\n    LogLevel ERROR\n"
    assert (folder / "config").read_text() == text
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    house.cli("ssh", "config", "--write", user=alice.name)  # nothing to ask any more
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    for name in ("portico_config", "portico_known_hosts"):
        assert (folder / name).stat().st_mode & 0o777 == 0o600
        assert (folder / name).stat().st_uid == pwd.getpwnam(alice.name).pw_uid


def test_ssh_asks_nothing_and_is_where_the_session_is(alice: Client, terminal: str) -> None:
    assert alice.run("ssh", *STRICT, "portico", "id", "-un").stdout.strip() == alice.name
    assert alice.run("ssh", *STRICT, f"{terminal}.portico", "true").stderr == ""
    told = alice.run("ssh", *STRICT, f"{terminal}.portico", "echo $PORTICO_SOCKET; cat /proc/self/cgroup").stdout
    assert terminal in told.splitlines()[0]
    assert f"/{terminal}" in told.partition("\n")[2], "not in the session's cell"
    assert alice.run("ssh", *STRICT, "terminal.portico", "id", "-un").stdout.strip() == alice.name
    refused = alice.run("ssh", *STRICT, "nothing.portico", "true", check=False)
    assert refused.returncode == 255
    assert "You have no session 'nothing'" in refused.stderr


def test_a_front_door_with_another_key_is_not_believed(alice: Client) -> None:
    """StrictHostKeyChecking comes from the file: nobody is asked, and nothing is learnt."""
    path = alice.home / ".ssh/portico_known_hosts"
    text = path.read_text()
    try:
        path.write_text("\n".join(line for line in text.splitlines() if not line.startswith("portico-")))
        refused = alice.run("ssh", "-o", "BatchMode=yes", "portico", "true", check=False)
        assert refused.returncode == 255
        assert "Host key verification failed" in refused.stderr
        path.write_text("\n".join(line for line in text.splitlines() if not line.startswith("@")))
    finally:
        path.write_text(text)


@pytest.mark.parametrize("target", ["portico", "{session}.portico"])
def test_files_go_there_and_back(alice: Client, terminal: str, target: str, tmp_path: Path) -> None:
    target = target.format(session=terminal)
    data = os.urandom(3_000_000)
    work = alice.home / f"work-{target[:4]}"
    alice.run("mkdir", "-p", str(work / "tree/sub"))
    alice.run("tee", str(work / "tree/sub/data"), input=data.decode("latin-1"), stdin=None, encoding="latin-1")
    alice.run("scp", "-q", *STRICT, str(work / "tree/sub/data"), f"{target}:{work}/by-scp")
    alice.run("scp", "-q", *STRICT, f"{target}:{work}/by-scp", str(work / "back"))
    assert (work / "back").read_bytes() == data
    alice.run("sftp", "-q", *STRICT, "-b", "-", target, input=f"put {work}/back {work}/by-sftp\n", stdin=None)
    assert (work / "by-sftp").read_bytes() == data
    ssh = " ".join(["ssh", *STRICT])
    alice.run("rsync", "-a", "-e", ssh, f"{work}/tree/", f"{target}:{work}/copy/")
    assert (work / "copy/sub/data").read_bytes() == data
    told = alice.run("rsync", "-a", "-i", "-e", ssh, f"{work}/tree/", f"{target}:{work}/copy/").stdout
    assert told == "", "the second time there is nothing to do"


# desktops


@pytest.fixture(scope="module")
def painted(house: RunningPortico, alice: Client) -> str:
    """Return the id of a desktop of alice's that is all blue."""
    person = house.user("alice")
    session_id = str(person.start("desktop-light")["id"])
    person.wait(session_id)
    # A window over all of it, as the root's colour is hidden by whatever opens.
    paint = f"DISPLAY=$(pgrep -a -u $(id -u) Xtigervnc >/dev/null; cd /tmp/.X11-unix; ls -1 | head -0) ; {PAINT}"
    alice.run("ssh", *STRICT, f"{session_id}.portico", paint)
    return session_id


PAINT = ""
