"""SSH certificates: a program shows a code, its person confirms it in a browser, and the program gets a certificate.

That is the device authorization grant (RFC 8628). A login, from its beginning until its certificate was collected,
is kept in memory only: it lives for ten minutes, and who is in the middle of one when the portal starts anew is told
that it has expired, and begins again. What was signed has a row, which decides at each use whether it is still good.
"""

from __future__ import annotations

import asyncio
import enum
import ipaddress
import secrets
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Final

from portico.accounts import passwords
from portico.accounts.posix import PosixAccounts
from portico.config import Config
from portico.errors import Forbidden, Invalid, NotFound, NotSignedIn, TooMany
from portico.model import Identity, SshCertificate, UserState, Via, now
from portico.ssh.authority import Authority, compute_fingerprint
from portico.ssh.keys import parse_public_key
from portico.store import Store

LOGIN_LIFE: Final = timedelta(minutes=10)
COLLECT_LIFE: Final = timedelta(minutes=1)
"""After it was confirmed, however late."""
INTERVAL_S: Final = 2.0
"""Between two questions of a program whether its person has confirmed."""
LOGINS_MAX: Final = 1000
LOGINS_PER_PLACE: Final = 20
"""Begun and not collected, from one address, IPv6 network (/64) or account of this machine."""
LIVE_MAX: Final = 10
"""Good certificates of one user."""
WRONG_MAX: Final = 5
WRONG_WINDOW: Final = timedelta(minutes=1)
CODE_LETTERS: Final = "BCDFGHJKLMNPQRSTVWXZ"
"""No vowels, so no words, and nothing that looks like a digit (RFC 8628, 6.1): 20^8 codes."""
CLOCK_STEP: Final = timedelta(minutes=5)
"""How far the clock of an sshd on a node may be behind."""
KEEP_ROWS: Final = timedelta(days=30)


class LoginState(enum.StrEnum):
    """What a program is told about its login."""

    PENDING = "pending"
    REFUSED = "refused"
    EXPIRED = "expired"
    DONE = "done"


@dataclass(frozen=True)
class Begun:
    """A login that waits for its person. ``device_code`` is a secret of the program that began it."""

    device_code: str
    user_code: str
    expires: datetime


@dataclass(frozen=True)
class Asked:
    """What somebody is asked to confirm.

    ``address`` is empty where a process of this machine asked, whose uid is ``uid``; else that is -1.
    """

    user_code: str
    kind: str
    fingerprint: str
    address: str
    uid: int
    begun: datetime
    bound: bool


@dataclass
class _Login:
    asked: Asked
    body: str
    place: str
    sources: tuple[str, ...]
    expires: datetime
    state: LoginState = LoginState.PENDING
    busy: bool = False
    certificate: str = ""


