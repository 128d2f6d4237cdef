"""The real clients, as people have them set up by `portico ssh config`: ssh, scp, sftp, rsync, and a VNC viewer."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from rfb import RfbClient
from running import RunningPortico, find_free_ports, wait_until
from ssh_client import (
    BLUE,
    STRICT,
    Client,
    is_listened_on,
    is_mostly_blue,
    list_folders,
    list_processes,
    outer_display,
    read_commands,
    read_display,
    set_up,
    start_open,
    wait_for_nothing_left,
)

from portico.cli.place import check_terminals

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

TERMS = "Use is for research alone.\n"


@pytest.fixture(scope="module")
def house(portico_factory: Callable[..., RunningPortico], tmp_path_factory: pytest.TempPathFactory) -> RunningPortico:
    """Return a Portico with an sshd of its own."""
    if not shutil.which("sshd", path="/usr/sbin:/usr/bin"):
        pytest.skip("sshd is not installed: run ./portico test")
    terms = tmp_path_factory.mktemp("terms") / "banner"
    terms.write_text(TERMS)
    return portico_factory({"ssh_port": find_free_ports()[0], "ssh_banner": str(terms)})


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
    set_up(client)
    return client


@pytest.fixture
def scratch(alice: Client) -> Iterator[Path]:
    """Return a folder of alice's own with a short name, for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="pt-", dir="/tmp"))
    os.chown(folder, alice.uid, -1)
    yield folder
    shutil.rmtree(folder)


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


def test_from_a_laptop_a_token_is_enough(house: RunningPortico, alice: Client, tmp_path: Path) -> None:
    env = house.get_env() | {"XDG_CONFIG_HOME": str(tmp_path)}
    answer = house.user("alice").http.post("/api/v1/tokens", json={"label": "laptop", "days": 1})

    def run(*arguments: str, **more: Any) -> subprocess.CompletedProcess[str]:
        argv = [*house.get_command(), "--url", house.url, *arguments]
        return subprocess.run(argv, env=env, cwd="/", capture_output=True, text=True, timeout=60, check=True, **more)

    run("login", input=f"{answer.json()['token']}\n")
    assert run("ssh", "config").stdout == (alice.home / ".ssh/portico_config").read_text()


def test_the_systems_own_sshd_lets_the_same_keys_in(house: RunningPortico, alice: Client, tmp_path: Path) -> None:
    """The drop-in in an sshd as a system has it, beside Portico's own."""
    port = find_free_ports()[0]
    told = house.cli("ssh", "drop-in")
    assert "/etc/ssh/sshd_config.d/portico.conf" in told.stderr
    tmp_path.chmod(0o755)
    (tmp_path / "portico.conf").write_text(told.stdout)
    key = house.state_dir / "ssh-host/ssh_host_ed25519_key"
    lines = [f"Include {tmp_path}/portico.conf", f"Port {port}", f"HostKey {key}", "PidFile none", "UsePAM yes",
             "PasswordAuthentication yes", "ListenAddress 127.0.0.1"]  # fmt: skip
    (tmp_path / "sshd_config").write_text("\n".join(lines) + "\n")
    argv = ["/usr/sbin/sshd", "-f", str(tmp_path / "sshd_config")]
    subprocess.run([*argv, "-t"], check=True, timeout=10)
    with (tmp_path / "log").open("w") as log, subprocess.Popen([*argv, "-D", "-e"], stderr=log) as sshd:
        try:
            wait_until(lambda: is_listened_on(port), 10, "sshd")
            come_in = ["ssh", *STRICT, "-p", str(port)]
            assert alice.run(*come_in, "portico", "id", "-un").stdout.strip() == alice.name
            refused = alice.run(*come_in, "-o", "PubkeyAuthentication=no", "portico", "true", check=False)
            assert "Permission denied (publickey)" in refused.stderr, "passwords are not for Portico's users"
            # Everybody else's way in is as it was.
            other = alice.run(*come_in, "-o", "PubkeyAuthentication=no", "-l", "root", "portico", "true", check=False)
            assert "password" in other.stderr
        finally:
            sshd.terminate()


