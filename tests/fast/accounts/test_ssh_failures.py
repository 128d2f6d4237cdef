"""Who was not let in by SSH: told soon, told in full, and never a flood of rows."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from portico.accounts.ssh_failures import ROWS, WINDOW_S, FailureRow, SshFailures, clean_name
from portico.ssh.log import Failed


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def count(rows: list[FailureRow]) -> int:
    return sum(int(row.detail.split()[0]) for row in rows)


def test_the_first_is_told_at_once_and_a_flood_once_in_a_while() -> None:
    clock = Clock()
    failures = SshFailures(clock)
    failures.add(Failed("root", "192.0.2.1"))
    assert failures.take() == [FailureRow("root", "1 connection", "192.0.2.1")]
    rows = []
    for _ in range(6000):  # 100 a second for a minute
        clock.now += 0.01
        failures.add(Failed("root", "192.0.2.1"))
        rows += failures.take()
    assert len(rows) <= 2
    clock.now += WINDOW_S
    rows += failures.take()
    assert count(rows) == 6000 and {row.address for row in rows} == {"192.0.2.1"}
    clock.now += WINDOW_S
    assert failures.take() == [] and not failures._tallies, "it is forgotten"


def test_another_address_is_told_of_in_the_middle_of_a_flood() -> None:
    failures = SshFailures(Clock())
    for _ in range(1000):
        failures.add(Failed("root", "192.0.2.1"))
    failures.take()
    failures.add(Failed("alice", "198.51.100.7"))
    assert failures.take() == [FailureRow("alice", "1 connection", "198.51.100.7")]


def test_names_are_few_short_and_harmless() -> None:
    failures = SshFailures(Clock())
    for name in ("root", "admin", "<b>\n\x1b[1m", "x", "y", "root"):
        failures.add(Failed(name, "192.0.2.1"))
    (row,) = failures.take()
    assert row == FailureRow("root, admin, '<b>\\n\\x1b[1m', …", "6 connections", "192.0.2.1")
    assert clean_name("a" * 900) == "'" + "a" * 32 + "'…"
    assert clean_name("") == "''"


def test_one_with_very_many_addresses_of_his_own_is_one() -> None:
    failures = SshFailures(Clock())
    for number in range(300):
        failures.add(Failed("root", f"2001:db8:0:1::{number:x}"))
    assert failures.take() == [FailureRow("root", "300 connections", "2001:db8:0:1::/64")]


@given(st.lists(st.tuples(st.floats(0, 20), st.integers(0, 3000), st.sampled_from(["root", "a b", "c"])), max_size=300))
def test_every_attempt_is_told_once_and_rows_are_few(attempts: list[tuple[float, int, str]]) -> None:
    clock = Clock()
    failures, rows, times = SshFailures(clock), list[FailureRow](), list[float]()
    for pause_s, number, name in attempts:
        clock.now += pause_s
        failures.add(Failed(name, f"10.0.{number // 256}.{number % 256}" if number else ""))
        new = failures.take()
        rows += new
        times += [clock.now] * len(new)
    rows += failures.take(everything=True)
    assert count(rows) == len(attempts)
    for at in times:
        assert sum(at <= other < at + WINDOW_S for other in times) <= ROWS + 2


def test_a_botnet_is_a_handful_of_rows() -> None:
    clock = Clock()
    failures, rows = SshFailures(clock), list[FailureRow]()
    for number in range(50_000):
        clock.now += 0.001
        failures.add(Failed("root", f"10.{number // 65536}.{number // 256 % 256}.{number % 256}"))
        if number % 500 == 0:
            rows += failures.take()
    assert len(failures._tallies) <= 1000, "memory is bounded"
    assert len(rows) <= 2 * (ROWS + 2)
    rows += failures.take(everything=True)
    assert count(rows) == 50_000
