"""portico.accounts: passwords, one-time codes, sign-ins, roles, and what ends with what."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from portico.accounts import ROOT, Accounts, Permission, entrance, passwords
from portico.accounts import accounts as module
from portico.accounts.permissions import ROLE_PERMISSIONS
from portico.config import Config
from portico.errors import Conflict, Forbidden, Invalid, NotFound, NotSignedIn, PorticoError, TooMany, Unavailable
from portico.model import Identity, Role, UserState, Via
from portico.store import Store

PASSWORD = "correct horse battery staple"
HERE, THERE = "192.0.2.1", "198.51.100.7"


class NotedAccounts:
    """Notes what POSIX accounts are asked for; ``broken`` is its vice."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.broken: PorticoError | None = None

    async def make(self, name: str) -> None:
        self._note("make", name)

    async def lock(self, name: str, locked: bool) -> None:
        self._note("lock", name, locked)

    async def remove(self, name: str, remove_home: bool) -> None:
        self._note("remove", name, remove_home)

    def _note(self, *what: Any) -> None:
        self.asked.append(what)
        if self.broken:
            raise self.broken


class Desk:
    """Accounts with a clock that stands still, and a list of what was cut."""

    def __init__(self, folder: Path) -> None:
        self.at = datetime(2026, 1, 1, tzinfo=UTC)
        self.store = Store(folder / "portico.db")
        self.store.upgrade()
        self.posix = NotedAccounts()
        self.cut: list[str] = []
        config = replace(Config(), state_dir=str(folder), multi_user=True)
        self.accounts = Accounts(self.store, config, self.posix, self.cut.extend, lambda: self.at)

    def add(self, name: str, role: Role = Role.USER) -> Identity:
        """Return a user who is signed in."""
        self.accounts.enrol(self.accounts.add_user(ROOT, name, role), PASSWORD, HERE)
        self.cut.clear()
        return self.accounts.sign_in(name, PASSWORD, HERE, "a browser")[0]

    def sign_in(self, name: str, password: str = PASSWORD, address: str = HERE) -> str:
        """Return the cookie's token."""
        return self.accounts.sign_in(name, password, address, "a browser")[1]


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path)
    yield desk
    desk.store.close()


@pytest.fixture(autouse=True, scope="module")
def quick_hashes() -> Iterator[None]:
    """Make hashing quick; one test checks the real parameters."""
    with pytest.MonkeyPatch.context() as patch:
        quick = passwords.PasswordHasher(time_cost=1, memory_cost=8, parallelism=1)
        patch.setattr(passwords, "_hasher", quick)
        yield


def test_hashes_are_argon2id_of_rfc_9106(monkeypatch: pytest.MonkeyPatch) -> None:
    assert passwords._NOBODYS.startswith("$argon2id$v=19$m=65536,t=3,p=4$")


def test_from_invitation_to_sign_in(desk: Desk) -> None:
    code = desk.accounts.add_user(ROOT, "alice")
    assert desk.accounts.get_user("alice").state is UserState.INVITED
    with pytest.raises(NotSignedIn):
        desk.sign_in("alice")
    assert desk.accounts.describe_code(code).name == "alice"
    with pytest.raises(Invalid):
        desk.accounts.enrol(code, "short", HERE)
    assert desk.accounts.enrol(code, PASSWORD, HERE).state is UserState.ACTIVE
    token = desk.sign_in("alice")
    who = desk.accounts.authenticate(token, HERE)
    assert (who.user_name, who.role, who.via) == ("alice", Role.USER, Via.COOKIE)
    with pytest.raises(NotFound):
        desk.accounts.enrol(code, PASSWORD, HERE)