def test_with_ssh_as_it_comes_nothing_is_said_but_the_terms(alice: Client, terminal: str) -> None:
    """With no setting of a person's own about what ssh tells them."""
    config = alice.home / ".ssh/config"
    text = config.read_text()
    try:
        config.write_text("Include portico_config\n")
        for target in ("portico", f"{terminal}.portico"):
            assert alice.run("ssh", target, "true").stderr.replace("\r", "") == TERMS
    finally:
        config.write_text(text)


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


def test_the_terms_and_the_message_of_the_day_are_shown(alice: Client, terminal: str) -> None:
    """The terms before anybody is let in, as a warning of ssh's; the message of the day in a shell on a terminal."""
    refused = alice.run("ssh", *STRICT, "-o", "LogLevel=INFO", "-o", "PubkeyAuthentication=no", "portico", check=False)
    assert TERMS.strip() in refused.stderr
    folder, message = Path("/run/motd.d"), f"Maintenance of {alice.name} on Monday."
    existed = folder.exists()
    folder.mkdir(mode=0o755, exist_ok=True)
    path = folder / alice.name
    path.write_text(f"{message}\n")
    path.chmod(0o644)
    try:
        if "pam_motd" in Path("/etc/pam.d/sshd").read_text():
            assert message in alice.run("ssh", *STRICT, "-tt", "portico", input="exit\n", stdin=None).stdout
        assert message not in alice.run("ssh", *STRICT, "portico", "true").stdout, "not where a program reads"
    finally:
        path.unlink()
        if not existed:
            folder.rmdir()
    if not check_terminals(Path("/proc/self/mounts").read_text(), grp.getgrnam("tty").gr_gid):
        expected = Path("/etc/motd").read_text().strip()
        assert expected in alice.run("ssh", *STRICT, "-tt", f"{terminal}.portico", input="exit\n", stdin=None).stdout


def test_jumps_lead_on_from_the_front_door_and_from_inside_a_session(
    house: RunningPortico, alice: Client, terminal: str
) -> None:
    """``ssh -J``: to this machine's own sshd again, which is whom the known hosts have by that name and port."""
    front = dict(line.split(None, 1) for line in alice.run("ssh", "-G", "portico").stdout.splitlines() if " " in line)
    there = ["-p", front["port"], "-o", f"HostKeyAlias={front['hostkeyalias']}", f"{alice.name}@127.0.0.1"]
    known = ["-o", f"UserKnownHostsFile={alice.home}/.ssh/portico_known_hosts"]
    for jump in ("portico", f"{terminal}.portico"):
        shown = alice.run("ssh", *STRICT, *known, "-J", jump, *there, "echo over; echo $SSH_CONNECTION").stdout
        assert shown.startswith("over\n127.0.0.1 "), jump


@pytest.mark.parametrize(("missing", "target"), [("portico-", "portico"), ("@cert-authority ", "terminal.portico")])
def test_whom_the_file_does_not_name_is_not_believed(alice: Client, missing: str, target: str) -> None:
    """StrictHostKeyChecking comes from the other file: nobody is asked, and nothing is learnt."""
    path = alice.home / ".ssh/portico_known_hosts"
    text = path.read_text()
    less = "".join(f"{line}\n" for line in text.splitlines() if not line.startswith(missing))
    try:
        path.write_text(less)
        refused = alice.run("ssh", "-o", "BatchMode=yes", target, "true", check=False)
        assert refused.returncode == 255
        assert "Host key verification failed" in refused.stderr
        assert path.read_text() == less
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


