"""Portico's own sshd with the clients people have: who gets in, who does not, and what ends when a key goes."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from running import RunningPortico, wait_until
from ssh_person import SshPerson, connect, find_free_port, is_running, read_line, wait_for_port

pytestmark = pytest.mark.system

DENIED = "Permission denied (publickey)"


def test_a_key_added_now_works_now_and_one_removed_does_not(alice: SshPerson) -> None:
    before = alice.run("true")
    assert before.returncode == 255 and DENIED in before.stderr
    key_id = alice.add_key(label="laptop")
    done = alice.run("id -un; pwd")
    assert done.stdout.split() == [alice.name, f"/home/{alice.name}"] and done.stderr == ""
    used = wait_until(lambda: next((key for key in alice.list_keys() if key["last_used"]), None), 10, "last used")
    assert used["last_address"] == "127.0.0.1" and used["label"] == "laptop"
    alice.remove_key(key_id)
    assert DENIED in alice.run("true").stderr


def test_removing_a_key_ends_its_live_connections_and_no_others(alice: SshPerson, bob: SshPerson) -> None:
    second = alice.make_key("second")
    first_id, _ = alice.add_key(), alice.add_key(second)
    bob.add_key()
    gone = alice.open("echo $$; exec sleep 1000", options=("-tt",))
    stays = alice.open("echo $$; exec sleep 1000", key=second)
    his = bob.open("echo $$; exec sleep 1000")
    pid = int(read_line(gone))
    read_line(stays), read_line(his)
    alice.remove_key(first_id)
    assert gone.wait(10) == 255
    wait_until(lambda: not is_running(pid), 10, "the end of what ran in it")
    assert his.poll() is None and stays.poll() is None


def test_locking_a_user_ends_all_of_theirs(ssh_house: RunningPortico, ssh_port: int) -> None:
    carol = SshPerson(ssh_house, "carol", ssh_port)
    try:
        carol.add_key()
        live = carol.open("echo in; sleep 1000")
        assert read_line(live) == "in"
        ssh_house.cli("user", "lock", carol.name)
        assert live.wait(10) == 255
        assert DENIED in carol.run("true").stderr
        ssh_house.cli("user", "unlock", carol.name)
        assert carol.run("echo in").stdout == "in\n"
    finally:
        carol.close()


def test_nobody_comes_in_with_anothers_key_or_as_another(alice: SshPerson, bob: SshPerson) -> None:
    alice.add_key()
    assert DENIED in bob.run("true", key=alice.key).stderr
    for name in ("root", "portico", "portico-ssh", "nobody", "sshd"):
        argv = ["ssh", *alice.get_options(), "-p", str(alice.port), f"{name}@127.0.0.1", "true"]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 255 and "Permission denied" in done.stderr, name
    # What stands in a home is not looked at.
    home = Path(pwd.getpwnam(bob.name).pw_dir)
    entry = pwd.getpwnam(bob.name)
    (home / ".ssh").mkdir(mode=0o700, exist_ok=True)
    (home / ".ssh/authorized_keys").write_text(Path(f"{bob.key}.pub").read_text())
    for path in (home / ".ssh", home / ".ssh/authorized_keys"):
        shutil.chown(path, entry.pw_uid, entry.pw_gid)
    assert DENIED in bob.run("true").stderr


@pytest.mark.parametrize(("sources", "in_"), [
    (["127.0.0.0/8"], True), (["192.0.2.0/24"], False), (["192.0.2.7", "127.0.0.1"], True), (["2001:db8::/32"], False),
])  # fmt: skip
def test_a_key_is_good_from_where_it_may_be(alice: SshPerson, sources: list[str], in_: bool) -> None:
    alice.add_key(sources=sources)
    assert (alice.run("true").returncode == 0) is in_


def test_no_password_is_ever_asked_for(alice: SshPerson) -> None:
    argv = ["ssh", "-v", *alice.get_options(), "-o", "PreferredAuthentications=password,keyboard-interactive",
            "-p", str(alice.port), f"{alice.name}@127.0.0.1", "true"]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    assert "Authentications that can continue: publickey\n" in done.stderr.replace("\r", "") and done.returncode == 255


def test_files_by_scp_sftp_and_rsync(alice: SshPerson) -> None:
    alice.add_key()
    here = alice.folder / "data"
    here.write_bytes(bytes(range(256)) * 4000)
    assert alice.copy(str(here), "@up").returncode == 0
    assert alice.copy("@up", str(alice.folder / "back")).returncode == 0
    assert (alice.folder / "back").read_bytes() == here.read_bytes()
    batch = alice.folder / "batch"
    batch.write_text("ls\nrename up moved\nget moved\nrm moved\n")
    argv = ["sftp", *alice.get_options(), "-P", str(alice.port), "-b", str(batch), f"{alice.name}@127.0.0.1"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=alice.folder, check=False)
    assert done.returncode == 0 and (alice.folder / "moved").read_bytes() == here.read_bytes(), done.stderr
    if shutil.which("rsync"):
        shell = " ".join(["ssh", *alice.get_options(), "-p", str(alice.port)])
        argv = ["rsync", "-a", "-e", shell, str(here), f"{alice.name}@127.0.0.1:synced"]
        subprocess.run(argv, check=True, timeout=60)
        assert (
            alice.run("sha256sum < synced").stdout
            == subprocess.run(f"sha256sum < {here}", shell=True, capture_output=True, text=True, check=True).stdout
        )
    home = pwd.getpwnam(alice.name).pw_dir
    assert Path(home).stat().st_uid == pwd.getpwnam(alice.name).pw_uid


def test_forwarding_both_ways_and_over_a_jump(alice: SshPerson, bob: SshPerson) -> None:
    alice.add_key()
    here, there = find_free_port(), find_free_port()
    server = alice.open(
        f'python3 -c \'import socket; s = socket.create_server(("127.0.0.1", {there})); print(1, flush=True);'
        ' c = s.accept()[0]; c.sendall(b"from there"); c.close()\''
    )
    assert read_line(server) == "1"
    alice.open("sleep 1000", options=("-L", f"{here}:127.0.0.1:{there}"))
    with connect(here) as sock:
        assert sock.recv(100) == b"from there"
    back = find_free_port()
    alice.open("sleep 1000", options=("-R", f"{back}:127.0.0.1:{alice.port}"))
    wait_for_port(back)
    jump = " ".join(["ssh", *alice.get_options(), "-W", "%h:%p", "-p", str(back), f"{alice.name}@127.0.0.1"])
    done = alice.run("echo over", options=("-o", f"ProxyCommand={jump}"))
    assert done.stdout == "over\n", done.stderr


def test_putty_comes_in_too(alice: SshPerson) -> None:
    if not shutil.which("plink") or not shutil.which("puttygen"):
        pytest.skip("not installed: putty-tools; run ./portico test")
    private, public = alice.folder / "putty.ppk", alice.folder / "putty.pub"
    (alice.folder / "none").write_text("")
    argv = ["puttygen", "-q", "-t", "ed25519", "-o", str(private), "--new-passphrase", str(alice.folder / "none")]
    subprocess.run(argv, check=True, timeout=60)
    subprocess.run(["puttygen", str(private), "-O", "public", "-o", str(public)], check=True, timeout=60)
    assert "BEGIN SSH2 PUBLIC KEY" in public.read_text()
    answer = alice.browser.http.post("/api/v1/keys", json={"key": public.read_text(), "label": "putty"})
    assert answer.status_code == 201, answer.text
    host_keys = (alice.house.run_dir / "ssh/host_keys.pub").read_text().splitlines()
    fingerprint = subprocess.run(
        ["ssh-keygen", "-l", "-f", "-"], input=host_keys[0], capture_output=True, text=True, check=True
    ).stdout.split()[1]
    argv = ["plink", "-batch", "-ssh", "-P", str(alice.port), "-i", str(private), "-hostkey", fingerprint,
            "-l", alice.name, "127.0.0.1", "echo putty"]  # fmt: skip
    env = {"HOME": str(alice.folder), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, env=env, check=False)
    assert done.stdout == "putty\n", done.stderr


def get_certificate(person: SshPerson) -> int:
    """Have a certificate for a person's key beside it; return its serial number."""
    public, http = Path(f"{person.key}.pub").read_text(), person.browser.http
    begun = http.post("/api/v1/ssh/login", json={"public_key": public}).json()
    answer = http.post("/ssh-login/confirm", data={"user_code": begun["user_code"]})
    assert answer.status_code in (200, 303), answer.text
    got = http.post("/api/v1/ssh/login/collect", json={"device_code": begun["device_code"]}).json()
    Path(f"{person.key}-cert.pub").write_text(got["certificate"] + "\n")
    return int(http.get("/api/v1/ssh/certificates").json()[-1]["serial"])