def test_a_code_is_used_once_however_many_try(desk: Desk) -> None:
    code = desk.accounts.add_user(ROOT, "alice")
    results: list[str] = []
    barrier = threading.Barrier(6)

    def enrol(n: int) -> None:
        barrier.wait()
        try:
            desk.accounts.enrol(code, f"{PASSWORD} {n}", HERE)
            results.append("won")
        except NotFound:
            results.append("late")

    threads = [threading.Thread(target=enrol, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["late"] * 5 + ["won"]


def test_codes_end_with_time_and_with_a_newer_one(desk: Desk) -> None:
    old = desk.accounts.add_user(ROOT, "alice")
    new = desk.accounts.renew_code(ROOT, "alice")
    with pytest.raises(NotFound):
        desk.accounts.describe_code(old)
    desk.at += timedelta(days=module.CODE_DAYS)
    with pytest.raises(NotFound, match="no longer good"):
        desk.accounts.describe_code(new)


@pytest.mark.parametrize(
    "name", ["", "Alice", "al ice", "-a", "a\n", "älice", "a" * 33, "root;id", "../x", "0day", "a\0"]
)
def test_names_that_are_none(desk: Desk, name: str) -> None:
    with pytest.raises(Invalid):
        desk.accounts.add_user(ROOT, name)


@pytest.mark.parametrize("name", ["root", "portico"])
def test_names_of_the_system(desk: Desk, name: str) -> None:
    with pytest.raises(Conflict):
        desk.accounts.add_user(ROOT, name)


@pytest.mark.parametrize("password", ["short", "123456789012", "PasswordPassword", "aaaaaaaaaaaaaaaa", "x" * 2000])
def test_passwords_that_are_none(desk: Desk, password: str) -> None:
    with pytest.raises(Invalid):
        desk.accounts.enrol(desk.accounts.add_user(ROOT, "alice"), password, HERE)


def test_a_wrong_name_and_a_wrong_password_sound_the_same(desk: Desk) -> None:
    desk.add("alice")
    said = []
    for name in ("alice", "nobody"):
        with pytest.raises(NotSignedIn) as error:
            desk.sign_in(name, "wrong")
        said.append((error.value.message, error.value.hint))
    assert said[0] == said[1]


def test_guessing_ends_after_five_and_only_there(desk: Desk) -> None:
    desk.add("alice")
    for _ in range(entrance.FAILURES_PER_PAIR):
        with pytest.raises(NotSignedIn):
            desk.sign_in("alice", "wrong", THERE)
    with pytest.raises(TooMany) as error:
        desk.sign_in("alice", PASSWORD, THERE)
    assert error.value.retry_after_s
    desk.sign_in("alice", PASSWORD, HERE)  # the attacker elsewhere does not lock her out
    desk.at += entrance.FAILURE_WINDOW
    desk.sign_in("alice", PASSWORD, THERE)


def test_spread_out_guessing_ends_too(desk: Desk) -> None:
    desk.add("alice")
    for n in range(entrance.FAILURES_PER_ACCOUNT):
        with pytest.raises(NotSignedIn):
            desk.sign_in("alice", "wrong", f"203.0.113.{n}")
    with pytest.raises(TooMany):
        desk.sign_in("alice", PASSWORD, HERE)


def test_one_address_tries_only_so_many_names(desk: Desk) -> None:
    for n in range(entrance.FAILURES_PER_ADDRESS):
        with pytest.raises(NotSignedIn):
            desk.sign_in(f"user{n}", "wrong", THERE)
    with pytest.raises(TooMany):
        desk.sign_in("another", "wrong", THERE)


def test_sign_ins_end_by_age_and_idleness(desk: Desk) -> None:
    desk.add("alice")
    token = desk.sign_in("alice")
    for _ in range(3):
        desk.at += timedelta(hours=3.9)
        if desk.at < datetime(2026, 1, 1, 12, tzinfo=UTC):
            desk.accounts.authenticate(token, HERE)
    desk.at = datetime(2026, 1, 1, 12, tzinfo=UTC)
    with pytest.raises(NotSignedIn, match="ended"):
        desk.accounts.authenticate(token, HERE)
    desk.at = datetime(2026, 1, 2, tzinfo=UTC)
    idle = desk.sign_in("alice")
    desk.at += timedelta(hours=4)
    with pytest.raises(NotSignedIn, match="ended"):
        desk.accounts.authenticate(idle, HERE)


def test_each_sign_in_is_a_new_token(desk: Desk) -> None:
    desk.add("alice")
    assert len({desk.sign_in("alice") for _ in range(5)}) == 5


def test_revoking_ends_and_cuts(desk: Desk) -> None:
    alice, bob = desk.add("alice"), desk.add("bob")
    with pytest.raises(Forbidden):
        desk.accounts.revoke_sign_in(bob, alice.sign_in_id)
    desk.accounts.revoke_sign_in(alice, alice.sign_in_id)
    assert desk.cut == [f"sign-in:{alice.sign_in_id}"]
    with pytest.raises(NotSignedIn):
        desk.accounts.check_sign_in(alice.sign_in_id)


def test_a_new_password_ends_the_other_sign_ins(desk: Desk) -> None:
    alice = desk.add("alice")
    other = desk.sign_in("alice")
    with pytest.raises(Invalid, match="present password"):
        desk.accounts.change_password(alice, "wrong", "another long password")
    desk.accounts.change_password(alice, PASSWORD, "another long password")
    with pytest.raises(NotSignedIn):
        desk.accounts.authenticate(other, HERE)
    assert desk.accounts.check_sign_in(alice.sign_in_id)
    assert len(desk.cut) == 1


def test_locking_ends_everything_even_if_posix_fails(desk: Desk) -> None:
    desk.add("admin", Role.ADMIN)
    alice = desk.add("alice")
    token = desk.accounts.make_api_token(alice, "script")
    desk.posix.broken = Unavailable("The broker is away.")
    with pytest.raises(Unavailable):
        asyncio.run(desk.accounts.lock_user(ROOT, "alice"))
    assert desk.cut == ["user:alice"]
    for attempt in (
        lambda: desk.accounts.check_sign_in(alice.sign_in_id),
        lambda: desk.accounts.authenticate_api_token(token, HERE),
    ):
        with pytest.raises(NotSignedIn):
            attempt()
    with pytest.raises(Forbidden, match="locked"):
        desk.sign_in("alice")
    desk.posix.broken = NotFound("no account yet")
    asyncio.run(desk.accounts.unlock_user(ROOT, "alice"))
    assert desk.sign_in("alice")


def test_the_last_admin_and_oneself_are_safe(desk: Desk) -> None:
    admin = desk.add("admin", Role.ADMIN)
    for attempt in (
        desk.accounts.lock_user(admin, "admin"),
        desk.accounts.lock_user(ROOT, "admin"),
        desk.accounts.remove_user(ROOT, "admin", False),
    ):
        with pytest.raises(Conflict):
            asyncio.run(attempt)
    with pytest.raises(Conflict):
        desk.accounts.set_role(ROOT, "admin", Role.USER)
    second = desk.add("second", Role.ADMIN)
    with pytest.raises(Conflict):
        desk.accounts.set_role(second, "second", Role.USER)
    desk.accounts.set_role(second, "admin", Role.USER)
    assert desk.accounts.get_user("admin").role is Role.USER
    with pytest.raises(NotSignedIn):
        desk.accounts.check_sign_in(admin.sign_in_id)


def test_removing_removes_the_account_first(desk: Desk) -> None:
    desk.add("admin", Role.ADMIN)
    desk.add("alice")
    desk.posix.broken = Unavailable("It failed.")
    with pytest.raises(Unavailable):
        asyncio.run(desk.accounts.remove_user(ROOT, "alice", True))
    assert desk.accounts.get_user("alice").state is UserState.LOCKED
    desk.posix.broken = None
    asyncio.run(desk.accounts.remove_user(ROOT, "alice", True))
    assert desk.posix.asked[-1] == ("remove", "alice", True)
    with pytest.raises(NotFound):
        desk.accounts.get_user("alice")


def test_api_tokens(desk: Desk) -> None:
    alice = desk.add("alice")
    token = desk.accounts.make_api_token(alice, "script", 10)
    who = desk.accounts.authenticate_api_token(token, HERE)
    assert (who.user_name, who.via) == ("alice", Via.TOKEN)
    with pytest.raises(Forbidden):
        desk.accounts.make_api_token(who, "one more")
    for label, days in (("", 10), ("a\nb", 10), ("x" * 101, 10), ("ok", 0), ("ok", 366)):
        with pytest.raises(Invalid):
            desk.accounts.make_api_token(alice, label, days)
    with pytest.raises(NotFound):
        desk.accounts.revoke_api_token(desk.add("bob"), desk.accounts.list_api_tokens(alice)[0]["id"])
    desk.at += timedelta(days=10)
    with pytest.raises(NotSignedIn):
        desk.accounts.authenticate_api_token(token, HERE)


def test_the_database_holds_no_secret(desk: Desk) -> None:
    code = desk.accounts.add_user(ROOT, "bob")
    alice = desk.add("alice")
    secrets = [code, PASSWORD, desk.sign_in("alice"), desk.accounts.make_api_token(alice, "t")]
    with pytest.raises(NotSignedIn):
        desk.sign_in("alice", "a wrong guess 4711")
    with pytest.raises(NotSignedIn):
        desk.sign_in("a password in the name's field", "x")
    files = list(desk.store.path.parent.iterdir())
    assert len(files) >= 2
    for path in files:
        data = path.read_bytes()
        for secret in [*secrets, "a wrong guess 4711"]:
            assert secret.encode() not in data


def test_root_is_an_admin_and_an_unknown_uid_nobody(desk: Desk) -> None:
    assert desk.accounts.identify_uid(0) == ROOT
    for uid in (1, 65534, 59998):
        with pytest.raises(NotSignedIn):
            desk.accounts.identify_uid(uid)


OWN = {
    "change_password", "enrol", "describe_code", "sign_in", "sign_out", "authenticate", "check_sign_in",
    "authenticate_api_token", "identify_uid", "get_user", "make_api_token", "list_api_tokens", "revoke_api_token",
    "list_sign_ins", "revoke_sign_in",
}  # fmt: skip
"""About oneself, or before anybody is known; the last two want a permission for others', which has tests above."""


def test_every_other_method_wants_a_permission(desk: Desk) -> None:
    alice = desk.add("alice")
    found = {name for name, _ in inspect.getmembers(Accounts, inspect.isfunction) if not name.startswith("_")}
    for name in found - OWN:
        method = getattr(desk.accounts, name)
        names = [p for p in inspect.signature(method).parameters.values() if p.default is p.empty][1:]
        values = {"role": Role.USER, "remove_home": False}
        arguments = [values.get(parameter.name, "bob") for parameter in names]
        with pytest.raises(Forbidden):
            result = method(alice, *arguments)
            if inspect.isawaitable(result):
                asyncio.run(result)  # type: ignore[arg-type]
    with pytest.raises(Forbidden):
        desk.accounts.list_sign_ins(alice, everyone=True)
    assert found >= OWN


def test_every_permission_is_somebodys() -> None:
    assert set().union(*ROLE_PERMISSIONS.values()) == set(Permission)
    assert ROLE_PERMISSIONS[Role.USER] == frozenset()


def test_every_change_is_in_the_audit_log(desk: Desk) -> None:
    desk.add("admin", Role.ADMIN)
    alice = desk.add("alice")
    desk.accounts.make_api_token(alice, "t")
    asyncio.run(desk.accounts.lock_user(ROOT, "alice"))
    said = [(entry.actor, entry.action, entry.target) for entry in desk.accounts.read_audit(ROOT)]
    assert said[:4] == [
        ("root", "user:lock", "alice"),
        ("alice", "token:add", "t"),
        ("alice", "sign-in:add", "alice"),
        ("alice", "user:enrol", "alice"),
    ]
