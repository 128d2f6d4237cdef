"""portico.cli.supervisor, replacing programs: the new ones are ready before the old ones drain, and all end at the end."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from portico.cli import supervisor
from portico.cli.place import Lock
from portico.cli.programs import concerns_portal, keep_fixed
from portico.cli.supervisor import Program, Supervisor
from portico.config import Config, load_config
from portico.errors import Unavailable

ENV = {"PATH": os.environ["PATH"]}
SERVE = """
import os, signal, sys, time
ended = []
signal.signal(signal.SIGINT, lambda *_: sys.exit(print("int", flush=True)))
signal.signal(signal.SIGTERM, lambda *_: ended.append(print("term", flush=True)))
fds = dict(part.split("=") for part in os.environ["PORTICO_FDS"].split(",") if part)
print("up", os.getpid(), flush=True)
if "ready" in fds:
    os.write(int(fds["ready"]), b"1")
while not ended or os.path.exists(KEEP):
    time.sleep(0.01)
"""


async def wait_for(condition: Callable[[], object], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        await asyncio.sleep(0.01)


def make_server(keep: Path, name: str = "server-1", code: str = SERVE) -> Program:
    argv = (sys.executable, "-c", f"KEEP = {str(keep)!r}\n{code}")
    return Program(name, argv, ENV, end_signal=signal.SIGINT, has_siblings=True)


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_the_old_one_drains_once_the_new_one_is_ready(tmp_path: Path) -> None:
    lines: list[str] = []
    keep = tmp_path / "keep"
    keep.touch()
    changes = 0

    async def scenario() -> None:
        nonlocal changes
        supervised = Supervisor(tmp_path, 0o600, lines.append)

        def count() -> None:
            nonlocal changes
            changes += 1

        supervised.on_change = count
        await supervised.start(make_server(keep))
        old = supervised.pids["server-1"]
        await wait_for(lambda: lines)
        await supervised.replace("server", [make_server(keep, "server-1"), make_server(keep, "server-2")])
        assert list(supervised.pids) == ["server-1", "server-2"]
        assert old not in supervised.pids.values()
        assert [(one["name"], one["pid"]) for one in supervised.draining] == [("server-1", old)]
        await wait_for(lambda: f"server-1 (draining, process {old}): term" in lines)
        assert is_there(old)
        assert changes == 1
        keep.unlink()
        await wait_for(lambda: not supervised.draining and changes == 2)
        assert not is_there(old)
        assert len(supervised.pids) == 2
        await supervised.stop(["server"])

    asyncio.run(scenario())
    log = (tmp_path / "server-1.log").read_text()
    assert "] [supervisor] replaced; finishes what it has" in log
    assert "[supervisor] ended with status 0" in log
    assert "starting it again" not in log


def test_stopping_ends_those_that_drain_too(tmp_path: Path) -> None:
    lines: list[str] = []
    keep = tmp_path / "keep"
    keep.touch()

    async def scenario() -> list[int]:
        supervised = Supervisor(tmp_path, 0o600, lines.append)
        await supervised.start(make_server(keep))
        await wait_for(lambda: lines)
        for _ in range(2):
            await supervised.replace("server", [make_server(keep)])
        pids = [*supervised.pids.values(), *(one["pid"] for one in supervised.draining)]
        await wait_for(lambda: sum("term" in line for line in lines) == 2)
        await supervised.stop(["server"])
        return pids

    begin = time.monotonic()
    pids = asyncio.run(scenario())
    assert len(pids) == 3
    assert not any(is_there(pid) for pid in pids)
    assert sum(line.endswith(": int") for line in lines) == 3
    assert time.monotonic() - begin < supervisor.STOP_AFTER_S + 5


@pytest.mark.parametrize("code", ["raise SystemExit(78)", "import time\nprint('up', flush=True)\ntime.sleep(60)"])
def test_a_new_one_that_is_not_ready_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    monkeypatch.setattr(supervisor, "READY_AFTER_S", 1.0)
    lines: list[str] = []

    async def scenario() -> None:
        supervised = Supervisor(tmp_path, 0o600, lines.append)
        await supervised.start(make_server(tmp_path / "none"))
        await wait_for(lambda: lines)
        before = supervised.pids
        good, bad = make_server(tmp_path / "none"), make_server(tmp_path / "none", "server-2", code)
        with pytest.raises(Unavailable):
            await supervised.replace("server", [good, bad])
        assert supervised.pids == before
        assert not supervised.draining
        assert is_there(before["server-1"])
        failure = asyncio.create_task(supervised.wait_for_failure())
        await asyncio.sleep(0.05)
        assert not failure.done()
        failure.cancel()
        await supervised.stop(["server"])

    asyncio.run(scenario())
    assert not any("term" in line for line in lines)


def test_one_with_siblings_is_never_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "BACKOFF_S", (0.0, 0.01))
    lines: list[str] = []

    async def scenario() -> None:
        supervised = Supervisor(tmp_path, 0o600, lines.append)
        await supervised.start(make_server(tmp_path / "none", "server-2"))
        await supervised.start(make_server(tmp_path / "none", "server-1", "raise SystemExit(1)"))
        await wait_for(lambda: sum("ended with status 1" in line for line in lines) > 4)
        other = supervised.pids["server-2"]
        await supervised.replace("server", [make_server(tmp_path / "none")])
        await wait_for(lambda: not is_there(other))
        await supervised.stop(["server"])

    asyncio.run(scenario())
    assert not any("giving up" in line for line in lines)


def test_a_changed_program_ends_and_starts_at_once(tmp_path: Path) -> None:
    lines: list[str] = []

    async def scenario() -> None:
        supervised = Supervisor(tmp_path, 0o600, lines.append)
        await supervised.start(make_server(tmp_path / "none"))
        await wait_for(lambda: lines)
        old = supervised.pids["server-1"]
        await supervised.change(make_server(tmp_path / "none", code="print('changed', flush=True)" + SERVE))
        assert not is_there(old)
        await wait_for(lambda: "server-1: changed" in lines)
        await supervised.stop(["server"])

    asyncio.run(scenario())
    assert any("starting it with its new settings" in line for line in lines)


def test_what_only_a_start_changes_is_kept_and_told() -> None:
    running = load_config(None)
    wanted = load_config(None, port=9000, max_hours=2.0, gateways=3)
    config, kept = keep_fixed(wanted, running)
    assert (config.port, config.apps_port, config.max_hours, config.gateways) == (8000, 8001, 2.0, 3)
    assert kept == ["apps_port", "port", "relay_port"]
    assert concerns_portal(config, running)
    assert not concerns_portal(load_config(None, gateways=3), running)
    tls = load_config(None, tls_certificate="c", tls_key="k")
    assert concerns_portal(tls, running)
    assert not concerns_portal(load_config(None, tls_certificate="d", tls_key="k"), tls)


def test_a_reader_never_sees_half_of_the_facts(tmp_path: Path) -> None:
    lock = Lock(Config(run_dir=str(tmp_path), state_dir=str(tmp_path)))
    lock.take()
    for facts in ({"a": "x" * 500}, {"a": 1}, {"b": "y" * 100}, {}):
        lock.write(facts)
        assert lock.read() == {"pid": os.getpid(), **facts}
    lock.release()
    assert lock.read() is None
