"""portico.ssh.keys: real keys of every kind, what is refused and how, and that nothing becomes a line of its own."""

from __future__ import annotations

import base64
import ipaddress
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from portico.errors import Invalid, Unavailable
from portico.ssh import keys
from portico.ssh.keys import KIND_NAMES, check_with_openssh, decode_key_file, parse_public_key, parse_sources

ED25519 = "AAAAC3NzaC1lZDI1NTE5AAAAIPKQKyGw8NcQxqMuYVWDQcznZWEtrsD91kLEsgCTE4Gb"
LINE = f"ssh-ed25519 {ED25519} alice@laptop"

Generate = Callable[..., Path]


def pack(*strings: bytes) -> str:
    """Return the base64 of a blob of these strings."""
    return base64.b64encode(b"".join(len(s).to_bytes(4, "big") + s for s in strings)).decode()


@pytest.fixture(scope="module")
def generate(tmp_path_factory: pytest.TempPathFactory) -> Generate:
    """Return a function that has ssh-keygen make a key, and returns the path of its private half."""

    def generate(*arguments: str) -> Path:
        path = tmp_path_factory.mktemp("key") / "id"
        command = ["ssh-keygen", "-q", "-N", "", "-C", "alice@laptop", "-f", str(path), *arguments]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        return path

    return generate


def refuse(text: str) -> Invalid:
    """Return how a text is refused as a key."""
    with pytest.raises(Invalid) as caught:
        parse_public_key(text)
    assert caught.value.field == "key" and caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    ("kind", "bits", "arguments"),
    [
        ("ssh-ed25519", 256, ["-t", "ed25519"]),
        ("ecdsa-sha2-nistp256", 256, ["-t", "ecdsa", "-b", "256"]),
        ("ecdsa-sha2-nistp384", 384, ["-t", "ecdsa", "-b", "384"]),
        ("ecdsa-sha2-nistp521", 521, ["-t", "ecdsa", "-b", "521"]),
        ("ssh-rsa", 2048, ["-t", "rsa", "-b", "2048"]),
        ("ssh-rsa", 3072, ["-t", "rsa", "-b", "3072"]),
    ],
)
def test_keys_that_ssh_keygen_makes(generate: Generate, kind: str, bits: int, arguments: list[str]) -> None:
    path = generate(*arguments)
    text = path.with_suffix(".pub").read_text()
    key = parse_public_key(text)
    assert (key.kind, key.comment, key.line) == (kind, "alice@laptop", text.strip())
    told = subprocess.run(["ssh-keygen", "-l", "-f", path], capture_output=True, text=True, check=True).stdout.split()
    assert check_with_openssh(key.kind, key.body) == (bits, told[1])
    export = ["ssh-keygen", "-e", "-m", "RFC4716", "-f", str(path)]
    exported = subprocess.run(export, capture_output=True, text=True, check=True).stdout
    assert exported.startswith("---- BEGIN SSH2 PUBLIC KEY ----\nComment: ")
    assert parse_public_key(exported).body == key.body
    assert parse_public_key(exported.replace("\n", "\r\n")).kind == kind
    assert "private half" in refuse(path.read_text()).message


@pytest.mark.parametrize(
    ("kind", "strings"),
    [
        ("sk-ssh-ed25519@openssh.com", [b"k" * 32, b"ssh:"]),
        (
            "sk-ecdsa-sha2-nistp256@openssh.com",
            [
                b"nistp256",
                bytes.fromhex(
                    "046b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296"  # SEC 2, the base point
                    "4fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5"
                ),
                b"ssh:",
            ],
        ),
    ],
)
def test_keys_of_security_keys(kind: str, strings: list[bytes]) -> None:
    body = pack(kind.encode(), *strings)
    assert parse_public_key(f"{kind} {body} token").kind == kind
    assert check_with_openssh(kind, body)[0] == 256


@pytest.mark.skipif(not shutil.which("puttygen"), reason="putty-tools is not installed")
@pytest.mark.parametrize(("kind", "bits"), [("ed25519", 255), ("rsa", 2048), ("ecdsa", 384)])
def test_what_puttygen_saves(tmp_path: Path, kind: str, bits: int) -> None:
    private = tmp_path / "x.ppk"
    quiet = ["--new-passphrase", "/dev/null", "--random-device", "/dev/urandom"]
    make = ["puttygen", "-q", "-t", kind, "-b", str(bits), "-o", str(private), "-C", 'a "quoted" comment', *quiet]
    subprocess.run(make, check=True)
    for form in ("public", "public-openssh"):
        public = tmp_path / f"{form}.pub"
        subprocess.run(["puttygen", str(private), "-O", form, "-o", str(public)], check=True)
        key = parse_public_key(public.read_text())
        assert "quoted" in key.comment
        assert check_with_openssh(key.kind, key.body)[1].startswith("SHA256:")
    assert "private half" in refuse(private.read_text()).message