@pytest.mark.parametrize("options", [
    ["-n", "bob"], ["-n", "alice\\,root"], [], ["-n", "ALICE", "-V", "-2h:-1h"], ["-n", "ALICE", "-V", "+1h:+2h"],
    ["-n", "ALICE", "-O", "source-address=192.0.2.0/24"], ["-h", "-n", "ALICE"], ["-n", "ALICE", "-O", "critical:other=1"],
    ["-n", "ALICE", "-z", "999999"],
])  # fmt: skip
def test_what_our_own_authority_should_not_have_signed(alice: SshPerson, options: list[str]) -> None:
    """With the serial number and key of a good one, signed by the real authority: sshd and the portal both look."""
    serial = get_certificate(alice)
    assert alice.run("true").returncode == 0
    words = [word.replace("ALICE", alice.name) for word in options]
    more = [] if "-z" in words else ["-z", str(serial)]
    argv = ["ssh-keygen", "-q", "-s", str(alice.house.state_dir / "ssh/user_ca"), "-I", "forged", *more, *words]
    subprocess.run([*argv, f"{alice.key}.pub"], check=True, timeout=60)
    assert DENIED in alice.run("true").stderr


def test_a_certificate_lets_in_until_it_is_taken_back(alice: SshPerson, bob: SshPerson) -> None:
    http = alice.browser.http
    for old in http.get("/api/v1/ssh/certificates").json():
        http.delete(f"/api/v1/ssh/certificates/{old['serial']}")
    get_certificate(alice)
    done = alice.run("id -un")
    assert done.stdout.strip() == alice.name, done.stderr
    assert DENIED in bob.run("true", key=alice.key).stderr, "one principal, and it is alice"
    live = alice.open("echo in; sleep 1000")
    assert read_line(live) == "in"
    (one,) = http.get("/api/v1/ssh/certificates").json()
    assert http.delete(f"/api/v1/ssh/certificates/{one['serial']}").status_code == 204
    assert live.wait(10) == 255
    assert DENIED in alice.run("true").stderr
    Path(f"{alice.key}-cert.pub").unlink()