class SshCertificates:
    """Signs in programs that speak SSH, and keeps what was signed for them. Methods may be called from any thread.

    Args:
        store: The rows.
        config: How long certificates are good, and whether from everywhere.
        authority: Who signs.
        posix: The POSIX accounts behind the users.
        on_cut: Called after the commit with tags such as ``certificate:3``.
        clock: Returns the time, aware, in UTC.
    """

    def __init__(
        self,
        store: Store,
        config: Config,
        authority: Authority,
        posix: PosixAccounts,
        on_cut: Callable[[list[str]], None] = lambda tags: None,
        clock: Callable[[], datetime] = now,
    ) -> None:
        self._store = store
        self._config = config
        self._authority = authority
        self._posix = posix
        self.on_cut = on_cut
        self._clock = clock
        self._lock = threading.Lock()
        self._logins: dict[str, _Login] = {}  # by the device code's hash
        self._wrong: dict[int, deque[datetime]] = {}  # when a user typed a code that is none

    @property
    def host_public(self) -> str:
        """The public key that clients trust for hosts' certificates."""
        return self._authority.host_public

    # the program's part

    def begin(self, public_key: str, address: str, uid: int = -1) -> Begun:
        """Begin a login.

        Args:
            public_key: As in a ``.pub`` file; its comment is not looked at.
            address: Where the program is, as the gateway says; empty for a process of this machine.
            uid: Of that process.

        Raises:
            Invalid: It is no key that can be signed.
            TooMany: Too many wait already, from there or in all.
        """
        key = parse_public_key(public_key)
        kind, body = key.kind, key.body
        host = _parse_address(address)
        if host is None and uid < 0:  # a certificate is never good from everywhere because of what can't be read
            raise Invalid("It is not known where this request comes from.", why=f"{address[:60]!r} is no address.")
        place = _find_place(host, uid)
        bound = self._config.ssh_certificate_source and host is not None and not host.is_loopback
        device_code, at = passwords.make_token(), self._clock()
        with self._lock:
            self._forget_expired(at)
            of_place = sum(1 for login in self._logins.values() if login.place == place)
            if of_place >= LOGINS_PER_PLACE or len(self._logins) >= LOGINS_MAX:
                raise TooMany(
                    "Too many logins have begun and were not confirmed.",
                    hint=f"They expire after {LOGIN_LIFE.seconds // 60} minutes; try again then.",
                    retry_after_s=60.0,
                )
            taken = {login.asked.user_code for login in self._logins.values()}
            while (user_code := _make_user_code()) in taken:
                pass
            asked = Asked(user_code, kind, compute_fingerprint(body), str(host or ""), uid, at, bound)
            sources = (f"{host}/{host.max_prefixlen}",) if bound and host else ()
            login = _Login(asked, body, place, sources, at + LOGIN_LIFE)
            self._logins[passwords.hash_token(device_code)] = login
        return Begun(device_code, user_code, login.expires)

    def collect(self, device_code: str) -> tuple[LoginState, str]:
        """Return how a login stands, and its certificate where it is done; that and a refusal are told once."""
        key = passwords.hash_token(device_code)
        with self._lock:
            self._forget_expired(self._clock())
            login = self._logins.get(key)
            if login is None:
                return LoginState.EXPIRED, ""
            if login.state is not LoginState.PENDING:
                del self._logins[key]
            return login.state, login.certificate

    def _forget_expired(self, at: datetime) -> None:
        for key in [key for key, login in self._logins.items() if at >= login.expires and not login.busy]:
            del self._logins[key]

    # the person's part

    def describe(self, who: Identity, user_code: str) -> Asked:
        """Return what a user code asks to be confirmed.

        Raises:
            Forbidden: It is not a person at a browser who asks.
            NotFound: No login that waits has this code.
            TooMany: The user typed too many wrong ones.
        """
        with self._lock:
            return self._get(who, user_code).asked

    async def confirm(self, who: Identity, user_code: str) -> SshCertificate:
        """Sign for a login in one's own name; its program can collect the certificate then.

        Raises:
            Forbidden: It is not a person at a browser who asks.
            NotFound: No login that waits has this code.
            TooMany: The user typed too many wrong ones, or has too many certificates.
            Unavailable: The POSIX account could not be made, or nothing can be signed; the login waits on.
        """
        with self._lock:
            login = self._get(who, user_code)
            login.busy = True  # nobody else may confirm or refuse it meanwhile
        try:
            if self._config.multi_user:
                await self._posix.make(who.user_name)
            row, certificate = await asyncio.to_thread(self._sign, who, login)
            with self._lock:
                login.state, login.certificate = LoginState.DONE, certificate
                login.expires = max(login.expires, self._clock() + COLLECT_LIFE)
        finally:
            with self._lock:
                login.busy = False
        return row

    def refuse(self, who: Identity, user_code: str) -> None:
        """Refuse a login.

        Raises:
            Forbidden, NotFound, TooMany: As for confirm.
        """
        with self._lock:
            self._get(who, user_code).state = LoginState.REFUSED

    def _get(self, who: Identity, user_code: str) -> _Login:
        """Return the login that waits with this code; the lock is held."""
        if who.via is not Via.COOKIE:
            raise Forbidden("Only a person in a browser can confirm this.", hint="Sign in in a browser.")
        at = self._clock()
        wrong = self._wrong.get(who.user_id, deque())
        while wrong and at - wrong[0] >= WRONG_WINDOW:
            wrong.popleft()
        if len(wrong) >= WRONG_MAX:
            raise TooMany(
                "Too many codes were wrong.", hint="Try again in a minute.", retry_after_s=WRONG_WINDOW.total_seconds()
            )
        self._forget_expired(at)
        wanted = "".join(letter for letter in user_code[:40].upper() if letter in CODE_LETTERS)
        for login in self._logins.values():
            waits = login.state is LoginState.PENDING and not login.busy
            if waits and secrets.compare_digest(login.asked.user_code.replace("-", ""), wanted):
                return login
        self._wrong = {
            user_id: times for user_id, times in self._wrong.items() if times and at - times[-1] < WRONG_WINDOW
        }
        self._wrong.setdefault(who.user_id, wrong).append(at)
        raise NotFound(
            "No login waits with this code.",
            why=f"A code is good once, for {LOGIN_LIFE.seconds // 60} minutes.",
            hint="Look at your terminal, or begin again there: portico ssh login",
        )

    def _sign(self, who: Identity, login: _Login) -> tuple[SshCertificate, str]:
        """Return the row of a new certificate, and the certificate."""
        at = self._clock().replace(microsecond=0)
        expires = at + timedelta(hours=self._config.ssh_certificate_hours)
        asked = login.asked
        row = SshCertificate(0, who.user_name, asked.kind, login.body, asked.fingerprint, login.sources, at, expires)
        with self._store.begin() as tx:
            user = tx.find_user(who.user_name)
            if user is None or user.state is not UserState.ACTIVE:  # since the request was let in
                raise NotSignedIn("Your sign-in has ended.")
            if len(tx.list_ssh_certificates(who.user_name, at)) >= LIVE_MAX:
                raise TooMany(
                    f"You have {LIVE_MAX} SSH certificates already.", hint="Revoke one on your account page, or wait."
                )
            tx.delete_ssh_certificates(at - KEEP_ROWS)
            row = replace(row, serial=tx.add_ssh_certificate(row))
            detail = (
                f"{asked.fingerprint} from {' '.join(login.sources) or 'everywhere'} until {expires:%Y-%m-%d %H:%M}"
            )
            tx.add_audit(who.user_name, "ssh-certificate:add", str(row.serial), detail, who.address)
        try:
            certificate = self._authority.sign_user(
                row.kind, row.body, principal=row.user_name, serial=row.serial,
                key_id=f"portico:{row.user_name}:{row.serial}", valid_from=at - CLOCK_STEP, valid_until=expires,
                sources=row.sources,
            )  # fmt: skip
        except BaseException:
            with self._store.begin() as tx:
                tx.revoke_ssh_certificate(row.user_name, row.serial, at)
                tx.add_audit(row.user_name, "ssh-certificate:revoke", str(row.serial), "not signed", who.address)
            raise
        return row, certificate

    # what was signed

    def list_certificates(self, who: Identity) -> list[SshCertificate]:
        """Return one's own certificates that are good, the oldest first."""
        with self._store.read() as tx:
            return tx.list_ssh_certificates(who.user_name, self._clock())

    def revoke(self, who: Identity, serial: int) -> None:
        """Take back one of one's own certificates; connections that live by it end.

        Raises:
            NotFound: There is none that is good.
        """
        with self._store.begin() as tx:
            if not tx.revoke_ssh_certificate(who.user_name, serial, self._clock()):
                raise NotFound("There is no such certificate.")
            tx.add_audit(who.user_name, "ssh-certificate:revoke", str(serial), "", who.address)
        self.on_cut([f"certificate:{serial}"])


def _parse_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return an address as sshd would see it: IPv4 in IPv6's clothes is IPv4, and a link's name is left out."""
    try:
        host = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (host.ipv4_mapped or host) if isinstance(host, ipaddress.IPv6Address) else host


def _find_place(host: ipaddress.IPv4Address | ipaddress.IPv6Address | None, uid: int) -> str:
    """Return what logins are counted by: who has an IPv6 network has all of its addresses."""
    if isinstance(host, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((host, 64), strict=False))
    return str(host) if host else f"uid {uid}"


def _make_user_code() -> str:
    letters = "".join(secrets.choice(CODE_LETTERS) for _ in range(8))
    return f"{letters[:4]}-{letters[4:]}"
