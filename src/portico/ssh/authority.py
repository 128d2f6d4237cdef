"""The two certificate authorities of an installation, for users' keys and for hosts', and what they sign.

OpenSSH's own ``ssh-keygen`` makes the keys and signs; nothing here knows how a certificate is built. What it signed is
read back by ``ssh-keygen -L`` and compared with what was asked for, and given to nobody where the two differ.
It decides for nobody: who may have a certificate is asked before.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import ipaddress
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from portico.errors import Invalid, PorticoError, Unavailable
from portico.model import USER_NAME

TIMEOUT_S: Final = 10.0
"""Of one run of ssh-keygen, which takes milliseconds."""
CLOCK_STEP: Final = timedelta(minutes=5)
"""How far the clock of a host's client may be behind."""
USER_EXTENSIONS: Final = frozenset(
    {"permit-X11-forwarding", "permit-agent-forwarding", "permit-port-forwarding", "permit-pty", "permit-user-rc"}
)
"""What ssh-keygen(1) permits where nothing is said. Said all the same: then a later default changes nothing."""
_KIND: Final = re.compile(r"[a-z0-9-]{1,40}(@openssh\.com)?\Z")
_KEY_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:@-]{0,127}\Z")
_HOST: Final = re.compile(r"[a-z0-9][a-z0-9.-]{0,252}\Z")
_SERIAL_END: Final = 2**63
_TIME: Final = "%Y%m%d%H%M%S"


@dataclass(frozen=True)
class Listing:
    """What ``ssh-keygen -L`` says about a certificate; fingerprints are ``SHA256:…``.

    ``valid_from`` and ``valid_until`` are None where it is good for ever.
    """

    type: str
    fingerprint: str
    ca_fingerprint: str
    key_id: str
    serial: int
    valid_from: datetime | None
    valid_until: datetime | None
    principals: tuple[str, ...]
    critical: tuple[str, ...]
    extensions: frozenset[str]


