"""Public keys as people bring them: read, refused with a sentence that helps, and never passed on as they came.

What leaves here is one of seven kinds, base64 that was decoded and encoded anew, and a comment of printable characters:
no text can become a second line or an option of ``authorized_keys`` (sshd(8)). Nothing that was refused is repeated in
an error: it may be the private half.
"""

from __future__ import annotations

import base64
import binascii
import ipaddress
import os
import re
import subprocess
from dataclasses import dataclass
from typing import Final, NoReturn

from portico.errors import Invalid, Unavailable

KIND_NAMES: Final = {
    "ssh-ed25519": "ED25519",
    "ecdsa-sha2-nistp256": "ECDSA",
    "ecdsa-sha2-nistp384": "ECDSA",
    "ecdsa-sha2-nistp521": "ECDSA",
    "ssh-rsa": "RSA",
    "sk-ssh-ed25519@openssh.com": "ED25519 on a security key",
    "sk-ecdsa-sha2-nistp256@openssh.com": "ECDSA on a security key",
}
"""The kinds that are taken, and what people call them."""

TEXT_LIMIT: Final = 16 * 1024
"""Characters; the longest key that OpenSSH reads, RSA with 16384 bits, has 2,800."""
RSA_BITS_MIN: Final = 2048
"""NIST SP 800-57 part 1, table 2: less is below 112 bits of strength."""
SOURCES_MAX: Final = 32
KEYGEN_TIMEOUT_S: Final = 10.0

MAKE_ONE: Final = "Make one with: ssh-keygen -t ed25519"

_PRIVATE: Final = re.compile(
    r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY"  # PEM, PKCS #8, OpenSSH
    r"|BEGIN SSH2 (ENCRYPTED )?PRIVATE KEY"  # ssh.com
    r"|PuTTY-User-Key-File-"
    r"|SSH PRIVATE KEY FILE FORMAT"  # SSH1
    r"|b3BlbnNzaC1rZXktdjEA"  # "openssh-key-v1\0" in base64: OpenSSH's without its first line
)
_RFC4716_BEGIN: Final = "---- BEGIN SSH2 PUBLIC KEY ----"
_RFC4716_END: Final = "---- END SSH2 PUBLIC KEY ----"
_SSH1: Final = re.compile(r"\d{3,5} \d+ \d{100,}")
_PLAIN_FIELDS: Final = {
    "ssh-ed25519": 1,  # RFC 8709, section 4: the key
    "ecdsa-sha2-nistp256": 2,  # RFC 5656, section 3.1: the curve and a point
    "ecdsa-sha2-nistp384": 2,
    "ecdsa-sha2-nistp521": 2,
    "ssh-rsa": 2,  # RFC 4253, section 6.6: e and n
    "sk-ssh-ed25519@openssh.com": 2,  # OpenSSH, PROTOCOL.u2f: as above, and the application
    "sk-ecdsa-sha2-nistp256@openssh.com": 3,
}
"""How many strings follow the kind's name in the blob."""
_SHOWN: Final = re.compile(r"(\d+) (SHA256:[A-Za-z0-9+/]{43}) ")


@dataclass(frozen=True)
class PublicKey:
    """A public key: its kind, its blob in base64, and what its owner calls it."""

    kind: str
    body: str
    comment: str

    @property
    def line(self) -> str:
        """The key as a file ending in .pub has it."""
        return f"{self.kind} {self.body} {self.comment}".rstrip()


def decode_key_file(data: bytes) -> str:
    """Return the text of a key's file, as Windows writes it too: UTF-16 where PowerShell's ``>`` made it.

    Raises:
        Invalid: It is no text.
    """
    try:
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError:
        _refuse("This file is no text, so no public key.", "Choose the file that ends in .pub.")


