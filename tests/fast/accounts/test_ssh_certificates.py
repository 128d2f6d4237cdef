"""portico.accounts.ssh_certificates: a login from its code to its certificate, with the real ssh-keygen."""

from __future__ import annotations

import asyncio
import base64
import re
import shutil
import struct
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from portico.accounts import ROOT, SshCertificates
from portico.accounts import ssh_certificates as module
from portico.config import Config
from portico.errors import Forbidden, Invalid, NotFound, NotSignedIn, PorticoError, TooMany, Unavailable
from portico.model import Identity, Role, UserState, Via
from portico.ssh.authority import Authority, compute_fingerprint, read_certificate
from portico.store import Store

pytestmark = pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="needs ssh-keygen")

HERE, THERE = "192.0.2.7", "2001:db8::7"


def make_key(kind: str = "ssh-ed25519", inner: str = "") -> str:
    """Return a public key's line; which point it is does not matter to who signs it."""
    words = [(inner or kind).encode(), bytes(range(32))]
    return f"{kind} {base64.b64encode(b''.join(struct.pack('>I', len(word)) + word for word in words)).decode()} a note"


KEY = make_key()


class Posix:
    """Notes which accounts are made; ``broken`` is its vice."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.broken: PorticoError | None = None

    async def make(self, name: str) -> None:
        if self.broken:
            raise self.broken
        self.made.append(name)

    async def lock(self, name: str, locked: bool) -> None:
        raise AssertionError

    async def remove(self, name: str, remove_home: bool) -> None:
        raise AssertionError


class Desk:
    """Certificates with a clock that stands still, and a list of what was cut."""

    def __init__(self, folder: Path, authority: Authority, **settings: Any) -> None:
        self.at = datetime(2026, 1, 1, 12, tzinfo=UTC)
        self.store = Store(folder / "portico.db")
        self.store.upgrade()
        self.posix = Posix()
        self.cut: list[str] = []
        config = replace(Config(), state_dir=str(folder), multi_user=True)
        self.certificates = self.make(authority, replace(config, **settings))

    def make(self, authority: Authority, config: Config) -> SshCertificates:
        return SshCertificates(self.store, config, authority, self.posix, self.cut.extend, lambda: self.at)

    def add(self, name: str) -> Identity:
        """Return a user who is signed in in a browser."""
        with self.store.begin() as tx:
            user = tx.add_user(name, Role.USER, UserState.ACTIVE, self.at)
        return Identity(user.id, name, Role.USER, Via.COOKIE, 1, "198.51.100.1")

    def confirm(self, who: Identity, user_code: str) -> Any:
        return asyncio.run(self.certificates.confirm(who, user_code))

    def login(self, who: Identity, address: str = HERE, uid: int = -1) -> str:
        """Return the certificate of a whole login."""
        begun = self.certificates.begin(KEY, address, uid)
        self.confirm(who, begun.user_code)
        state, certificate = self.certificates.collect(begun.device_code)
        assert state == "done"
        return certificate

    def list_audit(self) -> list[tuple[str, str, str, str]]:
        with self.store.read() as tx:
            return [(e.actor, e.action, e.target, e.detail) for e in tx.list_audit(100, None, "")]


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("state") / "ssh")


@pytest.fixture
def desk(tmp_path: Path, authority: Authority) -> Iterator[Desk]:
    desk = Desk(tmp_path, authority)
    yield desk
    desk.store.close()


@pytest.fixture
def alice(desk: Desk) -> Identity:
    return desk.add("alice")


def test_from_a_code_to_a_certificate(desk: Desk, alice: Identity, authority: Authority) -> None:
    begun = desk.certificates.begin(KEY, HERE)
    assert re.fullmatch(r"[BCDFGHJKLMNPQRSTVWXZ]{4}-[BCDFGHJKLMNPQRSTVWXZ]{4}", begun.user_code)
    assert begun.expires == desk.at + timedelta(minutes=10)
    assert desk.certificates.collect(begun.device_code) == ("pending", "")
    asked = desk.certificates.describe(alice, begun.user_code)
    assert (asked.kind, asked.fingerprint, asked.address, asked.uid, asked.begun, asked.bound) == (
        "ssh-ed25519", compute_fingerprint(KEY.split()[1]), HERE, -1, desk.at, True,
    )  # fmt: skip
    row = desk.confirm(alice, begun.user_code)
    assert desk.posix.made == ["alice"]
    state, certificate = desk.certificates.collect(begun.device_code)
    listing = read_certificate(certificate)
    assert state == "done"
    assert listing.principals == ("alice",)
    assert listing.critical == ("source-address 192.0.2.7/32",)
    assert (listing.serial, listing.key_id) == (row.serial, f"portico:alice:{row.serial}")
    assert listing.valid_until == desk.at + timedelta(hours=8)
    assert listing.ca_fingerprint == compute_fingerprint(authority.user_public.split()[1])
    assert desk.certificates.list_certificates(alice) == [row]
    detail = f"{row.fingerprint} from 192.0.2.7/32 until 2026-01-01 20:00"
    assert desk.list_audit() == [("alice", "ssh-certificate:add", str(row.serial), detail)]


def test_a_device_code_gives_one_certificate(desk: Desk, alice: Identity) -> None:
    begun = desk.certificates.begin(KEY, HERE)
    desk.confirm(alice, begun.user_code)
    assert desk.certificates.collect(begun.device_code)[0] == "done"
    assert desk.certificates.collect(begun.device_code) == ("expired", "")
    assert desk.certificates.collect("nothing") == ("expired", "")
    with pytest.raises(NotFound):
        desk.confirm(alice, begun.user_code)


def test_a_user_code_collects_nothing(desk: Desk, alice: Identity) -> None:
    begun = desk.certificates.begin(KEY, HERE)
    desk.confirm(alice, begun.user_code)
    assert desk.certificates.collect(begun.user_code) == ("expired", "")


@pytest.mark.parametrize("change", [str.lower, lambda code: code.replace("-", ""), lambda code: f" {code} "])
def test_a_code_may_be_typed_as_people_do(desk: Desk, alice: Identity, change: Any) -> None:
    begun = desk.certificates.begin(KEY, HERE)
    assert desk.certificates.describe(alice, change(begun.user_code)).user_code == begun.user_code


def test_a_refused_login_says_so_once(desk: Desk, alice: Identity) -> None:
    begun = desk.certificates.begin(KEY, HERE)
    desk.certificates.refuse(alice, begun.user_code)
    with pytest.raises(NotFound):
        desk.confirm(alice, begun.user_code)
    assert desk.certificates.collect(begun.device_code) == ("refused", "")
    assert desk.certificates.collect(begun.device_code) == ("expired", "")
    assert desk.certificates.list_certificates(alice) == []


def test_a_login_expires(desk: Desk, alice: Identity) -> None:
    begun = desk.certificates.begin(KEY, HERE)
    desk.at += timedelta(minutes=10)
    with pytest.raises(NotFound):
        desk.confirm(alice, begun.user_code)
    assert desk.certificates.collect(begun.device_code) == ("expired", "")


def test_what_was_confirmed_late_can_still_be_collected(desk: Desk, alice: Identity) -> None:
    begun = desk.certificates.begin(KEY, HERE)
    desk.at += timedelta(minutes=9, seconds=59)
    desk.confirm(alice, begun.user_code)
    desk.at += timedelta(seconds=30)
    assert desk.certificates.collect(begun.device_code)[0] == "done"


def test_whoever_confirms_gets_it_in_their_own_name_alone(desk: Desk, alice: Identity) -> None:
    bob = desk.add("bob")
    begun = desk.certificates.begin(KEY, HERE)
    desk.confirm(bob, begun.user_code)
    with pytest.raises(NotFound):
        desk.confirm(alice, begun.user_code)
    assert read_certificate(desk.certificates.collect(begun.device_code)[1]).principals == ("bob",)
    assert desk.certificates.list_certificates(alice) == []


@pytest.mark.parametrize("via", [Via.TOKEN, Via.SOCKET])
def test_only_a_person_at_a_browser_confirms(desk: Desk, alice: Identity, via: Via) -> None:
    begun = desk.certificates.begin(KEY, HERE)
    for who in (replace(alice, via=via), ROOT):
        with pytest.raises(Forbidden):
            desk.certificates.describe(who, begun.user_code)
        with pytest.raises(Forbidden):
            desk.confirm(who, begun.user_code)
        with pytest.raises(Forbidden):
            desk.certificates.refuse(who, begun.user_code)
    assert desk.certificates.collect(begun.device_code) == ("pending", "")


def test_wrong_codes_are_throttled_for_their_user_alone(desk: Desk, alice: Identity) -> None:
    bob = desk.add("bob")
    begun = desk.certificates.begin(KEY, HERE)
    for _ in range(module.WRONG_MAX):
        with pytest.raises(NotFound):
            desk.certificates.describe(bob, "BBBB-BBBB")
    for attempt in (desk.certificates.describe, desk.confirm, desk.certificates.refuse):
        with pytest.raises(TooMany):
            attempt(bob, begun.user_code)
    assert desk.certificates.describe(alice, begun.user_code)
    desk.at += timedelta(minutes=1)
    assert desk.certificates.describe(bob, begun.user_code)
    with pytest.raises(NotFound):
        desk.certificates.describe(bob, "")


@pytest.mark.parametrize(
    ("address", "uid", "source"),
    [
        (HERE, -1, "192.0.2.7/32"),
        (THERE, -1, "2001:db8::7/128"),
        ("::ffff:192.0.2.7", -1, "192.0.2.7/32"),
        ("fe80::1%eth0", -1, "fe80::1/128"),
        ("127.0.0.1", -1, ""),
        ("::1", -1, ""),
        ("", 1000, ""),
    ],
)
def test_it_is_good_from_where_it_was_asked_for(
    desk: Desk, alice: Identity, address: str, uid: int, source: str
) -> None:
    critical = read_certificate(desk.login(alice, address, uid)).critical
    assert critical == ((f"source-address {source}",) if source else ())


def test_a_site_may_leave_the_source_out(tmp_path: Path, authority: Authority) -> None:
    desk = Desk(tmp_path, authority, ssh_certificate_source=False, ssh_certificate_hours=0.5)
    listing = read_certificate(desk.login(desk.add("alice")))
    desk.store.close()
    assert listing.critical == ()
    assert listing.valid_until == desk.at + timedelta(minutes=30)


def test_an_address_that_is_none_begins_nothing(desk: Desk) -> None:
    for address in ("", "unknown", "192.0.2.7, 198.51.100.1"):
        with pytest.raises(Invalid):
            desk.certificates.begin(KEY, address)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ssh-ed25519",
        "ssh-ed25519 !!!!",
        "ssh-ed25519 AAAA",
        make_key("ssh-ed25519", inner="ssh-rsa"),
        make_key("ssh-rsa"),
        make_key("ssh-ed25519-cert-v01@openssh.com"),
        f"{KEY}\n{KEY}",
        f'command="x" {KEY}',
    ],
)
def test_what_is_no_key_begins_nothing(desk: Desk, text: str) -> None:
    with pytest.raises(Invalid):
        desk.certificates.begin(text, HERE)


def test_logins_that_wait_are_bounded(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(module.LOGINS_PER_PLACE):
        desk.certificates.begin(KEY, HERE)
    with pytest.raises(TooMany):
        desk.certificates.begin(KEY, HERE)
    for number in range(module.LOGINS_PER_PLACE):
        desk.certificates.begin(KEY, f"2001:db8::{number}")
    with pytest.raises(TooMany):
        desk.certificates.begin(KEY, "2001:db8::ffff")
    desk.certificates.begin(KEY, "2001:db8:0:1::1")
    desk.certificates.begin(KEY, "", 1000)
    monkeypatch.setattr(module, "LOGINS_MAX", 2 * module.LOGINS_PER_PLACE + 2)
    with pytest.raises(TooMany):
        desk.certificates.begin(KEY, "203.0.113.1")
    desk.at += timedelta(minutes=10)
    desk.certificates.begin(KEY, HERE)


def test_a_user_has_ten_at_once(desk: Desk, alice: Identity) -> None:
    for _ in range(module.LIVE_MAX):
        desk.login(alice)
    begun = desk.certificates.begin(KEY, HERE)
    with pytest.raises(TooMany):
        desk.confirm(alice, begun.user_code)
    desk.certificates.revoke(alice, desk.certificates.list_certificates(alice)[0].serial)
    desk.confirm(alice, begun.user_code)
    desk.at += timedelta(hours=8)
    assert desk.certificates.list_certificates(alice) == []


def test_one_that_was_revoked_is_gone_and_its_connections_are_cut(desk: Desk, alice: Identity) -> None:
    desk.login(alice)
    serial = desk.certificates.list_certificates(alice)[0].serial
    with pytest.raises(NotFound):
        desk.certificates.revoke(desk.add("bob"), serial)
    assert desk.cut == []
    desk.certificates.revoke(alice, serial)
    assert desk.cut == [f"certificate:{serial}"]
    assert desk.certificates.list_certificates(alice) == []
    assert ("alice", "ssh-certificate:revoke", str(serial), "") in desk.list_audit()
    with pytest.raises(NotFound):
        desk.certificates.revoke(alice, serial)


def test_without_an_account_nothing_is_signed_and_the_login_waits(desk: Desk, alice: Identity) -> None:
    begun = desk.certificates.begin(KEY, HERE)
    desk.posix.broken = Unavailable("The broker is away.")
    with pytest.raises(Unavailable):
        desk.confirm(alice, begun.user_code)
    assert desk.certificates.list_certificates(alice) == []
    desk.posix.broken = None
    desk.confirm(alice, begun.user_code)


def test_what_could_not_be_signed_is_taken_back(
    desk: Desk, alice: Identity, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise Unavailable("ssh-keygen is not installed.")

    begun = desk.certificates.begin(KEY, HERE)
    with monkeypatch.context() as patch:
        patch.setattr(authority, "sign_user", fail)
        with pytest.raises(Unavailable):
            desk.confirm(alice, begun.user_code)
    assert desk.certificates.list_certificates(alice) == []
    assert desk.certificates.collect(begun.device_code) == ("pending", "")
    desk.confirm(alice, begun.user_code)


def test_two_who_confirm_at_once_get_one_certificate(desk: Desk, alice: Identity) -> None:
    bob = desk.add("bob")
    begun = desk.certificates.begin(KEY, HERE)

    async def both() -> list[Any]:
        attempts = (desk.certificates.confirm(who, begun.user_code) for who in (alice, bob))
        return await asyncio.gather(*attempts, return_exceptions=True)

    first, second = asyncio.run(both())
    assert first.user_name == "alice"
    assert isinstance(second, NotFound)


def test_who_was_locked_meanwhile_gets_none(desk: Desk, alice: Identity) -> None:
    begun = desk.certificates.begin(KEY, HERE)
    with desk.store.begin() as tx:
        tx.set_user(alice.user_id, state=UserState.LOCKED)
    with pytest.raises(NotSignedIn):
        desk.confirm(alice, begun.user_code)


def test_one_for_its_owner_only_makes_no_account(tmp_path: Path, authority: Authority) -> None:
    desk = Desk(tmp_path, authority, multi_user=False)
    desk.login(desk.add("alice"))
    desk.store.close()
    assert desk.posix.made == []
