"""Passwords and tokens: hashing, checking, and what a password must be (NIST SP 800-63B, 5.1.1.2: length, no rules)."""

from __future__ import annotations

import hashlib
import secrets
import threading
from typing import Final

from argon2 import PasswordHasher, Type
from argon2.exceptions import InvalidHashError, VerificationError

from portico.errors import Invalid, TooMany

MAX_LENGTH_BYTES: Final = 1024
"""More would only make hashing slow; nobody types it."""
HASHES_AT_ONCE: Final = 2
HASH_WAIT_S: Final = 5.0
COMMON: Final = frozenset(
    [
        "123456789012",
        "passwordpassword",
        "password1234",
        "password12345",
        "qwertyuiop12",
        "administrator",
        "111111111111",
        "iloveyou1234",
        "letmeinletmein",
        "changemechangeme",
        "welcome12345",
        "qwerty123456",
        "000000000000",
        "abcdefghijkl",
    ]
)

_hasher = PasswordHasher(time_cost=3, memory_cost=64 * 1024, parallelism=4, type=Type.ID)  # RFC 9106, 4, second choice
_at_once = threading.BoundedSemaphore(HASHES_AT_ONCE)
_NOBODYS: Final = _hasher.hash(secrets.token_urlsafe())


def check_password(password: str, name: str, min_length: int) -> None:
    """Do nothing if this may be a password of ``name``.

    Raises:
        Invalid: It is too short, too long, the user's name or one that everybody tries.
    """
    if len(password) < min_length:
        raise Invalid(
            f"The password is too short: it needs {min_length} characters.",
            hint="A few words that only you would put together are easy to keep in mind.",
            field="password",
        )
    if len(password.encode()) > MAX_LENGTH_BYTES:
        raise Invalid("The password is too long.", field="password")
    if password.lower() in COMMON or name.lower() * 3 in password.lower() * 2 or len(set(password)) < 4:
        raise Invalid("This password is among the first that anybody would try.", field="password")


def hash_password(password: str) -> str:
    """Return the argon2id hash, with its parameters.

    Raises:
        TooMany: Too many are being hashed already: a flood must not take the machine's memory.
    """
    with _Turn():
        return _hasher.hash(password)


def verify_password(password: str, stored: str | None) -> bool:
    """Return whether it is the password; it takes as long where there is none to compare with.

    Raises:
        TooMany: As hash_password.
    """
    with _Turn():
        try:
            return _hasher.verify(stored or _NOBODYS, password[:MAX_LENGTH_BYTES]) and stored is not None
        except (VerificationError, InvalidHashError):
            return False


def needs_rehash(stored: str) -> bool:
    """Return whether it was hashed with other parameters than today's."""
    return _hasher.check_needs_rehash(stored)


def make_token(prefix: str = "") -> str:
    """Return 256 random bits as text fit for a URL, a header and a cookie."""
    return prefix + secrets.token_urlsafe(32)


def hash_token(token: str) -> str:
    """Return what the store keeps of a token; random 256 bits need no salt and no slowness."""
    return hashlib.sha256(token.encode()).hexdigest()


class _Turn:
    def __enter__(self) -> None:
        if not _at_once.acquire(timeout=HASH_WAIT_S):
            raise TooMany("Too many people are signing in at this moment.", hint="Try again.", retry_after_s=5)

    def __exit__(self, *_: object) -> None:
        _at_once.release()