def parse_public_key(text: str) -> PublicKey:
    """Return the one public key in a text: a line as in a ``.pub`` file, or a file of RFC 4716 (PuTTYgen's).

    Raises:
        Invalid: It is anything else; the message says what, the hint what to bring instead. Field ``key``.
    """
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").strip(" \t\r\n")
    if not text:
        _refuse("There is no key here.", f"Paste the line of a file that ends in .pub. {MAKE_ONE}")
    if _PRIVATE.search(text):
        _refuse(
            "This is the private half of a key: never give it to anybody.",
            "Paste the file that ends in .pub. With PuTTY: the field at the top of PuTTYgen's window.",
            "It was not kept. If anybody else could have seen it, make a new key.",
        )
    if len(text) > TEXT_LIMIT:
        _refuse("This is too long for a public key.", "Paste the one line of a file that ends in .pub.")
    if text.startswith(_RFC4716_BEGIN):
        body, comment = _parse_rfc4716(text)
        blob = _decode(body)
        return _check(_read_kind(blob), blob, comment)
    if "\n" in text:
        _refuse_lines(text)
    kind, body, comment = (*re.split(r"[ \t]+", text, maxsplit=2), "", "")[:3]
    if kind not in KIND_NAMES:
        _refuse_kind(text, kind)
    blob = _decode(body)
    if _read_kind(blob) != kind:
        _refuse("This key says one kind and is of another.", "Copy the whole line of the .pub file again.")
    return _check(kind, blob, comment)


def _refuse(message: str, hint: str, why: str = "") -> NoReturn:
    raise Invalid(message, why=why, hint=hint, field="key")


def _refuse_lines(text: str) -> NoReturn:
    lines = [line for line in text.split("\n") if line.strip()]
    if sum(line.startswith(tuple(KIND_NAMES)) for line in lines) > 1:
        _refuse("These are several keys.", "Add them one after the other, each with a label of its own.")
    _refuse("A public key is one line.", "Copy it without line breaks, or upload the .pub file itself.")


def _refuse_kind(text: str, kind: str) -> NoReturn:
    if "-cert-v" in kind:
        _refuse(
            "This is a certificate, not a key.", "Bring the key that it was signed for: the .pub file without -cert."
        )
    if kind == "ssh-dss":
        _refuse("DSA keys are too weak, and OpenSSH no longer takes them.", MAKE_ONE)
    if _SSH1.match(text):
        _refuse("This is a key for SSH 1, which is broken.", MAKE_ONE)
    if any(name in text for name in KIND_NAMES):
        _refuse(
            "There is something before the key.",
            "Begin with its kind, such as ssh-ed25519. Networks and an end are said in the fields for it.",
            "Options, as authorized_keys has them, are not taken.",
        )
    _refuse(
        "This is no public key that is taken here.",
        f"It begins with ssh-ed25519, ecdsa-sha2-, ssh-rsa or sk-. {MAKE_ONE}",
    )


def _parse_rfc4716(text: str) -> tuple[str, str]:
    """Return body and comment of a file of RFC 4716, section 3: headers, which a backslash continues, then base64."""
    lines = [line.strip() for line in text.split("\n")]
    if lines[-1] != _RFC4716_END or lines.count(_RFC4716_END) > 1:
        _refuse("This is not one whole key file.", f"It ends with the line {_RFC4716_END}. Add several one by one.")
    body, comment, header = [], "", ""
    for line in lines[1:-1]:
        header += line
        if header.endswith("\\"):
            header = header[:-1]
            continue
        name, colon, value = header.partition(":")
        if not colon:
            body.append(header)
        elif name.lower() == "comment":
            comment = value.strip().strip('"')
        header = ""
    return "".join(body), comment


def _decode(body: str) -> bytes:
    try:
        blob = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        _refuse_broken()
    return blob or _refuse_broken()


def _refuse_broken(why: str = "") -> NoReturn:
    _refuse("This key is cut short or changed.", "Copy the whole line of the .pub file again, or upload the file.", why)


def _read_strings(blob: bytes) -> list[bytes]:
    """Return the strings that a blob consists of (RFC 4251, section 5), to its very last byte."""
    found, at = [], 0
    while at < len(blob):
        end = at + 4 + int.from_bytes(blob[at : at + 4], "big")
        if at + 4 > len(blob) or end > len(blob):
            _refuse_broken()
        found.append(blob[at + 4 : end])
        at = end
    return found