def test_weak_keys_are_refused_with_what_to_make(generate: Generate) -> None:
    error = refuse(generate("-t", "rsa", "-b", "1024").with_suffix(".pub").read_text())
    assert "1024 bits" in error.message and "3072" in error.hint and "ed25519" in error.hint
    assert "DSA" in refuse(f"ssh-dss {pack(b'ssh-dss', b'p', b'q', b'g', b'y')} alice").message
    assert "SSH 1" in refuse(f"2048 65537 {'1' * 600} alice@laptop").message


@pytest.mark.parametrize(
    "text",
    [
        "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\n-----END OPENSSH PRIVATE KEY-----\n",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIE",
        "-----BEGIN EC PRIVATE KEY-----\nMIIE",
        "-----BEGIN PRIVATE KEY-----\nMIIE",
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIE",
        "---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----\nP2/",
        "PuTTY-User-Key-File-2: ssh-rsa\nEncryption: none",
        "PuTTY-User-Key-File-3: ssh-ed25519\r\nEncryption: none",
        "SSH PRIVATE KEY FILE FORMAT 1.1\n",
        "b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW",
        f"{LINE}\n-----BEGIN OPENSSH PRIVATE KEY-----\nMIIE",
        "x" * 20_000 + "-----BEGIN PRIVATE KEY-----",
    ],
)
def test_private_halves_are_told_apart_and_never_repeated(text: str) -> None:
    error = refuse(text)
    assert error.message.startswith("This is the private half") and ".pub" in error.hint
    assert not any(part in str(error.to_wire()) for part in ("MIIE", "b3Blb", "P2/"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no key here"),
        (" \r\n\t", "no key here"),
        ("hello", "no public key"),
        ("hello ssh", "no public key"),
        ("x" * 20_000, "too long"),
        (f"{LINE}\n{LINE}", "several keys"),
        (f"ssh-ed25519 {ED25519[:30]}\n{ED25519[30:]} alice", "one line"),
        (f'command="rm -rf /" {LINE}', "before the key"),
        (f'from="10.0.0.0/8",no-pty {LINE}', "before the key"),
        (f"cert-authority {LINE}", "before the key"),
        (f"ssh-ed25519-cert-v01@openssh.com {ED25519}", "certificate"),
        ("ssh-ed25519", "cut short"),
        ("ssh-ed25519 " + ED25519[:-5], "cut short"),
        ("ssh-ed25519 " + ED25519[:-4], "cut short"),
        ("ssh-ed25519 not!base64", "cut short"),
        ("ssh-ed25519 " + ED25519[:20] + "\r" + ED25519[20:], "cut short"),
        (f"ssh-rsa {ED25519} alice", "of another"),
        (f"ecdsa-sha2-nistp256 {ED25519} alice", "of another"),
        ("ssh-ed25519 " + pack(b"ssh-ed25519", b"k" * 32, b"more"), "cut short or changed"),
        ("ssh-ed25519 " + pack(b"ssh-ed25519"), "cut short"),
        ("ssh-rsa " + pack(b"ssh-rsa", b"\x01", b"\xff" * 256), "cut short or changed"),
        (f"ssh-ed25519 {ED25519} a\rb", "can't be shown"),
        (f"ssh-ed25519 {ED25519} a\x1b[2Jb", "can't be shown"),
        (f"ssh-ed25519 {ED25519} a\u2028b", "can't be shown"),
        (f"ssh-ed25519 {ED25519} a\0b", "can't be shown"),
        ("---- BEGIN SSH2 PUBLIC KEY ----\n" + ED25519, "one whole key file"),
        (f"---- BEGIN SSH2 PUBLIC KEY ----\n{ED25519}\n---- END SSH2 PUBLIC KEY ----\n" * 2, "one whole key file"),
        (f"---- BEGIN SSH2 PUBLIC KEY ----\n{pack(b'ssh-dss')}\n---- END SSH2 PUBLIC KEY ----", "DSA"),
        ("---- BEGIN SSH2 PUBLIC KEY ----\nComment: x\n---- END SSH2 PUBLIC KEY ----", "cut short"),
    ],
)
def test_what_is_refused_says_why(text: str, words: str) -> None:
    assert words in refuse(text).message


def test_a_comment_may_go_on_in_a_second_line_of_rfc_4716() -> None:
    text = f'---- BEGIN SSH2 PUBLIC KEY ----\nSubject: x\nComment: "a lo\\\nng one"\nx-own: y\n{ED25519[:40]}\n{ED25519[40:]}\n'
    key = parse_public_key(text + "---- END SSH2 PUBLIC KEY ----")
    assert (key.kind, key.body, key.comment) == ("ssh-ed25519", ED25519, "a long one")


@pytest.mark.parametrize(
    "text", [LINE, f"\ufeff{LINE}\r\n", f"\n  {LINE}\n\n", LINE.replace(" ", "\t"), LINE.replace(" ", "  ")]
)
def test_blanks_around_a_key_do_no_harm(text: str) -> None:
    assert parse_public_key(text).line == LINE


