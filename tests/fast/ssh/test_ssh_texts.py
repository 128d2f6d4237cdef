"""portico.ssh: what sshd and ssh are given, checked by OpenSSH itself; and what sshd's log says."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portico.errors import Invalid
from portico.ssh import inner
from portico.ssh.front import Front, render_config, render_drop_in
from portico.ssh.log import Accepted, Failed, parse_line

SSHD = shutil.which("sshd", path="/usr/sbin:/usr/bin") or ""
needs_sshd = pytest.mark.skipif(not SSHD, reason="not installed: openssh-server; run ./portico test")
FRONT = Front(2222, ("127.0.0.1",), ("/k/ed25519", "/k/rsa"), ("/usr/bin/python3", "-IS", "/r/lookup.py", "/r/ssh.sock"),
              "portico-ssh", "/r/user_ca.pub", "portico-users")  # fmt: skip


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    """A folder with a host key of each kind."""
    for kind in ("ed25519", "rsa"):
        subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(tmp_path / kind)], check=True)
    return tmp_path


def read_back(config: str, folder: Path) -> dict[str, list[str]]:
    """Return what sshd makes of a configuration (sshd -T): every setting with its values."""
    if os.geteuid() == 0:  # as on a machine where one has run already
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    path = folder / "sshd_config"
    path.write_text(config)
    done = subprocess.run([SSHD, "-T", "-f", str(path)], capture_output=True, text=True, check=False, timeout=20)
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        name, _, value = line.partition(" ")
        found.setdefault(name, []).append(value)
    return found


@needs_sshd
@pytest.mark.parametrize(("forwarding", "tcp"), [("yes", "yes"), ("loopback", "yes"), ("no", "no")])
def test_sshd_understands_it_as_it_is_meant(keys: Path, forwarding: str, tcp: str) -> None:
    here = replace(FRONT, host_keys=(f"{keys}/ed25519", f"{keys}/rsa"), forwarding=forwarding)
    found = read_back(render_config(here), keys)
    assert found["port"] == ["2222"] and found["listenaddress"] == ["127.0.0.1:2222"]
    assert found["passwordauthentication"] == found["kbdinteractiveauthentication"] == ["no"]
    assert found["permitrootlogin"] == found["permituserenvironment"] == found["permittunnel"] == ["no"]
    assert found["authorizedkeysfile"] == ["none"] and found["allowgroups"] == ["portico-users"]
    assert found["authenticationmethods"] == ["publickey"] and found["usepam"] == ["yes"]
    assert found["allowtcpforwarding"] == [tcp]
    assert ("127.0.0.1:*" in found["permitopen"][0]) is (forwarding == "loopback")
    assert found["authorizedprincipalscommand"] == ["/usr/bin/python3 -IS /r/lookup.py /r/ssh.sock principals %u %f %s"]
    assert found["authorizedkeyscommand"] == ["/usr/bin/python3 -IS /r/lookup.py /r/ssh.sock keys %u %f"]
    assert not any(
        weak in found["kexalgorithms"][0] + found["macs"][0] for weak in ("sha1,", "md5", "group1-", "group14")
    )
    assert "cbc" not in found["ciphers"][0]


@needs_sshd
def test_inside_a_session_it_listens_on_nothing_and_knows_one_folder(keys: Path) -> None:
    files = inner.render_files(host_key="", host_certificate="", keys=[("ssh-ed25519", "AAAA")], forwarding="yes")
    (keys / "host_key").write_bytes((keys / "ed25519").read_bytes())
    (keys / "host_key").chmod(0o600)
    text = files["sshd_config"].replace(inner.FOLDER, str(keys)).replace(inner.ENVIRONMENT, "PORTICO_SESSION=a B=c")
    text = text.replace(f"HostCertificate {keys}/host_key-cert.pub\n", "")
    found = read_back(text, keys)
    assert found["authorizedkeysfile"] == [f"{keys}/authorized_keys"] and found["usepam"] == ["no"]
    assert found["setenv"] == ["PORTICO_SESSION=a", "B=c"] or found["setenv"] == ["PORTICO_SESSION=a B=c"]
    assert files["authorized_keys"] == "ssh-ed25519 AAAA\n"


@pytest.mark.parametrize("path", ["", "x", "/a b", "/a\nPermitRootLogin yes", '/a"b', "/%u", "/" + "x" * 300])
def test_no_path_becomes_another_line(path: str) -> None:
    for front in (replace(FRONT, host_keys=(path,)), replace(FRONT, user_ca=path)):
        with pytest.raises(Invalid):
            render_config(front)
    if path:
        with pytest.raises(Invalid):
            render_config(replace(FRONT, banner=path))


def test_a_site_may_use_its_own_sshd_instead() -> None:
    text = render_drop_in(FRONT)
    assert text.startswith("Match Group portico-users\n") and text.endswith("Match all\n")
    assert "AuthorizedKeysCommandUser portico-ssh" in text and "Port" not in text


# the log

FINGERPRINT = "SHA256:1TrIY2FCaOnORbnF7tl0kjeau6pNeM2lpeIlS+ktFWQ"


def test_who_was_let_in() -> None:
    line = f"Accepted publickey for alice from 2001:db8::7 port 43778 ssh2: ED25519 {FINGERPRINT}"
    assert parse_line(line) == Accepted("alice", "2001:db8::7", FINGERPRINT, None)
    line = f"Accepted publickey for alice from 192.0.2.7 port 1 ssh2: ED25519-CERT {FINGERPRINT} ID alice:3 (serial 3) CA ED25519 {FINGERPRINT}"
    assert parse_line(line) == Accepted("alice", "192.0.2.7", FINGERPRINT, 3)


@pytest.mark.parametrize("line", [
    "",
    f"Invalid user Accepted publickey for alice from 1.2.3.4 port 5 ssh2: ED25519 {FINGERPRINT} from 9.9.9.9 port 1",
    f"Accepted publickey for alice from 1.2.3.4 port 5 ssh2: ED25519 {FINGERPRINT} more",
    f"Failed publickey for alice from 1.2.3.4 port 5 ssh2: ED25519 {FINGERPRINT}",
    f"Accepted publickey for al ice from 1.2.3.4 port 5 ssh2: ED25519 {FINGERPRINT}",
    f" Accepted publickey for alice from 1.2.3.4 port 5 ssh2: ED25519 {FINGERPRINT}",
])  # fmt: skip
def test_what_is_no_such_line(line: str) -> None:
    assert parse_line(line) is None


@pytest.mark.parametrize(("line", "user_name", "address"), [
    ("Connection closed by authenticating user nobody 127.0.0.1 port 54508 [preauth]", "nobody", "127.0.0.1"),
    ("Connection reset by invalid user root 2001:db8::7 port 1 [preauth]", "root", "2001:db8::7"),
    ("Disconnected from authenticating user alice fe80::1%eth0 port 22 [preauth]", "alice", "fe80::1%eth0"),
    ("Disconnecting authenticating user a 192.0.2.1 port 5: Too many authentication failures [preauth]", "a", "192.0.2.1"),
    ("Connection closed by invalid user  192.0.2.1 port 5 [preauth]", "", "192.0.2.1"),
    # Names that look like what follows them.
    ("Connection closed by invalid user bad 1.2.3.4 port 5 [preauth] 127.0.0.1 port 6 [preauth]", "bad 1.2.3.4 port 5 [preauth]", "127.0.0.1"),
    ("Connection closed by invalid user a 1.2.3.4 port 5: b 127.0.0.1 port 6 [preauth]", "a 1.2.3.4 port 5: b", "127.0.0.1"),
])  # fmt: skip
def test_who_was_not_let_in(line: str, user_name: str, address: str) -> None:
    assert parse_line(line) == Failed(user_name, address)


@pytest.mark.parametrize("line", [
    "Connection closed by user alice 127.0.0.1 port 5", "Disconnected from user alice 127.0.0.1 port 5",
    "Connection closed by 127.0.0.1 port 5 [preauth]", "Invalid user alice from 127.0.0.1 port 5",
    "Connection closed by invalid user " + "a" * 800,
])  # fmt: skip
def test_who_came_in_or_named_nobody_has_not_failed(line: str) -> None:
    assert parse_line(line) is None


@given(st.text(max_size=200))
def test_whatever_a_stranger_calls_himself_his_address_is_known(name: str) -> None:
    assert parse_line(f"Connection closed by invalid user {name} 192.0.2.9 port 77 [preauth]") == Failed(
        name, "192.0.2.9"
    )


@given(st.text(max_size=200))
def test_any_line_is_read(text: str) -> None:
    parse_line(text)
    parse_line(f"Accepted publickey for alice from {text}")
