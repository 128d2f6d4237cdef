"""What relays trust: a certificate of this installation's own, and the key that sessions' secrets are made with.

Both are made once, by whichever process needs them first, and stay: relays of running jobs know them.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import ssl
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from portico.config import Config
from portico.errors import Unavailable

SECRET_BYTES: Final = 32
LIFE: Final = timedelta(days=20 * 365)


def read_secret(config: Config) -> bytes:
    """Return what sessions' secrets are made with.

    Raises:
        Unavailable: It can't be read or made.
    """
    return _read_or_make(config, "secret", lambda: secrets.token_bytes(SECRET_BYTES))


def read_certificate(config: Config) -> str:
    """Return the certificate that relays trust, PEM.

    Raises:
        Unavailable: It can't be read or made.
    """
    pem = _read_or_make(config, "relay.pem", _make_pem).decode()
    return pem[pem.index("-----BEGIN CERTIFICATE") :]


def make_context(config: Config) -> ssl.SSLContext:
    """Return the rendezvous' TLS context.

    Raises:
        Unavailable: Its key can't be read or made.
    """
    read_certificate(config)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(_find_folder(config) / "relay.pem")
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
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "Portico relays")])
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