def test_the_log_and_the_audit_log_agree(alice: SshPerson) -> None:
    alice.add_key()
    for _ in range(3):
        assert alice.run("true").returncode == 0
    fingerprint = alice.list_keys()[0]["fingerprint"]
    log = alice.house.state_dir / "log/sshd.log"
    lines = [line for line in log.read_text().splitlines() if " Accepted publickey" in line and fingerprint in line]
    assert len(lines) == 3

    def count() -> bool:
        audit = alice.house.admin().http.get("/api/v1/audit?limit=200").json()
        found = [one for one in audit if one["action"] == "ssh:sign-in" and fingerprint in one["detail"]]
        return len(found) == 3 and all(one["actor"] == alice.name and one["address"] == "127.0.0.1" for one in found)

    wait_until(count, 10, "the audit log")


def test_failed_attempts_are_in_both_and_a_flood_is_a_few_rows(alice: SshPerson) -> None:
    """As sshd's log has it: a hundred connections, as fast as they go, of a key that nobody knows and odd names."""
    stranger, log = alice.make_key("stranger"), alice.house.state_dir / "log/sshd.log"
    alice.add_key()
    offset = log.stat().st_size
    names = [alice.name, "root", "no such user 192.0.2.9 port 5 [preauth]", "Accepted publickey for root", "x" * 2000]
    for _ in range(5):
        started = []
        for name in names * 4:
            argv = alice.get_argv("true", key=stranger, options=("-b", "127.0.0.9", "-l", name))
            argv[argv.index(f"{alice.name}@127.0.0.1")] = "127.0.0.1"
            started.append(subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        assert all(process.wait(60) == 255 for process in started)
    assert alice.run("echo in").stdout == "in\n", "others come in meanwhile"
    said = log.read_text(errors="replace")[offset:]
    failed = [line for line in said.splitlines() if " Connection closed by " in line and " user " in line]
    assert len(failed) == 100

    def read() -> list[dict[str, str]]:
        audit = alice.house.admin().http.get("/api/v1/audit?limit=200").json()
        rows = [one for one in audit if (one["action"], one["address"]) == ("ssh:fail", "127.0.0.9")]
        return rows if sum(int(one["detail"].split()[0]) for one in rows) == 100 else []

    rows = wait_until(read, 60, "all of them in the audit log, from where they were, whatever the names look like")
    assert len(rows) <= 8
    shown = " ".join(one["target"] for one in rows)
    assert any(name[:20] in shown for name in names) and all(one["actor"] == "" for one in rows)
    assert all(len(one["target"]) <= 100 and one["target"].isprintable() for one in rows)


def test_connections_live_on_when_all_of_portico_is_killed(alice: SshPerson) -> None:
    key_id = alice.add_key()
    live = alice.open("cat")
    assert live.stdin is not None
    live.stdin.write("one\n")
    live.stdin.flush()
    assert read_line(live) == "one"
    alice.house.kill()
    alice.house.start()
    live.stdin.write("two\n")
    live.stdin.flush()
    assert read_line(live) == "two"
    assert alice.run("echo again").stdout == "again\n"
    alice.remove_key(key_id)  # it is still known by which key that one lives
    assert live.wait(10) == 255


def test_a_portal_that_is_away_lets_nobody_in_and_is_waited_for(alice: SshPerson) -> None:
    alice.add_key()
    os.kill(alice.house.pids["portal"], signal.SIGKILL)
    assert alice.run("echo in").stdout == "in\n"


def test_the_socket_answers_look_ups_to_sshd_alone(alice: SshPerson, ssh_house: RunningPortico) -> None:
    key_id = alice.add_key()
    fingerprint = next(key["fingerprint"] for key in alice.list_keys() if key["id"] == key_id)
    entry = pwd.getpwnam(alice.name)
    for user in (entry, pwd.getpwnam("nobody"), pwd.getpwnam("portico")):
        argv = ["/usr/bin/python3", "-IS", str(ssh_house.run_dir / "ssh/lookup.py"), str(ssh_house.run_dir / "ssh.sock"),
                "keys", alice.name, fingerprint]  # fmt: skip
        done = subprocess.run(argv, user=user.pw_uid, group=user.pw_gid, extra_groups=[], capture_output=True,
                              text=True, timeout=60, check=False, cwd="/")  # fmt: skip
        assert done.returncode == 1 and done.stdout == "", user.pw_name
    files = {path.name: path.stat() for path in (ssh_house.run_dir / "ssh").iterdir()}
    assert all(found.st_uid == 0 and not found.st_mode & 0o022 for found in files.values())
    assert (ssh_house.state_dir / "ssh-host").stat().st_mode & 0o777 == 0o700
    assert (ssh_house.state_dir / "ssh").stat().st_mode & 0o077 == 0


def test_many_at_once_get_in(alice: SshPerson) -> None:
    alice.add_key()
    begin = time.monotonic()
    many = [alice.open("echo in") for _ in range(20)]
    assert [process.wait(60) for process in many] == [0] * 20
    assert time.monotonic() - begin < 60
