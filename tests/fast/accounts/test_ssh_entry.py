"""Who gets in by SSH, what is kept of it, and what ends when something is taken back."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from desk import Desk

from portico.accounts.ssh_entry import Process, SshEntry
from portico.errors import NotFound, Unavailable
from portico.model import SshCertificate, SshConnection, SshKey, UserState
from portico.portal.ssh_door import LogTail
from portico.ssh.log import Accepted

PROCESS = Process(4711, 99, "boot")


class Door:
    """Entry for alice, who has a key and a certificate."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.desk = Desk(folder)
        self.ended: list[SshConnection] = []
        self.trouble: Exception | None = None
        config = replace(self.desk.config, **settings)
        self.entry = SshEntry(self.desk.store, config, self.end, self.desk.clock)
        self.alice, self.bob = self.desk.add_user("alice"), self.desk.add_user("bob")
        at = self.desk.clock.now
        key = SshKey(0, "alice", "laptop", "ssh-ed25519", "AAAA", "SHA256:k", 256, (), at)
        certificate = SshCertificate(0, "alice", "ssh-ed25519", "CCCC", "SHA256:c", (), at, at + timedelta(hours=8))
        with self.desk.store.begin() as tx:
            self.key_id = tx.add_ssh_key(key)
            self.serial = tx.add_ssh_certificate(certificate)

    async def end(self, connection: SshConnection) -> None:
        if self.trouble:
            raise self.trouble
        self.ended.append(connection)

    def change_key(self, **changes: Any) -> None:
        with self.desk.store.begin() as tx:
            key = tx.delete_ssh_key("alice", self.key_id)
            assert key
            self.key_id = tx.add_ssh_key(replace(key, **changes))

    def list_connections(self) -> list[SshConnection]:
        with self.desk.store.read() as tx:
            return tx.list_all_ssh_connections()

    def list_audit(self) -> list[tuple[str, str, str, str]]:
        with self.desk.store.read() as tx:
            return [(one.actor, one.action, one.detail, one.address) for one in tx.list_audit(10)]


@pytest.fixture
def door(tmp_path: Path) -> Door:
    return Door(tmp_path)


def test_a_key_is_good_for_its_user_alone(door: Door) -> None:
    assert door.entry.find_keys("alice", "SHA256:k", PROCESS) == ["ssh-ed25519 AAAA"]
    for user, fingerprint in (
        ("bob", "SHA256:k"), ("alice", "SHA256:x"), ("root", "SHA256:k"), ("", ""), ("alice\n", "SHA256:k"),
    ):  # fmt: skip
        assert door.entry.find_keys(user, fingerprint, PROCESS) == []


def test_where_from_and_until_when(door: Door) -> None:
    door.change_key(sources=("192.0.2.0/24", "2001:db8::/32"), expires=door.desk.clock.now + timedelta(days=1))
    assert door.entry.find_keys("alice", "SHA256:k", None) == ['from="192.0.2.0/24,2001:db8::/32" ssh-ed25519 AAAA']
    door.desk.clock.advance(days=1)
    assert door.entry.find_keys("alice", "SHA256:k", None) == []


@pytest.mark.parametrize("state", [UserState.LOCKED, UserState.INVITED])
def test_only_active_users_come_in(door: Door, state: UserState) -> None:
    with door.desk.store.begin() as tx:
        tx.set_user(door.alice.user_id, state=state)
    assert door.entry.find_keys("alice", "SHA256:k", PROCESS) == []
    assert door.entry.find_principals("alice", "SHA256:c", door.serial, PROCESS) == []
    assert door.list_connections() == []


def test_a_certificate_has_one_principal_and_can_be_taken_back(door: Door) -> None:
    look = door.entry.find_principals
    assert look("alice", "SHA256:c", door.serial, PROCESS) == ["alice"]
    assert look("bob", "SHA256:c", door.serial, PROCESS) == look("alice", "SHA256:c", 99, PROCESS) == []
    assert look("alice", "SHA256:other", door.serial, PROCESS) == [], "the serial of another certificate"
    assert door.entry.find_keys("alice", "SHA256:c", PROCESS) == [], "its key alone is none at the front door"
    with door.desk.store.begin() as tx:
        assert tx.revoke_ssh_certificate("alice", door.serial, door.desk.clock())
    assert look("alice", "SHA256:c", door.serial, PROCESS) == []