def _read_kind(blob: bytes) -> str:
    strings = _read_strings(blob)
    return strings[0].decode("ascii", "replace") if strings else ""


def _check(kind: str, blob: bytes, comment: str) -> PublicKey:
    """Return the key.

    Raises:
        Invalid: It is of no kind that is taken, weak, or not what its kind consists of; or its comment is no line.
    """
    if kind not in KIND_NAMES:
        _refuse_kind(kind, kind)
    fields = _read_strings(blob)[1:]
    if len(fields) != _PLAIN_FIELDS[kind]:
        _refuse_broken("There is something in it that is not of the key." if len(fields) > _PLAIN_FIELDS[kind] else "")
    if kind == "ssh-rsa":
        _check_rsa(*(int.from_bytes(field, "big") for field in fields))
    comment = comment.strip()
    if not comment.isprintable():
        _refuse(
            "The comment after the key has characters that can't be shown.",
            "Leave out what stands after the key, and write a label instead.",
        )
    return PublicKey(kind, base64.b64encode(blob).decode(), comment)


def _check_rsa(exponent: int, modulus: int) -> None:
    if (bits := modulus.bit_length()) < RSA_BITS_MIN:
        _refuse(
            f"An RSA key with {bits} bits is too weak.",
            "Make one with: ssh-keygen -t ed25519 (or -t rsa -b 3072)",
            f"{RSA_BITS_MIN} is the least, 3072 is recommended.",
        )
    if exponent < 3 or exponent % 2 == 0:
        _refuse_broken()


def check_with_openssh(kind: str, body: str) -> tuple[int, str]:
    """Return the bits and the fingerprint (``SHA256:…``) of a key that was parsed, as OpenSSH tells them.

    Raises:
        Invalid: OpenSSH doesn't read it.
        Unavailable: There is no ssh-keygen, or it doesn't answer.
    """
    try:
        done = subprocess.run(
            ["ssh-keygen", "-l", "-E", "sha256", "-f", "-"],
            input=f"{kind} {body}\n",
            capture_output=True,
            text=True,
            timeout=KEYGEN_TIMEOUT_S,
            check=False,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
        )
    except (OSError, subprocess.TimeoutExpired) as problem:
        raise Unavailable(
            "The key can't be checked now.",
            why=f"ssh-keygen: {problem}",
            hint="Ask your administrator whether openssh-client is installed.",
        ) from None
    shown = _SHOWN.match(done.stdout)
    if done.returncode or not shown:
        _refuse_broken("OpenSSH can't read it.")
    return int(shown[1]), shown[2]


def parse_sources(text: str) -> tuple[str, ...]:
    """Return the networks in a text in CIDR notation, each once: blanks, commas or lines are between them.

    An address is a network of one; bits of an address beyond its network's are dropped. An IPv4 address in IPv6's
    clothes (RFC 4291, 2.5.5.2) becomes IPv4, as which sshd sees it.

    Raises:
        Invalid: One of them is none, or there are too many. Field ``sources``.
    """
    words = [word for word in re.split(r"[\s,;]+", text) if word]
    if len(words) > SOURCES_MAX:
        raise Invalid(f"A key can have {SOURCES_MAX} networks at most.", field="sources", hint="Join some of them.")
    return tuple(dict.fromkeys(str(_parse_network(word)) for word in words))


def _parse_network(word: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    try:
        network = ipaddress.ip_network(word, strict=False)
    except ValueError:
        network = None
    if network is None or "%" in word:
        raise Invalid(
            f"{word[:60]!r} is no network and no address.",
            hint="Write 192.0.2.0/24, 2001:db8::/32 or a single address, with blanks between them.",
            field="sources",
        )
    if isinstance(network, ipaddress.IPv6Network) and network.prefixlen >= 96:
        mapped = network.network_address.ipv4_mapped
        if mapped is not None:
            return ipaddress.IPv4Network((mapped, network.prefixlen - 96))
    return network
