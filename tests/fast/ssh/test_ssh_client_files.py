"""What is written into a person's ~/.ssh: right for OpenSSH itself, and no name becomes a line or an option of its own."""

from __future__ import annotations

import base64
import getpass
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portico.errors import Invalid
from portico.ssh.client import (
    INCLUDE,
    KNOWN_HOSTS,
    MARK,
    Way,
    add_include,
    find_owner,
    render_known_hosts,
    render_ssh_config,
)
from portico.ssh.viewer import choose_port, render_tigervnc, render_vnc

KEY = "ssh-ed25519 " + base64.b64encode(b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + bytes(32)).decode()
GOOD: dict[str, Any] = {
    "host": "hpc.example.org", "port": 2222, "user_name": "alice", "connect": "/run/portico/ssh/connect",
    "host_keys": (f"{KEY} portico hpc",), "host_ca": f"{KEY} portico-host-ca",
}  # fmt: skip
WAY = Way(**GOOD)
needs_ssh = pytest.mark.skipif(not shutil.which("ssh"), reason="ssh is not installed")

NASTY = st.text(alphabet=st.sampled_from("a.%h \t\n\r\0\"'\\$(){};|&*?!,#=@/-:ü\u2028"), min_size=1, max_size=12)


def ask_ssh(config: Path, target: str) -> dict[str, str]:
    """Return what ssh itself makes of a configuration for a target (ssh -G)."""
    done = subprocess.run(
        ["ssh", "-G", "-F", str(config), target], capture_output=True, text=True, check=True, timeout=10
    )
    found: dict[str, str] = {}
    for line in done.stdout.splitlines():
        name, _, value = line.partition(" ")
        found.setdefault(name, value)
    return found


@needs_ssh
def test_ssh_reads_it_as_it_is_meant(tmp_path: Path) -> None:
    path = tmp_path / "config"
    path.write_text(render_ssh_config(WAY))
    front = ask_ssh(path, "portico")
    assert (front["hostname"], front["port"], front["user"]) == ("hpc.example.org", "2222", "alice")
    assert front["hostkeyalias"] == "portico-hpc.example.org"
    assert "proxycommand" not in front
    inner = ask_ssh(path, "abc123.portico")
    assert inner["proxycommand"] == "ssh -a -x portico /run/portico/ssh/connect %n"
    assert (inner["user"], inner["hostkeyalias"]) == ("alice", "portico-session")
    for found in (front, inner):
        assert found["stricthostkeychecking"] == "true"
        assert found["userknownhostsfile"].endswith(f"/.ssh/{KNOWN_HOSTS}")
    other = ask_ssh(path, "elsewhere.example.org")
    assert other["user"] == getpass.getuser()
    assert other["userknownhostsfile"].split()[0].endswith("/known_hosts")


@needs_ssh
def test_openssh_finds_the_keys_under_their_names(tmp_path: Path) -> None:
    path = tmp_path / "known"
    path.write_text(render_known_hosts(WAY))
    for name in ("portico-hpc.example.org", "portico-session"):
        done = subprocess.run(
            ["ssh-keygen", "-F", name, "-f", str(path)], capture_output=True, text=True, check=True, timeout=10
        )
        assert KEY in done.stdout
    assert len(path.read_text().splitlines()) == 3, "and comments of keys are left out"


