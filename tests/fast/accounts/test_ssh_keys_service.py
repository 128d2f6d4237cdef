"""portico.accounts.SshKeys: whose keys they are, what is written down, and what ends when one goes."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from portico.accounts import ROOT, SshKeys
from portico.accounts import ssh_keys as module
from portico.config import Config
from portico.errors import Conflict, Forbidden, Invalid, NotFound, PorticoError, TooMany, Unavailable
from portico.model import Identity, Role, SshKey, UserState, Via
from portico.store import Store


def make_key(comment: str = "alice@laptop") -> str:
    """Return a new public key; nobody has its private half."""
    blob = b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + os.urandom(32)
    return f"ssh-ed25519 {base64.b64encode(blob).decode()} {comment}"


class Desk:
    """Keys with a clock that stands still, a list of what was cut, and POSIX accounts that are noted."""

    def __init__(self, folder: Path, *, multi_user: bool = True) -> None:
        self.at = datetime(2026, 1, 1, tzinfo=UTC)
        self.store = Store(folder / "portico.db")
        self.store.upgrade()
        self.made: list[str] = []
        self.broken: PorticoError | None = None
        self.cut: list[str] = []
        config = replace(Config(), state_dir=str(folder), multi_user=multi_user)
        self.keys = SshKeys(self.store, config, self, self.cut.extend, lambda: self.at)
        self.alice, self.bob = self.add_user("alice"), self.add_user("bob")

    def add_user(self, name: str) -> Identity:
        """Return a user who is signed in."""
        with self.store.begin() as tx:
            user = tx.add_user(name, Role.USER, UserState.ACTIVE, self.at)
        return Identity(user.id, name, Role.USER, Via.COOKIE, 1, "192.0.2.1")

    async def make(self, name: str) -> None:
        if self.broken:
            raise self.broken
        self.made.append(name)

    async def lock(self, name: str, locked: bool) -> None:
        raise AssertionError

    async def remove(self, name: str, remove_home: bool) -> None:
        raise AssertionError

    def add(self, who: Identity, text: str = "", **more: object) -> SshKey:
        """Add a key, a new one by default."""
        return asyncio.run(self.keys.add(who, text or make_key(), **more))  # type: ignore[arg-type]

    def read_audit(self) -> list[tuple[str, str, str, str, str]]:
        """Return the audit log, the oldest first."""
        with self.store.read() as tx:
            found = tx.list_audit(1000, None, "")
        return [(e.actor, e.action, e.target, e.detail, e.address) for e in reversed(found)]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.store.close()


def test_a_key_is_added_with_what_limits_it(desk: Desk) -> None:
    text = make_key()
    key = desk.add(desk.alice, text, label=" my laptop ", sources=("192.0.2.9/24", "2001:db8::/32 10.0.0.1"), days=30)
    assert (key.label, key.kind, key.bits) == ("my laptop", "ssh-ed25519", 256)
    assert f"{key.kind} {key.body}" in text and key.fingerprint.startswith("SHA256:")
    assert key.sources == ("192.0.2.0/24", "2001:db8::/32", "10.0.0.1/32")
    assert key.created == desk.at and key.expires == desk.at + timedelta(days=30)
    assert key.last_used is None and desk.keys.list_keys(desk.alice) == [key]
    assert desk.keys.list_keys(desk.bob) == []
    assert desk.made == ["alice"], "a login needs an account"
    where = "from 192.0.2.0/24, 2001:db8::/32, 10.0.0.1/32, 30 days"
    assert desk.read_audit() == [("alice", "ssh-key:add", key.fingerprint, where, "192.0.2.1")]
    assert desk.cut == []


def test_what_is_left_out_has_a_default(desk: Desk) -> None:
    assert desk.add(desk.alice).label == "alice@laptop"
    key = desk.add(desk.alice, make_key(""))
    assert (key.label, key.sources, key.expires) == ("ED25519 key", (), None)
    assert len(desk.add(desk.alice, make_key("x" * 200)).label) == 100
    assert desk.read_audit()[0][3] == "from everywhere, no end"


def test_each_user_has_a_key_once(desk: Desk) -> None:
    text = make_key()
    desk.add(desk.alice, text, label="the first")
    with pytest.raises(Conflict, match="already: the first") as caught:
        desk.add(desk.alice, text.replace("alice@laptop", "other"))
    assert caught.value.field == "key"
    assert desk.add(desk.bob, text).user_name == "bob", "another's is none of one's business"


def test_a_user_has_a_bounded_number_of_keys(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEYS_MAX", 2)
    first = desk.add(desk.alice)
    desk.add(desk.alice)
    with pytest.raises(TooMany):
        desk.add(desk.alice)
    desk.keys.remove(desk.alice, first.id)
    desk.add(desk.alice)


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"text": "nothing"}, "key"),
        ({"label": "x" * 101}, "label"),
        ({"label": "a\nb"}, "label"),
        ({"label": "a\x1b[2J"}, "label"),
        ({"sources": ("here",)}, "sources"),
        ({"sources": ("",)}, "sources"),  # asked for networks and named none: not everywhere
        ({"sources": (" , ", "")}, "sources"),
        ({"days": -1}, "days"),
        ({"days": 3651}, "days"),
    ],
)
def test_what_is_no_good_changes_nothing(desk: Desk, more: dict[str, object], field: str) -> None:
    with pytest.raises(Invalid) as caught:
        desk.add(desk.alice, **more)  # type: ignore[arg-type]
    assert caught.value.field == field
    assert desk.keys.list_keys(desk.alice) == [] and desk.read_audit() == [] and desk.made == []


def test_neither_a_token_nor_root_adds_a_key(desk: Desk) -> None:
    for who in (replace(desk.alice, via=Via.TOKEN, token_id=3), ROOT):
        with pytest.raises(Forbidden, match="in person"):
            desk.add(who)
    assert desk.add(replace(desk.alice, via=Via.SOCKET)).user_name == "alice"


def test_without_a_posix_account_there_is_no_key(desk: Desk) -> None:
    desk.broken = Unavailable("The broker is away.")
    with pytest.raises(Unavailable):
        desk.add(desk.alice)
    assert desk.keys.list_keys(desk.alice) == [] and desk.read_audit() == []


def test_alone_on_a_machine_nobody_needs_an_account(tmp_path: Path) -> None:
    desk = Desk(tmp_path, multi_user=False)
    desk.add(desk.alice)
    assert desk.made == []
    desk.store.close()


def test_a_user_who_went_meanwhile_gets_no_key(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Locked, removed, or removed and another of that name there, all while ssh-keygen looked at the key."""

    def lock(tx: object) -> None:
        tx.set_user(desk.alice.user_id, state=UserState.LOCKED)  # type: ignore[attr-defined]

    def remove(tx: object) -> None:
        tx.delete_user(tx.find_user("alice"))  # type: ignore[attr-defined]

    def replace_user(tx: object) -> None:
        remove(tx)
        # Each id is given once; but it is the id that is looked at, not only the name.
        tx.add_user("alice", Role.USER, UserState.ACTIVE, desk.at)  # type: ignore[attr-defined]

    check = module.check_with_openssh
    for number, change in enumerate((lock, remove, replace_user)):
        if number == 2:
            desk.alice = desk.add_user("alice")

        def slow(kind: str, body: str, change: object = change) -> tuple[int, str]:
            with desk.store.begin() as tx:
                change(tx)  # type: ignore[operator]
            return check(kind, body)

        monkeypatch.setattr(module, "check_with_openssh", slow)
        with pytest.raises(Forbidden):
            desk.add(desk.alice)
        assert desk.keys.list_keys(desk.alice) == []


def test_a_key_that_goes_ends_its_connections(desk: Desk) -> None:
    key = desk.add(desk.alice, label="old laptop")
    with pytest.raises(NotFound):
        desk.keys.remove(desk.bob, key.id)
    assert desk.cut == [] and desk.keys.list_keys(desk.alice) == [key]
    desk.keys.remove(desk.alice, key.id)
    assert desk.keys.list_keys(desk.alice) == [] and desk.cut == [f"key:{key.id}"]
    assert desk.read_audit()[-1] == ("alice", "ssh-key:remove", key.fingerprint, "old laptop", "192.0.2.1")
    with pytest.raises(NotFound):
        desk.keys.remove(desk.alice, key.id)
    assert desk.add(desk.alice).id > key.id, "a number that named a key never names another"
