"""portico.store: values in, values out; and what is said when the file is not what it should be."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine

from portico.errors import Unavailable
from portico.model import Reach, Reason, Role, Session, SessionState, UserState
from portico.store import Store
from portico.store.tables import metadata

AT = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "portico.db")
    store.upgrade()
    yield store
    store.close()


def make_session(session_id: str = "abcdefghijkl", user: str = "alice", **changes: object) -> Session:
    session = Session(
        id=session_id, user_name=user, app_id="terminal", title="T", cluster="local", reach=Reach.PTY, cores=1.5,
        memory_bytes=1 << 40, hours=2.5, values={"a": "ä\"'"}, created=AT,
    )  # fmt: skip
    return replace(session, **changes)  # type: ignore[arg-type]


def test_migrations_make_what_the_tables_say(store: Store) -> None:
    engine = create_engine(f"sqlite:///{store.path}")
    with engine.connect() as connection:
        differences = compare_metadata(MigrationContext.configure(connection), metadata)
    engine.dispose()
    assert differences == []


def test_upgrading_twice_changes_nothing(store: Store) -> None:
    with store.begin() as tx:
        tx.add_user("alice", Role.USER, UserState.INVITED, AT)
    store.upgrade()
    with store.read() as tx:
        assert [user.name for user in tx.list_users()] == ["alice"]


def test_the_file_is_its_owners_alone(store: Store) -> None:
    assert os.stat(store.path).st_mode & 0o777 == 0o600


def test_a_session_comes_back_as_it_was(store: Store) -> None:
    first = make_session()
    last = replace(
        first, state=SessionState.ENDED, reason=Reason.FAILED, detail="x", started=AT, ready=AT, ends=AT, ended=AT
    )
    with store.begin() as tx:
        tx.add_session(first)
        assert tx.find_session(first.id) == first
        tx.save_session(last)
    with store.read() as tx:
        assert tx.find_session(first.id) == last
        assert tx.count_live("alice") == 0


def test_live_sessions_come_oldest_first(store: Store) -> None:
    with store.begin() as tx:
        for n, state in enumerate([SessionState.READY, SessionState.QUEUED, SessionState.ENDED, SessionState.STARTING]):
            tx.add_session(make_session(f"abcdefghijk{n}", state=state, created=AT + timedelta(hours=3 - n)))
        assert [session.id[-1] for session in tx.list_live_sessions()] == ["3", "1", "0"]
        assert tx.count_live("alice") == 3
        assert [session.id[-1] for session in tx.list_sessions("alice", limit=2)] == ["0", "1"]
        assert tx.list_sessions("bob") == []


def test_an_exception_takes_everything_back(store: Store) -> None:
    with pytest.raises(ZeroDivisionError), store.begin() as tx:
        tx.add_user("alice", Role.USER, UserState.INVITED, AT)
        tx.add_audit("root", "user:add", "alice")
        raise ZeroDivisionError
    with store.read() as tx:
        assert (tx.list_users(), tx.list_audit(10)) == ([], [])


def test_a_reader_changes_nothing(store: Store) -> None:
    with store.read() as tx:
        tx.add_user("alice", Role.USER, UserState.INVITED, AT)
    with store.read() as tx:
        assert tx.list_users() == []


def test_a_ticket_is_taken_once_however_many_reach_for_it(store: Store) -> None:
    with store.begin() as tx:
        user = tx.add_user("alice", Role.USER, UserState.ACTIVE, AT)
        sign_in = tx.add_sign_in(user.id, "h", AT, AT + timedelta(hours=1), "", "")
        tx.add_session(make_session())
        tx.add_ticket("ticket", "abcdefghijkl", sign_in, "alice", AT + timedelta(seconds=60))
    taken: list[object] = []
    barrier = threading.Barrier(8)

    def take() -> None:
        barrier.wait()
        with store.begin() as tx:
            taken.append(tx.take_ticket("ticket", AT))

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken, key=bool) == [None] * 7 + [("abcdefghijkl", sign_in, "alice")]


def test_an_old_ticket_is_none(store: Store) -> None:
    with store.begin() as tx:
        user = tx.add_user("alice", Role.USER, UserState.ACTIVE, AT)
        sign_in = tx.add_sign_in(user.id, "h", AT, AT + timedelta(hours=1), "", "")
        tx.add_session(make_session())
        tx.add_ticket("ticket", "abcdefghijkl", sign_in, "alice", AT)
        tx.add_grant("grant", "abcdefghijkl", sign_in, "alice", AT)
        assert tx.take_ticket("ticket", AT) is None
        assert tx.find_grant("grant", AT) is None


def test_what_hangs_on_a_sign_in_goes_with_it(store: Store) -> None:
    with store.begin() as tx:
        user = tx.add_user("alice", Role.USER, UserState.ACTIVE, AT)
        sign_in = tx.add_sign_in(user.id, "h", AT, AT + timedelta(hours=1), "", "")
        tx.add_session(make_session())
        tx.add_grant("grant", "abcdefghijkl", sign_in, "alice", AT + timedelta(hours=1))
        tx.delete_sign_in(sign_in)
        assert tx.find_grant("grant", AT) is None
        tx.add_share("abcdefghijkl", "alice", "bob", AT)
        tx.delete_session("abcdefghijkl")
        assert tx.list_shares_for("bob") == []


def test_an_id_is_never_given_twice(store: Store) -> None:
    with store.begin() as tx:
        first = tx.add_user("alice", Role.USER, UserState.ACTIVE, AT)
        tx.delete_user(first)
        assert tx.add_user("bob", Role.USER, UserState.ACTIVE, AT).id > first.id


def test_a_locked_database_says_so_in_time(store: Store) -> None:
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(Unavailable, match="database is busy") as said, store.begin():
            pass
        assert said.value.retry_after_s
        with store.read() as tx:
            assert tx.list_users() == [], "who reads need not wait"
    finally:
        other.close()


@pytest.mark.parametrize("content", [b"no database" * 1000, b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_damaged_file_is_told_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "portico.db"
    path.write_bytes(content)
    store = Store(path)
    with pytest.raises(Unavailable, match="is damaged") as said:
        store.upgrade()
    store.close()
    assert "backup" in said.value.hint
    assert path.read_bytes() == content


def test_a_newer_database_is_refused(store: Store) -> None:
    with sqlite3.connect(store.path) as other:
        other.execute("UPDATE alembic_version SET version_num = '9999'")
    other.close()
    with pytest.raises(Unavailable, match="newer Portico"):
        store.upgrade()


def test_a_backup_is_whole_and_overwrites_nothing(store: Store, tmp_path: Path) -> None:
    with store.begin() as tx:
        tx.add_user("alice", Role.USER, UserState.ACTIVE, AT)
    target = tmp_path / "backup.db"
    store.backup(target)
    assert os.stat(target).st_mode & 0o777 == 0o600
    copy = Store(target)
    with copy.read() as tx:
        assert [user.name for user in tx.list_users()] == ["alice"]
    copy.close()
    with pytest.raises(Unavailable):
        store.backup(target)


def test_naive_times_are_a_defect(store: Store) -> None:
    with pytest.raises(Exception, match="naive"), store.begin() as tx:
        tx.add_user("alice", Role.USER, UserState.ACTIVE, datetime(2026, 1, 1))


def test_writers_of_one_process_wait_for_their_turn_however_many(store: Store) -> None:
    troubles: list[Exception] = []

    def write(number: int) -> None:
        try:
            with store.begin() as tx:
                tx.add_audit(f"user{number}", "test", "", "")
                time.sleep(0.3)
        except Exception as error:
            troubles.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not troubles
    with store.read() as tx:
        assert len({row.actor for row in tx.list_audit(100)}) == 12