class Authority:
    """Keeps the keys of the two authorities, and signs.

    Args:
        folder: Where the keys are, which nobody else may read; made with the first use, as they are.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._publics: dict[str, str] = {}

    @property
    def user_public(self) -> str:
        """The public key that sshd trusts for users' certificates, a line without its end.

        Raises:
            Unavailable: The keys can't be read or made.
        """
        return self._read_public("user_ca")

    @property
    def host_public(self) -> str:
        """The public key that clients trust for hosts' certificates, a line without its end.

        Raises:
            Unavailable: The keys can't be read or made.
        """
        return self._read_public("host_ca")

    def sign_user(
        self,
        kind: str,
        body: str,
        *,
        principal: str,
        serial: int,
        key_id: str,
        valid_from: datetime,
        valid_until: datetime,
        sources: Sequence[str] = (),
    ) -> str:
        """Return a certificate for a user's public key, a line without its end.

        Args:
            kind: The key's type, as ``ssh-ed25519``.
            body: The key, base64.
            principal: The one user for whom it is good. Without any it would be for everybody, and a comma would make
                two of one (CVE-2024-7594, CVE-2026-35414).
            serial: Its number.
            key_id: What sshd writes into its log.
            valid_from: Begin; aware, as ``valid_until``; parts of a second are cut off.
            valid_until: End.
            sources: Networks, CIDR, from which alone it is good; none: from everywhere.

        Raises:
            Invalid: Something of that can't be in a certificate.
            Unavailable: ssh-keygen is not there, or failed.
        """
        if not USER_NAME.match(principal):
            raise Invalid(f"{principal[:40]!r} can't be the principal of a certificate.")
        critical = (f"source-address={','.join(_check_source(text) for text in sources)}",) if sources else ()
        options = [*critical, *sorted(USER_EXTENSIONS)]
        return self._sign(
            "user_ca", kind, body, ["-O", "clear", *(word for option in options for word in ("-O", option))],
            principals=(principal,), serial=serial, key_id=key_id, valid_from=valid_from, valid_until=valid_until,
            critical=tuple(option.replace("=", " ", 1) for option in critical), extensions=USER_EXTENSIONS,
        )  # fmt: skip

    def sign_host(self, public_text: str, *, principals: Sequence[str], valid_until: datetime) -> str:
        """Return a certificate for a host's public key, a line without its end; good from now on.

        Args:
            public_text: The key, as in a ``.pub`` file.
            principals: The names under which clients know the host; one at least.
            valid_until: End, aware.

        Raises:
            Invalid: Something of that can't be in a certificate.
            Unavailable: ssh-keygen is not there, or failed.
        """
        if not principals or not all(_HOST.match(name) for name in principals):
            raise Invalid("A host's certificate needs its names.")
        kind, _, rest = public_text.strip().partition(" ")
        return self._sign(
            "host_ca", kind, rest.partition(" ")[0], ["-h"],
            principals=tuple(principals), serial=0, key_id=f"host:{principals[0]}"[:128],
            valid_from=datetime.now(UTC) - CLOCK_STEP, valid_until=valid_until, critical=(), extensions=frozenset(),
        )  # fmt: skip

    def _sign(
        self,
        ca: str,
        kind: str,
        body: str,
        arguments: list[str],
        *,
        principals: tuple[str, ...],
        serial: int,
        key_id: str,
        valid_from: datetime,
        valid_until: datetime,
        critical: tuple[str, ...],
        extensions: frozenset[str],
    ) -> str:
        begin, end = (at.astimezone(UTC).replace(microsecond=0) for at in (valid_from, valid_until))
        fingerprint = _check_key(kind, body)
        if not _KEY_ID.match(key_id):
            raise Invalid(f"{key_id[:40]!r} can't be the id of a certificate.")
        if not 0 <= serial < _SERIAL_END:
            raise Invalid(f"{serial} can't be the serial number of a certificate.")
        if begin >= end:
            raise Invalid("A certificate must end after it begins.")
        ca_fingerprint = compute_fingerprint(self._read_public(ca).split(" ")[1])
        with tempfile.TemporaryDirectory(prefix="portico-sign-") as folder:  # 0700
            public = Path(folder) / "key.pub"
            public.write_text(f"{kind} {body} {key_id}\n")  # its comment is the certificate's too
            validity = f"{begin.strftime(_TIME)}:{end.strftime(_TIME)}"
            _run_keygen(
                "-q", "-s", str(self._folder / ca), "-I", key_id, "-n", ",".join(principals), "-z", str(serial),
                "-V", validity, *arguments, str(public),
            )  # fmt: skip
            try:
                certificate = (Path(folder) / "key-cert.pub").read_text().strip()
            except OSError as error:
                raise Unavailable("The certificate could not be signed.", why=str(error)) from error
        host = "-h" in arguments
        wanted = Listing(
            type=f"{_find_certificate_kind(kind)} {'host' if host else 'user'} certificate",
            fingerprint=fingerprint, ca_fingerprint=ca_fingerprint, key_id=key_id, serial=serial, valid_from=begin,
            valid_until=end, principals=principals, critical=critical, extensions=extensions,
        )  # fmt: skip
        if read_certificate(certificate) != wanted:
            raise PorticoError("ssh-keygen signed something else than was asked for.", hint="It was thrown away.")
        return certificate

    def _read_public(self, name: str) -> str:
        if name not in self._publics:
            self._make_key(name)
            kind, body = _run_keygen("-y", "-f", str(self._folder / name)).split()[:2]
            self._publics[name] = f"{kind} {body} portico-{name.replace('_', '-')}"
        return self._publics[name]

    def _make_key(self, name: str) -> None:
        """Make an authority's key, whole or not at all, and only once, whoever is first; its file is 0600."""
        path = self._folder / name
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if path.exists():
                return
            # In that folder: a link goes to the same file system alone.
            with tempfile.TemporaryDirectory(dir=self._folder, prefix=".making-") as folder:
                made = Path(folder) / "key"
                _run_keygen("-q", "-t", "ed25519", "-N", "", "-C", f"portico-{name.replace('_', '-')}", "-f", str(made))
                with open(made, "rb") as file:
                    os.fsync(file.fileno())
                with contextlib.suppress(FileExistsError):
                    os.link(made, path)
        except OSError as error:
            raise Unavailable(f"The file {path} can't be used.", why=error.strerror or str(error)) from error


