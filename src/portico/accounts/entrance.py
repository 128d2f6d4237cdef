"""The last step of every sign-in, however somebody proved who they are, and the throttle before it.

It decides nothing about who may: its callers know.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

from portico.accounts import passwords
from portico.config import Config
from portico.errors import TooMany
from portico.model import USER_NAME, Identity, User, Via
from portico.store import Store, Transaction

FAILURE_WINDOW: Final = timedelta(minutes=15)
FAILURES_PER_PAIR: Final = 5
"""Of one account from one address; a person mistypes less often."""
FAILURES_PER_ACCOUNT: Final = 50
"""From everywhere: bounds a spread-out guess to about 5,000 a day, and needs many addresses to lock somebody out."""
FAILURES_PER_ADDRESS: Final = 50
"""Of all accounts: a whole institute may stand behind one address."""

SHARED_CODE: Final = "(a code)"
"""In the place of a name, and none that a user can have."""


class Entrance:
    """Sign-ins that begin, and attempts that fail.

    Args:
        clock: Returns the time, aware, in UTC.
    """

    def __init__(self, store: Store, config: Config, clock: Callable[[], datetime]) -> None:
        self._store = store
        self._config = config
        self._clock = clock

    def admit(self, tx: Transaction, user: User, address: str, browser: str) -> tuple[Identity, str]:
        """Sign somebody in, of whom the caller knows that it is them; return who, and the token for the cookie."""
        token, at = passwords.make_token(), self._clock()
        expires = at + timedelta(hours=self._config.sign_in_hours)
        tx.delete_expired(at, at - timedelta(hours=self._config.idle_hours))
        tx.delete_failures(at - FAILURE_WINDOW)
        sign_in_id = tx.add_sign_in(user.id, passwords.hash_token(token), at, expires, address, browser)
        tx.add_audit(user.name, "sign-in:add", user.name, "", address)
        return Identity(user.id, user.name, user.role, Via.COOKIE, sign_in_id, address), token

    def throttle(self, name: str, address: str) -> None:
        """Do nothing unless too many attempts failed.

        Raises:
            TooMany: They did; the attempt is not to be looked at.
        """
        since = self._clock() - FAILURE_WINDOW
        with self._store.read() as tx:
            too_many = (
                tx.count_failures(since, name=name, address=address) >= FAILURES_PER_PAIR
                or tx.count_failures(since, name=name) >= FAILURES_PER_ACCOUNT
                or tx.count_failures(since, address=address) >= FAILURES_PER_ADDRESS
            )
        if too_many:
            raise _make_too_many("ask your administrator for a new link.")

    def throttle_address(self, tx: Transaction, address: str) -> None:
        """Do nothing unless too many attempts failed from an address, at whatever.

        Raises:
            TooMany: They did; the attempt is not to be looked at.
        """
        if tx.count_failures(self._clock() - FAILURE_WINDOW, address=address) >= FAILURES_PER_ADDRESS:
            raise _make_too_many("ask the organiser.")

    def record_wrong_code(self, tx: Transaction, address: str) -> int:
        """Record that a code which many share was wrong; return how often lately from this address."""
        at = self._clock()
        tx.add_failure(SHARED_CODE, address, at)
        return tx.count_failures(at - FAILURE_WINDOW, name=SHARED_CODE, address=address)

    def record_failure(self, name: str, address: str) -> None:
        """Record that an attempt to sign in failed."""
        with self._store.begin() as tx:
            tx.add_failure(name, address, self._clock())
            tx.add_audit("", "sign-in:fail", name if USER_NAME.match(name) else "(not a user name)", "", address)


def _make_too_many(otherwise: str) -> TooMany:
    return TooMany(
        "Too many attempts failed.",
        hint=f"Try again in {FAILURE_WINDOW.seconds // 60} minutes, or {otherwise}",
        retry_after_s=FAILURE_WINDOW.total_seconds(),
    )
