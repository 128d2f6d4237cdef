"""portico.ssh.authority with the real ssh-keygen: what is signed is what was asked for, and what can't be is refused."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from portico.errors import Invalid, PorticoError, Unavailable
from portico.ssh import authority as module
from portico.ssh.authority import USER_EXTENSIONS, Authority, compute_fingerprint, parse_listing, read_certificate

pytestmark = pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="needs ssh-keygen")

AT = datetime(2026, 3, 1, 12, 30, 15, 999, tzinfo=UTC)

LISTING = """(stdin):1:
        Type: ssh-ed25519-cert-v01@openssh.com user certificate
        Public key: ED25519-CERT SHA256:DoYqR4OdL0WKBl9XI6zOOaldjoiGvW/n1yxpIeGnL0E
        Signing CA: ED25519 SHA256:A+Y8/32PUX8nRdts7b7HlTsrbhGlMN7Fw9TimYBirMU (using ssh-ed25519)
        Key ID: "portico:alice:7"
        Serial: 7
        Valid: from 2026-01-01T00:00:00 to 2030-01-01T08:00:00
        Principals: 
                alice
        Critical Options: 
                source-address 192.0.2.7/32,2001:db8::1/128
        Extensions: 
                permit-agent-forwarding
                permit-pty
"""  # noqa: W291


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("state") / "ssh")


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    return make_key(tmp_path_factory.mktemp("key"))


def make_key(folder: Path, kind: str = "ed25519") -> tuple[str, str]:
    subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(folder / "k")], check=True)
    outer, body, *_ = (folder / "k.pub").read_text().split()
    return outer, body


def sign(authority: Authority, key: tuple[str, str], **changes: Any) -> str:
    wanted = {
        "principal": "alice", "serial": 7, "key_id": "portico:alice:7", "valid_from": AT,
        "valid_until": AT + timedelta(hours=8), "sources": ["192.0.2.7/32"], **changes,
    }  # fmt: skip
    return authority.sign_user(*key, **wanted)


def test_a_user_certificate_says_what_was_asked_for(authority: Authority, key: tuple[str, str]) -> None:
    text = sign(authority, key, sources=["192.0.2.7/32", "2001:db8::1/128"])
    assert text.split()[2:] == ["portico:alice:7"]
    listing = read_certificate(text)
    assert listing.type == "ssh-ed25519-cert-v01@openssh.com user certificate"
    assert listing.principals == ("alice",)
    assert (listing.serial, listing.key_id) == (7, "portico:alice:7")
    assert (listing.valid_from, listing.valid_until) == (
        datetime(2026, 3, 1, 12, 30, 15, tzinfo=UTC),
        datetime(2026, 3, 1, 20, 30, 15, tzinfo=UTC),
    )
    assert listing.critical == ("source-address 192.0.2.7/32,2001:db8::1/128",)
    assert listing.extensions == USER_EXTENSIONS
    assert listing.fingerprint == compute_fingerprint(key[1])
    assert listing.ca_fingerprint == compute_fingerprint(authority.user_public.split()[1])


def test_without_sources_it_is_good_from_everywhere(authority: Authority, key: tuple[str, str]) -> None:
    assert read_certificate(sign(authority, key, sources=())).critical == ()


def test_the_time_zone_of_the_process_changes_nothing(
    authority: Authority, key: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    listing = read_certificate(sign(authority, key, valid_from=AT.astimezone(), valid_until=AT + timedelta(hours=1)))
    assert listing.valid_from == AT.replace(microsecond=0)


@pytest.mark.parametrize("kind", ["ecdsa", "rsa"])
def test_other_keys_are_signed_too(authority: Authority, tmp_path: Path, kind: str) -> None:
    assert read_certificate(sign(authority, make_key(tmp_path, kind))).principals == ("alice",)


@pytest.mark.parametrize(
    "changes",
    [
        {"principal": ""},
        {"principal": "alice,root"},
        {"principal": "alice\nroot"},
        {"principal": "alice\n"},
        {"principal": "-h"},
        {"principal": "Alice"},
        {"principal": "a" * 33},
        {"principal": " "},
        {"key_id": ""},
        {"key_id": "-h"},
        {"key_id": "x -n root"},
        {"key_id": 'x"\nSerial: 8'},
        {"key_id": "x\n"},
        {"serial": -1},
        {"serial": 2**63},
        {"sources": [""]},
        {"sources": ["192.0.2.7/32,0.0.0.0/0"]},
        {"sources": ["192.0.2.7/24"]},  # bits beyond the mask
        {"sources": ["192.0.2.7/32 -O force-command=x"]},
        {"sources": ["192.0.2.7/32\n"]},
        {"sources": ["-O", "no-pty"]},
        {"sources": ["!192.0.2.7"]},
        {"valid_until": AT},
        {"valid_until": AT - timedelta(hours=1)},
        {"valid_until": AT + timedelta(microseconds=1)},
    ],
    ids=str,
)
def test_what_cannot_be_in_a_certificate_is_refused(
    authority: Authority, key: tuple[str, str], changes: dict[str, Any]
) -> None:
    with pytest.raises(Invalid):
        sign(authority, key, **changes)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("", "AAAA"),
        ("ssh-ed25519", ""),
        ("ssh-ed25519", "not base64!"),
        ("ssh-ed25519", "AAAA"),
        ("ssh-ed25519\nssh-rsa", "AAAA"),
        ("ssh-ed25519", "AAAA\nAAAA"),
        ("ssh-ed25519", "AAAA== root"),
    ],
)
def test_what_is_no_key_is_refused(authority: Authority, kind: str, body: str) -> None:
    with pytest.raises(Invalid):
        sign(authority, (kind, body))


def test_a_key_is_not_what_its_outer_type_says(authority: Authority, key: tuple[str, str]) -> None:
    with pytest.raises(PorticoError):
        sign(authority, ("ssh-rsa", key[1]))


def test_a_certificate_is_not_signed_again(authority: Authority, key: tuple[str, str]) -> None:
    kind, body, *_ = sign(authority, key).split()
    with pytest.raises(PorticoError):
        sign(authority, (kind, body))


def test_a_host_certificate_is_a_hosts(authority: Authority, key: tuple[str, str]) -> None:
    until = datetime.now(UTC) + timedelta(days=1)
    text = authority.sign_host(f"{' '.join(key)} root@somewhere\n", principals=["portico-session"], valid_until=until)
    listing = read_certificate(text)
    assert listing.type == "ssh-ed25519-cert-v01@openssh.com host certificate"
    assert listing.principals == ("portico-session",)
    assert listing.extensions == frozenset()
    assert listing.ca_fingerprint == compute_fingerprint(authority.host_public.split()[1])
    assert authority.host_public != authority.user_public


@pytest.mark.parametrize("principals", [[], [""], ["a,b"], ["*"], ["a\nb"], ["-h"]])
def test_a_host_without_a_name_gets_none(authority: Authority, key: tuple[str, str], principals: list[str]) -> None:
    with pytest.raises(Invalid):
        authority.sign_host(" ".join(key), principals=principals, valid_until=datetime.now(UTC) + timedelta(days=1))


@pytest.mark.parametrize(
    ("old", "new"),
    [("alice", "bob"), ("Serial: 7", "Serial: 8"), ("permit-pty", "no-pty"), ("192.0.2.7/32", "0.0.0.0/0")],
)
def test_what_was_signed_otherwise_is_given_to_nobody(
    authority: Authority, key: tuple[str, str], monkeypatch: pytest.MonkeyPatch, old: str, new: str
) -> None:
    real = module._run_keygen

    def lie(*arguments: str, given: str = "") -> str:
        text = real(*arguments, given=given)
        return text.replace(old, new) if "-L" in arguments else text

    monkeypatch.setattr(module, "_run_keygen", lie)
    with pytest.raises(PorticoError, match="something else"):
        sign(authority, key)


def test_the_keys_are_made_once_and_private(tmp_path: Path) -> None:
    folder = tmp_path / "ssh"
    found: list[tuple[str, str]] = []

    def start() -> None:
        authority = Authority(folder)
        found.append((authority.user_public, authority.host_public))

    threads = [threading.Thread(target=start) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    start()
    assert len(found) == 5
    assert len(set(found)) == 1
    assert sorted(path.name for path in folder.iterdir()) == ["host_ca", "user_ca"]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in folder.iterdir())


def test_no_ssh_keygen_and_no_folder_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(Unavailable, match="can't be used"):
        _ = Authority(tmp_path / "file" / "ssh").user_public
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="not installed"):
        _ = Authority(tmp_path / "ssh").user_public


def test_an_ssh_keygen_that_hangs_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "ssh-keygen"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(module, "TIMEOUT_S", 0.1)
    with pytest.raises(Unavailable, match="can't be run"):
        _ = Authority(tmp_path / "ssh").user_public


# the listing


def test_a_listing_is_read() -> None:
    listing = parse_listing(LISTING)
    assert listing.principals == ("alice",)
    assert listing.critical == ("source-address 192.0.2.7/32,2001:db8::1/128",)
    assert listing.extensions == {"permit-pty", "permit-agent-forwarding"}
    assert listing.valid_until == datetime(2030, 1, 1, 8, tzinfo=UTC)


def test_a_listing_of_one_without_bounds_is_read() -> None:
    text = LISTING.replace("from 2026-01-01T00:00:00 to 2030-01-01T08:00:00", "forever")
    text = text.replace("Critical Options: \n                source-address 192.0.2.7/32,2001:db8::1/128", "X: y")
    with pytest.raises(Invalid):
        parse_listing(text)
    listing = parse_listing(text.replace("X: y", "Critical Options: (none)"))
    assert (listing.valid_from, listing.valid_until, listing.critical) == (None, None, ())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Serial: 7", "Serial: seven"),
        ("Serial: 7", "Serial 7"),
        ("Serial: 7", "Serial: 7\n        Serial: 8"),
        ("        Serial: 7\n", ""),
        ("from 2026", "after 2026"),
        ("2026-01-01T00:00:00", "2026-01-01"),
        ('"portico:alice:7"', "portico:alice:7"),
        ("Principals: ", "Principals: some"),
        ("ED25519-CERT SHA256:DoYqR4OdL0WKBl9XI6zOOaldjoiGvW/n1yxpIeGnL0E", "none"),
        ("Signing CA", "Signed by"),
    ],
)
def test_a_listing_that_is_not_understood_is_refused(old: str, new: str) -> None:
    assert old in LISTING
    with pytest.raises(Invalid):
        parse_listing(LISTING.replace(old, new))


@pytest.mark.parametrize("text", ["", "ssh-ed25519 AAAA", "two\nlines", "a\x1b[1m"])
def test_what_is_no_certificate_is_refused(text: str) -> None:
    with pytest.raises(Invalid):
        read_certificate(text)
