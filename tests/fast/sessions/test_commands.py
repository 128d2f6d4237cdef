"""CommandRunner: Portico's own commands in a child of this process, bounded, in a clean environment, and never too many."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

from portico.errors import NotFound
from portico.schedulers.slurm.command import Command, Result
from portico.sessions import BrokerMachine
from portico.sessions.commands import AT_ONCE, CommandRunner


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, 30))


def command(script: str, **more: Any) -> Command[Result]:
    return Command(("/bin/sh", "-c", script), lambda result: result, **({"env": ()} | more))


async def result(wanted: Command[Result]) -> Result:
    return await CommandRunner(BrokerMachine("/nonexistent")).run(None, wanted)


def test_all_there_is() -> None:
    found = run(result(command("cat; echo oh >&2; exit 4", stdin=b"\xff\0" * 100_000)))
    assert found == Result(4, b"\xff\0" * 100_000, b"oh\n")


def test_a_clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORTICO_FDS", "secret=3")
    monkeypatch.setenv("SQUEUE_FORMAT", "evil")
    out = run(result(command("env", env=(("TZ", "UTC"),)))).stdout.decode()
    assert "TZ=UTC" in out and "PORTICO" not in out and "SQUEUE" not in out


def test_what_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    began = time.monotonic()
    found = run(result(command(f"sleep 300 & echo $! > {tmp_path}/pid; wait", timeout_s=0.3)))
    assert found.timed_out and time.monotonic() - began < 10
    process = Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}/stat")
    assert not process.exists() or process.read_text().rpartition(")")[2].split()[0] in "ZX"


def test_output_is_bounded() -> None:
    found = run(result(command("head -c 500000 /dev/zero; head -c 500000 /dev/zero >&2", limit_bytes=1000)))
    assert found.stdout == bytes(1000) and found.cut and len(found.stderr) == 16 * 1024


def test_no_such_program() -> None:
    with pytest.raises(NotFound, match="squeue-of-nowhere"):
        run(result(Command(("squeue-of-nowhere",), lambda result: result)))


def test_one_that_is_given_up_leaves_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        task = asyncio.create_task(result(command(f"echo $$ > {tmp_path}/pid; exec sleep 300")))
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not Path(f"/proc/{(tmp_path / 'pid').read_text().strip()}").exists()

    run(test())


def test_not_too_many_at_once(tmp_path: Path) -> None:
    async def test() -> None:
        runner = CommandRunner(BrokerMachine("/nonexistent"))
        script = f"touch {tmp_path}/$$; ls {tmp_path} | wc -l; sleep 0.1; rm {tmp_path}/$$"
        found = await asyncio.gather(*(runner.run(None, command(script)) for _ in range(20)))
        assert max(int(one.stdout) for one in found) <= AT_ONCE

    run(test())