def compute_fingerprint(body: str) -> str:
    """Return a public key's fingerprint, ``SHA256:…``, as ``ssh-keygen -l`` shows it."""
    digest = hashlib.sha256(base64.b64decode(body)).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def read_certificate(text: str) -> Listing:
    """Return what is in a certificate, a line.

    Raises:
        Invalid: It is none.
        Unavailable: ssh-keygen is not there, or failed.
    """
    line = text.strip()
    if not line.isprintable():
        raise Invalid("This is not a certificate.")
    return parse_listing(_run_keygen("-L", "-f", "-", given=f"{line}\n"))


def parse_listing(text: str) -> Listing:
    """Return what ``ssh-keygen -L`` wrote about one certificate, with TZ=UTC (sshkey_format_cert_validity in sshkey.c).

    Raises:
        Invalid: A line is missing, twice there, or not as it should be.
    """
    values: dict[str, str] = {}
    lists: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines()[1:]:  # the first is the file's name
        if line.startswith(" " * 16):
            lists.setdefault(name, []).append(line.strip())
            continue
        name, colon, value = line.strip().partition(":")
        if not colon or name in values:
            raise _unreadable(line)
        values[name] = value.strip()
    try:
        validity = re.fullmatch(r"from (\S+) to (\S+)", values["Valid"])
        if validity is None and values["Valid"] != "forever":
            raise _unreadable(values["Valid"])
        begin, end = (_parse_time(part) for part in validity.groups()) if validity else (None, None)
        key_id = re.fullmatch(r'"(.*)"', values["Key ID"])
        if key_id is None:
            raise _unreadable(values["Key ID"])
        return Listing(
            type=values["Type"],
            fingerprint=values["Public key"].split(" ")[1],
            ca_fingerprint=values["Signing CA"].split(" ")[1],
            key_id=key_id[1],
            serial=int(values["Serial"]),
            valid_from=begin,
            valid_until=end,
            principals=_get_list(values, lists, "Principals"),
            critical=_get_list(values, lists, "Critical Options"),
            extensions=frozenset(_get_list(values, lists, "Extensions")),
        )
    except (KeyError, IndexError, ValueError) as error:
        raise _unreadable(str(error)) from None


def _get_list(values: dict[str, str], lists: dict[str, list[str]], name: str) -> tuple[str, ...]:
    if values[name] not in ("", "(none)"):
        raise _unreadable(values[name])
    return tuple(lists.get(name, ()))


def _parse_time(text: str) -> datetime:
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=UTC)


def _unreadable(what: str) -> Invalid:
    return Invalid("What ssh-keygen says about a certificate is not understood.", why=repr(what[:100]))


def _check_key(kind: str, body: str) -> str:
    """Return the fingerprint of a key that can stand in a file of its own; what it is, is ssh-keygen's to check."""
    try:
        blob = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        blob = b""
    if not _KIND.match(kind) or not blob:
        raise Invalid("This is not a public key.", field="public_key")
    return compute_fingerprint(body)


def _find_certificate_kind(kind: str) -> str:
    """Return the type of a key's certificates (PROTOCOL.certkeys)."""
    name, _, domain = kind.partition("@")
    return f"{name}-cert-v01@{domain or 'openssh.com'}"


def _check_source(text: str) -> str:
    """Return a network as sshd reads it; with bits beyond its mask sshd would refuse the whole list (addrmatch.c)."""
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        raise Invalid(f"{text[:60]!r} is not a network.", hint="For example 192.0.2.7/32") from None


def _run_keygen(*arguments: str, given: str = "") -> str:
    """Return what ssh-keygen wrote.

    Raises:
        Invalid: It refused, and said why.
        Unavailable: It is not there, or takes too long.
    """
    # -V is read, and -L written, in the local time zone; older ones (before 9.1) know no other way to say UTC.
    env = {"PATH": os.environ.get("PATH", os.defpath), "TZ": "UTC", "LC_ALL": "C"}
    try:
        done = subprocess.run(
            ["ssh-keygen", *arguments], env=env, input=given, capture_output=True, text=True, errors="replace",
            timeout=TIMEOUT_S, check=False,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise Unavailable("ssh-keygen is not installed.", hint="It is part of OpenSSH's client.") from error
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable("ssh-keygen can't be run.", why=str(error)) from error
    if done.returncode:
        raise Invalid("ssh-keygen refused this key.", why=done.stderr.strip()[:200].replace("\n", " "))
    return done.stdout
