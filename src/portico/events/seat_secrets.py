"""Secrets of seats: made, computed from a form token, kept as hashes (docs/decisions/0010-seat-secrets.md).

Beside them the entry code of an event, which many know and which lets nobody into a seat that is somebody's: it is kept
as it is, because the organiser shows it again and again.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from typing import Final

from portico.accounts import passwords

ALPHABET: Final = "abcdefghijkmnpqrstuvwxyz23456789"
"""32 characters, without l, o, 0 and 1: they are typed from paper."""
LENGTH: Final = 16
UNSET: Final = ""
"""Of a seat that went to somebody who waited: the next form with their token sets it; nothing else lets in."""
TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{43}\Z")
_FAST: Final = "sha256:"


def make_secret() -> str:
    """Return a new random secret as people read it, in groups of four."""
    return _write(secrets.token_bytes(LENGTH))


def derive_secret(token: str, event_id: int, seat_name: str) -> str:
    """Return the secret of a seat that was claimed by the form with this token."""
    return _write(hmac.digest(token.encode(), f"seat secret\0{event_id}\0{seat_name}".encode(), "sha256"))


def _write(data: bytes) -> str:
    text = "".join(ALPHABET[byte % len(ALPHABET)] for byte in data[:LENGTH])
    return "-".join(text[at : at + 4] for at in range(0, len(text), 4))


def hash_secret(seat_name: str, secret: str) -> str:
    """Return what the store keeps of a secret that was made here."""
    return _FAST + hashlib.sha256(f"{seat_name}\0{_clean(secret)}".encode()).hexdigest()


def hash_foreign_secret(secret: str) -> str:
    """Return what the store keeps of a secret that somebody chose, which may be a weak one."""
    return passwords.hash_password(secret)


def verify_secret(seat_name: str, secret: str, stored: str | None) -> bool:
    """Return whether it is the seat's secret; small letters, dashes and spaces are as people type them.

    Raises:
        TooMany: As passwords.verify_password.
    """
    if stored and not stored.startswith(_FAST):
        return passwords.verify_password(secret.strip(), stored)
    return hmac.compare_digest(hash_secret(seat_name, secret), stored or "")


def make_code() -> str:
    """Return a code that is hard to guess and easy to type: 40 bits."""
    return _write(secrets.token_bytes(8))


def clean_code(code: str) -> str:
    """Return what counts of a code as people type it."""
    return re.sub(r"[\s-]", "", code).casefold()


def verify_code(given: str, code: str) -> bool:
    """Return whether it is the event's entry code, in a time that does not tell how much of it is right."""
    digests = (hashlib.sha256(clean_code(text).encode()).digest() for text in (given, code))
    return hmac.compare_digest(*digests)


def _clean(secret: str) -> str:
    return re.sub(r"[\s-]", "", secret).lower()
