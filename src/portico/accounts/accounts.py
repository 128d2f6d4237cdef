"""Users and their sign-ins: who is who, who may what, and what is cut off when that changes.

Methods that take ``who`` act on behalf of that request: on what is its own, or with a permission. Each change is in
the audit log in the same transaction. After a change that takes something away, ``on_cut`` is told the tags of the
streams that must end (docs/protocol.md).
"""

from __future__ import annotations

import contextlib
import os
import pwd
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any, Final

from portico.accounts import passwords
from portico.accounts.entrance import Entrance
from portico.accounts.permissions import Permission, require
from portico.accounts.posix import PosixAccounts
from portico.config import Config
from portico.errors import Conflict, Forbidden, Invalid, NotFound, NotSignedIn
from portico.model import USER_NAME, AuditEntry, Identity, Role, SignIn, User, UserState, Via, now
from portico.store import Store, Transaction

CODE_DAYS: Final = 7
TOKEN_DAYS_MAX: Final = 365
LAST_SEEN_STEP: Final = timedelta(minutes=1)
RESERVED_NAMES: Final = frozenset({"root", "portico"})

ROOT: Final = Identity(0, "root", Role.ADMIN, Via.SOCKET)


class Accounts:
    """Users, passwords, sign-ins, API tokens and the audit log.

    Args:
        posix: The POSIX accounts behind the users.
        on_cut: Called after the commit with tags such as ``sign-in:3`` or ``user:alice``.
        clock: Returns the time, aware, in UTC.
    """

    def __init__(
        self,
        store: Store,
        config: Config,
        posix: PosixAccounts,
        on_cut: Callable[[list[str]], None] = lambda tags: None,
        clock: Callable[[], datetime] = now,
    ) -> None:
        self._store = store
        self._config = config
        self._posix = posix
        self.on_cut = on_cut
        self._clock = clock
        self.entrance = Entrance(store, config, clock)

    # users

    def add_user(self, who: Identity, name: str, role: Role = Role.USER) -> str:
        """Add a user; return the one-time code with which they set a password.

        Raises:
            Invalid: The name can't be a user's.
            Conflict: There is one of that name, or this Portico is for one person.
        """
        require(who, Permission.USER_ADD)
        self._check_new_name(name)
        code = passwords.make_token()
        at = self._clock()
        with self._store.begin() as tx:
            if tx.find_user(name):
                raise Conflict(f"There is a user {name} already.", field="name")
            user = tx.add_user(name, role, UserState.INVITED, at)
            tx.set_code(user.id, passwords.hash_token(code), at + timedelta(days=CODE_DAYS))
            tx.add_audit(who.user_name, Permission.USER_ADD, name, f"role {role}", who.address)
        return code

    def _check_new_name(self, name: str) -> None:
        if not USER_NAME.match(name):
            raise Invalid(
                f"{name[:40]!r} can't be a user name.",
                why="It becomes the POSIX account's name too.",
                hint="Use a small letter, then small letters, digits, - and _; 32 at most.",
                field="name",
            )
        if name in RESERVED_NAMES:
            raise Conflict(f"The name {name} is taken by the system.", field="name")
        if not self._config.multi_user and name != pwd.getpwuid(os.geteuid()).pw_name:
            raise Conflict(
                "This Portico runs without root, for its owner only.",
                hint="Start it as root to have more users.",
                field="name",
            )

    def renew_code(self, who: Identity, name: str) -> str:
        """Return a new one-time code, for a forgotten password; older codes end."""
        require(who, Permission.USER_LINK)
        code = passwords.make_token()
        with self._store.begin() as tx:
            user = _get(tx, name)
            tx.set_code(user.id, passwords.hash_token(code), self._clock() + timedelta(days=CODE_DAYS))
            tx.add_audit(who.user_name, Permission.USER_LINK, name, "", who.address)
        return code

    def describe_code(self, code: str) -> User:
        """Return whose one-time code it is.

        Raises:
            NotFound: It was used, has expired, or never was.
        """
        with self._store.read() as tx:
            user = tx.find_code(passwords.hash_token(code), self._clock())
        if user is None:
            raise _bad_code()
        return user

    def enrol(self, code: str, password: str, address: str) -> User:
        """Set the password with a one-time code, which is used up; all earlier sign-ins end.

        Raises:
            NotFound: The code is no good.
            Invalid: The password is no good; the code stays.
            Forbidden: The user is locked.
        """
        user = self.describe_code(code)
        passwords.check_password(password, user.name, self._config.password_min_length)
        password_hash = passwords.hash_password(password)
        with self._store.begin() as tx:
            again = tx.find_code(passwords.hash_token(code), self._clock())  # somebody may have been faster
            if again is None:
                raise _bad_code()
            if again.state is UserState.LOCKED:
                raise Forbidden("This account is locked.", hint="Ask your administrator.")
            tx.delete_codes(user.id)
            tx.delete_sign_ins(user.id)
            tx.set_password(user.id, password_hash)
            tx.set_user(user.id, state=UserState.ACTIVE)
            tx.add_audit(user.name, "user:enrol", user.name, "", address)
        self.on_cut([f"user:{user.name}"])
        return self.get_user(user.name)

    def change_password(self, who: Identity, old: str, new: str) -> None:
        """Change one's own password; one's other sign-ins end.

        Raises:
            Invalid: The old one is wrong, or the new one no good.
        """
        self.entrance.throttle(who.user_name, who.address)
        with self._store.read() as tx:
            stored = tx.find_password(who.user_id)
        if not passwords.verify_password(old, stored):
            self.entrance.record_failure(who.user_name, who.address)
            raise Invalid("The present password is wrong.", field="old")
        passwords.check_password(new, who.user_name, self._config.password_min_length)
        password_hash = passwords.hash_password(new)
        with self._store.begin() as tx:
            others = [s.id for s in tx.list_sign_ins(self._clock(), who.user_id) if s.id != who.sign_in_id]
            tx.set_password(who.user_id, password_hash)
            tx.delete_sign_ins(who.user_id, but=who.sign_in_id)
            tx.add_audit(who.user_name, "user:password", who.user_name, "", who.address)
        self.on_cut([f"sign-in:{sign_in_id}" for sign_in_id in others])

    def list_users(self, who: Identity) -> list[User]:
        """Return all users."""
        require(who, Permission.USER_LIST)
        with self._store.read() as tx:
            return tx.list_users()

    def get_user(self, name: str) -> User:
        """Return a user.

        Raises:
            NotFound: There is none of that name.
        """
        with self._store.read() as tx:
            return _get(tx, name)

    def set_role(self, who: Identity, name: str, role: Role) -> None:
        """Change what a user may do; their sign-ins and tokens end.

        Raises:
            Conflict: It is the last admin, or oneself.
        """
        require(who, Permission.USER_ROLE)
        with self._store.begin() as tx:
            user = _get(tx, name)
            if user.role is role:
                return
            self._refuse_oneself(who, user)
            self._refuse_last_admin(tx, user)
            tx.set_user(user.id, role=role)
            tx.delete_sign_ins(user.id)
            tx.delete_api_tokens(user.id)
            tx.add_audit(who.user_name, Permission.USER_ROLE, name, f"{user.role} to {role}", who.address)
        self.on_cut([f"user:{name}"])

    async def lock_user(self, who: Identity, name: str) -> None:
        """Lock a user: no way in, every stream cut; what runs goes on until its time is over.

        Raises:
            Conflict: It is the last admin, or oneself.
            Unavailable: The POSIX account could not be locked; the portal's is, all the same.
        """
        require(who, Permission.USER_LOCK)
        with self._store.begin() as tx:
            user = _get(tx, name)
            self._refuse_oneself(who, user)
            self._refuse_last_admin(tx, user)
            tx.set_user(user.id, state=UserState.LOCKED)
            tx.delete_codes(user.id)
            tx.delete_sign_ins(user.id)
            tx.delete_api_tokens(user.id)
            tx.add_audit(who.user_name, Permission.USER_LOCK, name, "", who.address)
        self.on_cut([f"user:{name}"])
        await self._lock_posix(name, True)

    async def unlock_user(self, who: Identity, name: str) -> None:
        """Unlock a user, who signs in with the password from before."""
        require(who, Permission.USER_LOCK)
        with self._store.begin() as tx:
            user = _get(tx, name)
            if user.state is not UserState.LOCKED:
                return
            has_password = tx.find_password(user.id) is not None
            tx.set_user(user.id, state=UserState.ACTIVE if has_password else UserState.INVITED)
            tx.add_audit(who.user_name, Permission.USER_LOCK, name, "unlocked", who.address)
        await self._lock_posix(name, False)

    async def _lock_posix(self, name: str, locked: bool) -> None:
        if self._config.multi_user:
            with contextlib.suppress(NotFound):  # never started anything, so there is no account yet
                await self._posix.lock(name, locked)

    async def remove_user(self, who: Identity, name: str, remove_home: bool) -> None:
        """Remove a user and the POSIX account, with all that runs; the home only if asked.

        Raises:
            Conflict: It is the last admin, or oneself.
            Unavailable: The POSIX account could not be removed; the user is locked then.
        """
        require(who, Permission.USER_REMOVE)
        user = self.get_user(name)
        if user.state is not UserState.LOCKED:
            await self.lock_user(who, name)
        if self._config.multi_user:
            with contextlib.suppress(NotFound):
                await self._posix.remove(name, remove_home)
        with self._store.begin() as tx:
            tx.delete_user(_get(tx, name))
            detail = "with home" if remove_home else "home kept"
            tx.add_audit(who.user_name, Permission.USER_REMOVE, name, detail, who.address)
        self.on_cut([f"user:{name}"])

    @staticmethod
    def _refuse_oneself(who: Identity, user: User) -> None:
        if who.user_id == user.id:
            raise Conflict("You can't do this to your own account.", hint="Ask another administrator.")

    @staticmethod
    def _refuse_last_admin(tx: Transaction, user: User) -> None:
        if user.role is Role.ADMIN and user.state is UserState.ACTIVE and tx.count_admins() <= 1:
            raise Conflict(f"{user.name} is the last administrator.", hint="Make somebody else one first.")

    # signing in

    def sign_in(self, name: str, password: str, address: str, browser: str) -> tuple[Identity, str]:
        """Return who it is, and the token for the cookie.

        Raises:
            TooMany: Too many attempts failed; even the right password is not looked at.
            NotSignedIn: Wrong name or password; which of the two is not told.
            Forbidden: The password is right, and the account is locked.
        """
        self.entrance.throttle(name, address)
        with self._store.read() as tx:
            user = tx.find_user(name)
            stored = tx.find_password(user.id) if user else None
        if not passwords.verify_password(password, stored) or user is None or stored is None:
            self.entrance.record_failure(name, address)
            raise NotSignedIn("The name or the password is wrong.", hint="A forgotten password: ask for a new link.")
        if user.state is UserState.LOCKED:
            raise Forbidden("This account is locked.", hint="Ask your administrator.")
        rehashed = passwords.hash_password(password) if passwords.needs_rehash(stored) else None
        with self._store.begin() as tx:
            tx.clear_failures(name, address)
            if rehashed:
                tx.set_password(user.id, rehashed)
            return self.entrance.admit(tx, user, address, browser)

    def authenticate(self, token: str, address: str) -> Identity:
        """Return who has this cookie.

        Raises:
            NotSignedIn: Nobody has.
        """
        with self._store.read() as tx:
            found = tx.find_sign_in(passwords.hash_token(token))
        return self._identify(found, address)

    def check_sign_in(self, sign_in_id: int) -> Identity:
        """Return who is signed in with this sign-in, if it still lives.

        Raises:
            NotSignedIn: It has ended.
        """
        with self._store.read() as tx:
            found = tx.find_sign_in_by_id(sign_in_id)
        return self._identify(found, found[1].address if found else "")

    def _identify(self, found: tuple[User, SignIn] | None, address: str) -> Identity:
        at = self._clock()
        if found is None:
            raise NotSignedIn("You are not signed in.")
        user, sign_in = found
        idle = timedelta(hours=self._config.idle_hours)
        if user.state is not UserState.ACTIVE or at >= sign_in.expires or at - sign_in.last_seen >= idle:
            raise NotSignedIn("Your sign-in has ended.", hint="Sign in again; what runs goes on.")
        if at - sign_in.last_seen >= LAST_SEEN_STEP:
            with self._store.begin() as tx:
                tx.touch_sign_in(sign_in.id, at, address)
        return Identity(user.id, user.name, user.role, Via.COOKIE, sign_in.id, address)

    def authenticate_api_token(self, token: str, address: str) -> Identity:
        """Return whose API token it is.

        Raises:
            NotSignedIn: Nobody's.
        """
        at = self._clock()
        with self._store.read() as tx:
            found = tx.find_api_token(passwords.hash_token(token), at)
        if found is None or found[0].state is not UserState.ACTIVE:
            raise NotSignedIn("This API token is not valid.", hint="Make a new one on the account page.")
        with self._store.begin() as tx:
            tx.touch_api_token(found[1], at)
        return Identity(found[0].id, found[0].name, found[0].role, Via.TOKEN, 0, address, found[1])

    def identify_uid(self, uid: int) -> Identity:
        """Return who a process of this machine acts for; never more than a plain user, but for root.

        Whatever alice runs has her uid, notebooks of others too; so it can't be an admin, even if she is.

        Raises:
            NotSignedIn: No user has this uid.
        """
        if uid == 0:
            return ROOT
        try:
            name = pwd.getpwuid(uid).pw_name
        except KeyError:
            raise NotSignedIn("Your account on this machine is unknown.") from None
        with self._store.read() as tx:
            user = tx.find_user(name)
        own = not self._config.multi_user and uid == os.geteuid()
        in_range = self._config.uid_min <= uid <= self._config.uid_max
        if user is None or user.state is UserState.LOCKED or not (own or in_range):
            raise NotSignedIn(f"The account {name} is no user of this portal.", hint="Ask your administrator.")
        plain = user.role if own or user.role is Role.PARTICIPANT else Role.USER
        return Identity(user.id, user.name, plain, Via.SOCKET)

    def list_sign_ins(self, who: Identity, everyone: bool = False) -> list[SignIn]:
        """Return one's own sign-ins, or everyone's."""
        if everyone:
            require(who, Permission.SIGN_IN_LIST)
        with self._store.read() as tx:
            return tx.list_sign_ins(self._clock(), None if everyone else who.user_id)

    def count_sign_ins(self, who: Identity) -> int:
        """Return how many browsers are signed in; for figures, without names."""
        require(who, Permission.METRICS_READ)
        at = self._clock()
        with self._store.read() as tx:
            return tx.count_sign_ins(at, at - timedelta(hours=self._config.idle_hours))

    def sign_out(self, who: Identity) -> None:
        """End the sign-in of this very request."""
        if who.sign_in_id:
            self.revoke_sign_in(who, who.sign_in_id)

    def revoke_sign_in(self, who: Identity, sign_in_id: int) -> None:
        """End a sign-in: one's own, or anybody's with the permission.

        Raises:
            NotFound: There is none, or not for this user.
        """
        with self._store.begin() as tx:
            found = tx.find_sign_in_by_id(sign_in_id)
            if found is None or found[0].id != who.user_id:
                require(who, Permission.SIGN_IN_REVOKE)
            if found is None:
                raise NotFound("There is no such sign-in.")
            tx.delete_sign_in(sign_in_id)
            tx.add_audit(who.user_name, Permission.SIGN_IN_REVOKE, found[0].name, "", who.address)
        self.on_cut([f"sign-in:{sign_in_id}"])

    # API tokens

    def make_api_token(self, who: Identity, label: str, days: int = 90) -> str:
        """Return a new API token of one's own, which is shown only now."""
        if not 1 <= days <= TOKEN_DAYS_MAX:
            raise Invalid(f"A token lives from 1 to {TOKEN_DAYS_MAX} days.", field="days")
        if not label.strip() or len(label) > 100 or not label.isprintable():
            raise Invalid("A token needs a short label, so that you know it again.", field="label")
        if who.via is Via.TOKEN or not who.user_id:
            raise Forbidden("A token can't make another one.", hint="Sign in in a browser.")
        token, at = passwords.make_token("ptc_"), self._clock()
        with self._store.begin() as tx:
            tx.add_api_token(who.user_id, passwords.hash_token(token), label, at, at + timedelta(days=days))
            tx.add_audit(who.user_name, "token:add", label, f"{days} days", who.address)
        return token

    def list_api_tokens(self, who: Identity) -> list[dict[str, Any]]:
        """Return one's own tokens: id, label, created, last_used, expires."""
        with self._store.read() as tx:
            return tx.list_api_tokens(who.user_id)

    def revoke_api_token(self, who: Identity, token_id: int) -> None:
        """End one of one's own tokens.

        Raises:
            NotFound: There is none.
        """
        with self._store.begin() as tx:
            if not tx.delete_api_token(who.user_id, token_id):
                raise NotFound("There is no such token.")
            tx.add_audit(who.user_name, "token:revoke", str(token_id), "", who.address)
        self.on_cut([f"token:{token_id}"])

    # audit

    def read_audit(
        self, who: Identity, limit: int = 100, before_id: int | None = None, actor: str = ""
    ) -> list[AuditEntry]:
        """Return the audit log, the newest first."""
        require(who, Permission.AUDIT_READ)
        with self._store.read() as tx:
            return tx.list_audit(min(max(limit, 1), 1000), before_id, actor)


def _get(tx: Transaction, name: str) -> User:
    user = tx.find_user(name)
    if user is None:
        raise NotFound(f"There is no user {name[:40]!r}.")
    return user


def _bad_code() -> NotFound:
    return NotFound(
        "This link is no longer good.",
        why=f"It works once, for {CODE_DAYS} days, and ends when a newer one is made.",
        hint="Ask your administrator for a new link.",
    )