def test_sites_can_ask_for_more(tmp_path: Path) -> None:
    door = Door(tmp_path / "1", ssh_keys=False)
    assert door.entry.find_keys("alice", "SHA256:k", PROCESS) == []
    assert door.entry.find_principals("alice", "SHA256:c", door.serial, PROCESS) == ["alice"]
    assert door.entry.list_inner("alice") == [("ssh-ed25519", "CCCC")]
    door = Door(tmp_path / "2", ssh_sign_in_hours=1.0)
    door.desk.clock.advance(hours=2)
    assert door.entry.find_keys("alice", "SHA256:k", PROCESS) == []
    with door.desk.store.begin() as tx:
        at = door.desk.clock()
        tx.add_sign_in(door.alice.user_id, "hash", at, at + timedelta(hours=12), "", "")
    assert door.entry.find_keys("alice", "SHA256:k", PROCESS) and len(door.entry.list_inner("alice")) == 2
    door.desk.clock.advance(hours=2)
    assert door.entry.find_keys("alice", "SHA256:k", PROCESS) == []


def test_what_is_taken_back_ends_what_lives_by_it(door: Door) -> None:
    async def test() -> None:
        door.entry.find_keys("alice", "SHA256:k", PROCESS)
        door.entry.find_keys("alice", "SHA256:k", PROCESS)  # sshd asks twice for a connection
        door.entry.find_principals("alice", "SHA256:c", door.serial, Process(4712, 99, "boot"))
        assert len(door.list_connections()) == 2
        await door.entry.cut(["key:999", "session:x", "sign-in:1", "user:bob"])
        assert door.ended == []
        await door.entry.cut([f"key:{door.key_id}"])
        assert [one.pid for one in door.ended] == [4711] and len(door.list_connections()) == 1
        await door.entry.cut(["user:alice"])
        assert [one.pid for one in door.ended] == [4711, 4712] and door.list_connections() == []

    asyncio.run(test())


def test_an_end_that_fails_is_tried_again_and_one_that_was_is_forgotten(door: Door) -> None:
    async def test() -> None:
        door.entry.find_keys("alice", "SHA256:k", PROCESS)
        door.trouble = Unavailable("The broker is away.")
        await door.entry.cut(["user:alice"])
        assert len(door.list_connections()) == 1
        door.trouble = NotFound("There is no such connection.")
        await door.entry.cut(["user:alice"])
        assert door.list_connections() == []

    asyncio.run(test())


def test_who_came_in_is_written_down(door: Door) -> None:
    door.entry.record(Accepted("alice", "192.0.2.7", "SHA256:k", None))
    door.entry.record(Accepted("alice", "192.0.2.8", "SHA256:c", door.serial))
    assert door.list_audit()[:2] == [
        ("alice", "ssh:sign-in", f"certificate {door.serial}", "192.0.2.8"),
        ("alice", "ssh:sign-in", "key SHA256:k", "192.0.2.7"),
    ]
    with door.desk.store.read() as tx:
        (key,) = tx.list_ssh_keys("alice")
        (certificate,) = tx.list_ssh_certificates("alice", door.desk.clock.now)
    assert key.last_address == "192.0.2.7" and key.last_used and certificate.last_address == "192.0.2.8"


def test_a_user_who_is_removed_has_no_keys(door: Door) -> None:
    with door.desk.store.begin() as tx:
        user = tx.find_user("alice")
        assert user
        tx.delete_user(user)
        assert tx.list_ssh_keys("alice") == tx.list_ssh_certificates("alice", door.desk.clock.now) == []


def test_connections_that_are_gone_are_forgotten(door: Door) -> None:
    door.entry.find_keys("alice", "SHA256:k", PROCESS)
    door.entry.find_keys("alice", "SHA256:k", Process(1, 2, "boot"))
    door.entry.tidy(lambda one: one.pid == 1)
    assert [one.pid for one in door.list_connections()] == [1]


def test_a_log_is_read_once_over_restarts_and_rotations(tmp_path: Path) -> None:
    path, mark = tmp_path / "sshd.log", tmp_path / "mark"
    tail = LogTail(path, mark)
    assert tail.read() == []
    path.write_text("one\ntwo\nhal")
    assert tail.read() == ["one", "two"] and tail.read() == []
    with open(path, "a") as file:
        file.write("f\nthree\n")
    tail = LogTail(path, mark)
    assert tail.read() == ["half", "three"]
    with open(path, "a") as file:
        file.write("last\n")
    path.rename(tmp_path / "sshd.log.1")
    path.write_text("first\n")
    assert tail.read() == ["last", "first"] and LogTail(path, mark).read() == []
    path.write_text("x\n")  # cut by hand
    assert tail.read() == ["x"]
    mark.write_text("rubbish")
    assert LogTail(path, mark).read() == ["x"]