def test_the_pages_commands_do_what_they_say(house: RunningPortico, alice: Client, terminal: str) -> None:
    commands = read_commands(house, terminal)
    assert alice.run("sh", "-c", f"{commands['ssh']} id -un").stdout.strip() == alice.name
    data = alice.home / "data.csv"
    alice.run("tee", str(data), input="1,2\n", stdin=None)
    alice.run("sh", "-c", commands["scp"].splitlines()[0].replace("portico:", "portico:results.csv"))
    alice.run("sh", "-c", f"mkdir -p folder elsewhere && cd elsewhere && {commands['scp'].splitlines()[1]}")
    assert (alice.home / "elsewhere/results.csv").read_text() == "1,2\n"
    alice.run("sh", "-c", commands["rsync"].replace("portico:folder/", "portico:copied/"))
    assert (alice.home / "copied").is_dir()


def test_the_pages_way_to_set_up_a_computer_by_hand(
    house: RunningPortico, alice: Client, terminal: str, scratch: Path
) -> None:
    """The two files and the command, in the home of a computer without Portico's own command."""
    person = house.user("alice")
    command = read_commands(house, terminal)["unix"]
    for before, after in ((None, ""), ("Host *\n", "Host *\n")):
        for _ in range(2):  # the second time nothing is to do
            alice.run("mkdir", "-p", str(scratch / "Downloads"))
            for name in ("portico_config", "portico_known_hosts"):
                text = person.http.get(f"/sessions/{terminal}/connect/{name}").raise_for_status().text
                alice.run("tee", str(scratch / "Downloads" / name), input=text, stdin=None)
                assert text == (alice.home / ".ssh" / name).read_text(), "the command line writes the same"
            if before is not None:
                alice.run("tee", str(scratch / ".ssh/config"), input=before, stdin=None)
                before = None
            alice.run("sh", "-c", command, **alice.options(HOME=str(scratch)))
            assert (scratch / ".ssh/config").read_text() == f"Include portico_config\n\n{after}"
            assert not (scratch / ".ssh/config.new").exists()
        assert sorted(path.name for path in (scratch / ".ssh").iterdir()) == [
            "config", "portico_config", "portico_known_hosts",
        ]  # fmt: skip


def test_putty_comes_in_by_the_pages_command(house: RunningPortico, alice: Client, terminal: str) -> None:
    version = alice.run("sh", "-c", "plink -V | sed -n 's/.*Release 0[.]//p'", check=False).stdout.strip()
    if not version.isdigit() or int(version) < 78:
        pytest.skip("PuTTY 0.78 is not installed: apt-get install putty-tools")
    commands = read_commands(house, terminal)
    alice.run("puttygen", str(alice.home / ".ssh/id_ed25519"), "-o", "key.ppk")
    alice.run("mkdir", "-p", ".putty/sshhostcas")  # what the page has people do in PuTTY's window
    kept = f"PublicKey={commands['ca'].split()[1]}\nValidity=portico-session\nPermitRSASHA256=1\nPermitRSASHA512=1\n"
    alice.run("tee", ".putty/sshhostcas/portico", input=kept, stdin=None)
    with_key = commands["putty"].replace("plink ", "plink -batch -i key.ppk ")  # as there is no Pageant
    assert terminal in alice.run("sh", "-c", f"{with_key} 'echo $PORTICO_SOCKET'").stdout
    alice.run("rm", ".putty/sshhostcas/portico")
    refused = alice.run("sh", "-c", f"{with_key} true", check=False)
    assert refused.returncode, "a session's key is believed for the authority's word alone"


# desktops


@pytest.fixture(scope="module")
def painted(house: RunningPortico, alice: Client) -> str:
    """Return the id of a desktop of alice's whose ground is blue."""
    person = house.user("alice")
    session_id = str(person.start("desktop-light")["id"])
    person.wait(session_id)
    env = wait_until(lambda: read_display(alice.uid, session_id), 20, "a display")
    alice.run("xsetroot", "-solid", f"#{BLUE:06x}", **alice.options(**env))
    return session_id