def test_files_as_windows_writes_them() -> None:
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        assert parse_public_key(decode_key_file(LINE.encode(encoding))).line == LINE
    for data in (b"\x89PNG\xff", b"\xff\xfe\x00"):
        with pytest.raises(Invalid) as caught:
            decode_key_file(data)
        assert caught.value.field == "key"


def test_what_only_openssh_can_tell_is_refused_too() -> None:
    kind = "ecdsa-sha2-nistp256"
    key = parse_public_key(f"{kind} {pack(kind.encode(), b'nistp256', b'4' * 65)}")  # not a point of the curve
    with pytest.raises(Invalid) as caught:
        check_with_openssh(key.kind, key.body)
    assert caught.value.field == "key"


def test_without_ssh_keygen_no_key_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Unavailable, match="can't be checked"):
        check_with_openssh("ssh-ed25519", ED25519)


# No text becomes a second line or an option

PIECES = st.sampled_from(
    [
        LINE, "ssh-ed25519", "ssh-rsa", ED25519, " ", "\n", "\r", "\t", "\0", "\x85", "\u2028", '"', "\\", ",", "=", "#",
        'command="x"', "cert-authority ", "---- BEGIN SSH2 PUBLIC KEY ----\n", "\n---- END SSH2 PUBLIC KEY ----", "Comment: ",
    ]
)  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(st.one_of(st.text(), st.lists(st.one_of(PIECES, st.text(max_size=3)), max_size=8).map("".join)))
@example(LINE + "\n")
@example(f'---- BEGIN SSH2 PUBLIC KEY ----\nComment: "\\\n\\\n\n"\n{ED25519}\n---- END SSH2 PUBLIC KEY ----')
def test_no_text_becomes_another_line_or_an_option(text: str) -> None:
    try:
        key = parse_public_key(text)
    except Invalid as error:
        assert error.field == "key"
        return
    assert key.kind in KIND_NAMES
    assert re.fullmatch(r"[A-Za-z0-9+/]+={0,2}", key.body)
    assert key.comment.isprintable() and key.comment == key.comment.strip()
    assert len(key.line.splitlines()) == 1 and key.line.startswith(f"{key.kind} {key.body}")
    assert parse_public_key(key.line) == key, "what was taken once is taken again, unchanged"


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=80), st.integers(0, 60), st.binary(max_size=8))
def test_no_blob_breaks_the_reading(blob: bytes, at: int, other: bytes) -> None:
    real = base64.b64decode(ED25519)
    for data in (blob, real[:at] + other + real[at:], real[:at] + other + real[at + len(other) :]):
        try:
            key = parse_public_key(f"ssh-ed25519 {base64.b64encode(data).decode()}")
        except Invalid:
            continue
        assert base64.b64decode(key.body) == data


# Sources


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", ()),
        (" \n,", ()),
        ("192.0.2.7", ("192.0.2.7/32",)),
        ("192.0.2.7/24, 2001:DB8::1/32\n10.0.0.0/8;10.1.2.3/8", ("192.0.2.0/24", "2001:db8::/32", "10.0.0.0/8")),
        ("::1", ("::1/128",)),
        ("0.0.0.0/0 ::/0", ("0.0.0.0/0", "::/0")),
        ("10.0.0.0/255.0.0.0", ("10.0.0.0/8",)),
        ("::ffff:192.0.2.7", ("192.0.2.7/32",)),
        ("::ffff:192.0.2.0/120", ("192.0.2.0/24",)),
    ],
)
def test_sources_are_networks(text: str, found: tuple[str, ...]) -> None:
    assert parse_sources(text) == found


@pytest.mark.parametrize(
    "text", ["example.org", "10.0.0.0/33", "10.0.0", "300.1.1.1", "fe80::1%eth0", "*", "!10.0.0.1", "5", "010.0.0.1"]
)
def test_what_is_no_network_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="no network") as caught:
        parse_sources(f"192.0.2.0/24 {text}")
    assert caught.value.field == "sources" and repr(text) in caught.value.message


def test_sources_have_a_bound() -> None:
    assert len(parse_sources(" ".join(f"10.0.{n}.0/24" for n in range(keys.SOURCES_MAX)))) == keys.SOURCES_MAX
    with pytest.raises(Invalid, match="32") as caught:
        parse_sources(" ".join(f"10.0.{n}.0/24" for n in range(keys.SOURCES_MAX + 1)))
    assert caught.value.field == "sources"


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), st.lists(st.one_of(st.ip_addresses().map(str), st.text(max_size=4))).map(",".join)))
def test_sources_are_canonical_or_refused(text: str) -> None:
    try:
        found = parse_sources(text)
    except Invalid as error:
        assert error.field == "sources"
        return
    assert all(str(ipaddress.ip_network(network)) == network for network in found)
    assert parse_sources(" ".join(found)) == found
