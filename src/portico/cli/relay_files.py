"""What relays trust: certificates of this installation's own, and the key that sessions' secrets are made with.

They are made once, by whichever process needs them first. The key stays; of the certificates there are always two, the
one in use and the next, and the next takes its turn after a year.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import ssl
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from portico.config import Config
from portico.errors import PorticoError, Unavailable

log = logging.getLogger(__name__)

SECRET_BYTES: Final = 32
IN_USE: Final = "relay.pem"
NEXT: Final = "next.pem"
LIFE: Final = timedelta(days=20 * 365)
RENEW_AFTER: Final = timedelta(days=365)
KNOWN_FOR: Final = timedelta(days=30)
"""How long the next certificate is given to sessions before it is used: longer than any of them lasts."""
LOOK_S: Final = 3600.0


def read_secret(config: Config) -> bytes:
    """Return what sessions' secrets are made with.

    Raises:
        Unavailable: It can't be read or made.
    """
    return _read_or_make(config, "secret", lambda: secrets.token_bytes(SECRET_BYTES))


def read_certificate(config: Config) -> str:
    """Return what relays trust, PEM: the certificate in use, and the next one, which takes its place some day.

    Raises:
        Unavailable: It can't be read or made.
    """
    pems = (_read_or_make(config, name, _make_pem).decode() for name in (IN_USE, NEXT))
    return "".join(pem[pem.index("-----BEGIN CERTIFICATE") :] for pem in pems)


class RelayTls:
    """The rendezvous' TLS context, for each new connection; it sees to it that the certificate is renewed.

    Every relay was given the next certificate with the one in use, so none is cut off.

    Raises:
        Unavailable: Its key can't be read or made.
    """

    def __init__(self, config: Config, clock: Callable[[], float] = time.time) -> None:
        self._config = config
        self._clock = clock
        read_certificate(config)
        self._path = _find_folder(config) / IN_USE
        self._looked_at = clock()
        self._context = self._make()

    def __call__(self) -> ssl.SSLContext:
        """Return it. Where the disk has trouble, the one of before."""
        if self._clock() - self._looked_at > LOOK_S:
            self._looked_at = self._clock()
            try:
                if self._renew():
                    self._context = self._make()
            except (OSError, PorticoError) as error:
                log.warning("the certificate that relays trust is not renewed: %s", error)
        return self._context

    def _renew(self) -> bool:
        """Put the next certificate in the place of one that has been in use for long; return whether it was time."""
        following = self._path.with_name(NEXT)
        in_use_s, known_s = (self._clock() - path.stat().st_mtime for path in (self._path, following))
        if in_use_s < RENEW_AFTER.total_seconds() or known_s < KNOWN_FOR.total_seconds():
            return False
        os.utime(following, (self._clock(), self._clock()))  # in use from now on
        os.replace(following, self._path)
        read_certificate(self._config)  # makes the one after it
        log.info("the certificate that relays trust was renewed")
        return True

    def _make(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self._path)
        return context


def _find_folder(config: Config) -> Path:
    return Path(config.state_dir) / "relay"


def _read_or_make(config: Config, name: str, make: Callable[[], bytes]) -> bytes:
    """Return a file's content; it is made whole, or not at all, and only once, whoever is first."""
    path = _find_folder(config) / name
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        if not path.exists():
            temporary = path.with_name(f".{name}.{os.getpid()}")
            temporary.unlink(missing_ok=True)
            with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(make())
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
            temporary.unlink()
        return path.read_bytes()
    except OSError as error:
        raise Unavailable(f"The file {path} can't be used.", why=error.strerror or str(error)) from error


def _make_pem() -> bytes:
    """Return a new key and a certificate that it signed itself, PEM."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, f"Portico relays {secrets.token_hex(4)}")])
    at = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(at - timedelta(days=1))  # nodes' clocks may be behind
        .not_valid_after(at + LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return private + certificate.public_bytes(serialization.Encoding.PEM)