def test_a_desktop_opens_in_the_real_viewer(house: RunningPortico, alice: Client, painted: str, scratch: Path) -> None:
    if not shutil.which("xtigervncviewer"):
        pytest.skip("xtigervncviewer is not installed: run ./portico test")
    with outer_display(alice, scratch) as (display, eyes):
        opened = start_open(house, alice, painted, DISPLAY=display)
        try:
            eyes.wait(is_mostly_blue, 40)
            (folder,) = list_folders(alice)
            assert folder.stat().st_mode & 0o777 == 0o700
            (viewer,) = list_processes(alice, f"xtigervncviewer {folder}/desktop")
            os.kill(viewer, signal.SIGTERM)
            opened.wait(20)
        finally:
            opened.kill()
            print(opened.communicate()[0])
    wait_for_nothing_left(alice)


def test_a_tunnel_alone_takes_a_port_and_says_who_can_use_it(
    house: RunningPortico, alice: Client, painted: str
) -> None:
    port = find_free_ports()[0]
    opened = start_open(house, alice, "desktop-light", "--tunnel", "--port", str(port))
    try:
        assert opened.stdout is not None
        assert "Whoever else is on this computer can connect" in opened.stdout.readline()
        assert f"localhost::{port}" in opened.stdout.readline()
        with socket.create_connection(("localhost", port), 10) as sock:
            RfbClient(sock).wait(is_mostly_blue, 20)
        opened.send_signal(signal.SIGINT)
        opened.wait(20)
    finally:
        opened.kill()
        print(opened.communicate()[0])
    wait_for_nothing_left(alice)


def test_the_downloaded_file_and_the_pages_tunnel_lead_the_viewer_there(
    house: RunningPortico, alice: Client, painted: str, scratch: Path
) -> None:
    if not shutil.which("xtigervncviewer"):
        pytest.skip("xtigervncviewer is not installed: run ./portico test")
    commands = read_commands(house, painted)
    port = int(commands["viewer"].rpartition(":")[2])
    text = house.user("alice").http.get(f"/sessions/{painted}/connect/desktop.tigervnc").raise_for_status().text
    alice.run("tee", str(scratch / "desktop.tigervnc"), input=text, stdin=None)
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with (
        outer_display(alice, scratch) as (display, eyes),
        subprocess.Popen(["sh", "-c", f"exec {commands['tunnel']}"], **quiet, **alice.options()) as tunnel,
    ):
        try:
            wait_until(lambda: is_listened_on(port), 20, "the tunnel")
            argv = ["xtigervncviewer", str(scratch / "desktop.tigervnc")]
            with subprocess.Popen(argv, **quiet, **alice.options(DISPLAY=display)) as viewer:
                try:
                    eyes.wait(is_mostly_blue, 40)
                finally:
                    viewer.terminate()
        finally:
            tunnel.terminate()


def test_a_window_comes_out_of_a_session_and_ports_lead_both_ways(
    house: RunningPortico, alice: Client, terminal: str, scratch: Path
) -> None:
    target = f"{terminal}.portico"
    with outer_display(alice, scratch) as (display, eyes):
        env = alice.options(DISPLAY=display)
        alice.run("ssh", "-Y", *STRICT, target, f"xsetroot -solid '#{BLUE:06x}'", **env)
        eyes.wait(is_mostly_blue, 20)
    near, far, _ = find_free_ports()
    forwards = ["-L", f"{near}:localhost:{house.port}", "-R", f"{far}:localhost:{house.port}"]
    with subprocess.Popen(
        ["ssh", "-N", *STRICT, *forwards, target], stdin=subprocess.DEVNULL, **alice.options()
    ) as ssh:
        try:
            for port in (near, far):
                wait_until(lambda port=port: is_listened_on(port), 20, "the forward")
                answer = httpx.get(
                    f"http://localhost:{port}/api/v1/health", headers={"Host": f"localhost:{house.port}"}
                )
                assert answer.json() == {"status": "ok"}
        finally:
            ssh.terminate()


def test_what_is_no_desktop_is_said(house: RunningPortico, alice: Client, terminal: str) -> None:
    refused = house.cli("desktop", "open", terminal, user=alice.name, check=False)
    assert refused.returncode == 1
    assert "is no desktop" in refused.stderr