@given(name=st.sampled_from(["host", "user_name", "connect", "host_ca", "host_keys"]), text=NASTY)
def test_whatever_is_in_a_value_it_is_refused_or_one_word(name: str, text: str) -> None:
    value: Any = (text,) if name == "host_keys" else text
    try:
        way = Way(**(GOOD | {name: value}))
    except Invalid:
        return
    for render in (render_ssh_config, render_known_hosts):
        assert [len(line.split()) for line in render(way).splitlines()] == [
            len(line.split()) for line in render(WAY).splitlines()
        ]
        assert not set("\0\r$`'\"\\;|&") & set(render(way))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("host", "hpc\n    ProxyCommand evil"),
        ("host", "-oProxyCommand=evil"),
        ("host", "%h.example.org"),
        ("host", "*"),
        ("host", "a,b"),
        ("host", ""),
        ("user_name", "alice\nProxyCommand evil"),
        ("user_name", "-oX"),
        ("connect", "/bin/sh -c evil"),
        ("connect", "/bin/$(evil)"),
        ("connect", "relative"),
        ("port", 0),
        ("port", 65536),
        ("host_ca", f"* {KEY}"),
        ("host_ca", "ssh-ed25519 AAAA\n@cert-authority * AAAA"),
        ("host_keys", (KEY, "ssh-ed25519 no-base64")),
        ("host_keys", ("ssh-ed25519",)),
    ],
)
def test_what_would_be_read_as_something_else_is_refused(name: str, value: Any) -> None:
    with pytest.raises(Invalid):
        Way(**(GOOD | {name: value}))


@pytest.mark.parametrize("host", ["localhost", "192.0.2.1", "2001:db8::1", "::1", "a-b.example", "HPC"])
def test_names_and_addresses_are_good(host: str) -> None:
    assert find_owner(render_ssh_config(Way(**(GOOD | {"host": host})))) == host
    assert find_owner(render_known_hosts(Way(**(GOOD | {"host": host})))) == host


def test_what_is_not_ours_has_no_owner() -> None:
    assert find_owner("") is None
    assert find_owner("Host *\n") is None
    assert find_owner(f"Host *\n{MARK}hpc\n") is None


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"Host *\n    User x\n",
        b"# a comment\nHost *\n    Include portico_config\n",  # only for some hosts
        b"Match all\ninclude portico_config\n",
        b"Include other_config\n",
        b"\xff\xfe not a text\r\n",
        b"#Include portico_config\n",
        b"Host *",
    ],
)
def test_the_line_stands_on_top_once_and_the_rest_is_as_it_was(text: bytes) -> None:
    once = add_include(text)
    assert once.startswith(b"Include portico_config\n")
    assert once.endswith(text)
    assert add_include(once) == once


@pytest.mark.parametrize(
    "line",
    [
        "Include portico_config",
        "  include ~/.ssh/portico_config",
        "Include=portico_config",
        'Include a "portico_config"',
    ],
)
def test_a_line_that_is_there_stays_as_it_is(line: str) -> None:
    text = f"# mine\nAddKeysToAgent yes\n{line}\nHost *\n".encode()
    assert add_include(text) == text


@given(st.binary(max_size=200))
def test_no_configuration_loses_a_byte(text: bytes) -> None:
    assert add_include(text).endswith(text)
    assert add_include(add_include(text)) == add_include(text)


@needs_ssh
def test_ssh_takes_the_line_on_top_of_what_was_there(tmp_path: Path) -> None:
    (tmp_path / INCLUDE).write_text(render_ssh_config(WAY))
    main = tmp_path / "config"
    # ssh reads a relative Include from ~/.ssh, or for a file named by -F from there only if it is absolute.
    text = add_include(b"Host *\n    User somebody\n").replace(INCLUDE.encode(), os.fsencode(tmp_path / INCLUDE))
    main.write_bytes(text)
    assert ask_ssh(main, "portico")["user"] == "alice"
    assert ask_ssh(main, "other")["user"] == "somebody"


def test_a_viewers_file_has_a_port_and_nothing_else() -> None:
    assert render_tigervnc(5910).splitlines()[2:] == ["ServerName=localhost::5910", "SecurityTypes=None"]
    assert render_vnc(5910) == "[connection]\r\nhost=localhost\r\nport=5910\r\n"


@given(st.text(max_size=20))
def test_a_sessions_port_is_always_the_same_and_in_its_range(session_id: str) -> None:
    assert choose_port(session_id) == choose_port(session_id)
    assert 5910 <= choose_port(session_id) < 6000
