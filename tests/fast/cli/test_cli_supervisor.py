"""portico.cli.supervisor: a process that dies is started again, nobody is refused meanwhile, and all end in order."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from portico.cli import supervisor
from portico.cli.log_file import LogFile, render_line
from portico.cli.supervisor import Program, Supervisor

ENV = {"PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(sys.path)}
ANSWER = """
import os, socket
fd = int(os.environ["PORTICO_FDS"].partition("=")[2])
sock = socket.socket(fileno=fd)
print("serving as", os.getpid(), flush=True)
while True:
    peer, _ = sock.accept()
    if peer.recv(1) == b"!":
        os._exit(3)
    peer.sendall(b"ok")
    peer.close()
"""


async def wait_for(condition: Callable[[], object], timeout_s: float = 10) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        await asyncio.sleep(0.01)


def make_program(code: str, name: str = "server", **more: object) -> Program:
    return Program(name, (sys.executable, "-c", code), ENV, **more)  # type: ignore[arg-type]


def test_a_program_that_dies_is_started_again_and_no_connection_is_refused(tmp_path: Path) -> None:
    lines: list[str] = []

    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            supervised = Supervisor(tmp_path, 0o600, lines.append)
            await supervised.start(make_program(ANSWER, descriptors={"x": listener.fileno()}))
            await wait_for(lambda: any("serving" in line for line in lines))
            first = supervised.pids["server"]
            address = listener.getsockname()
            with socket.create_connection(address) as fatal:
                fatal.sendall(b"!")
            reader, writer = await asyncio.open_connection(*address)  # at once: nobody accepts yet
            writer.write(b"?")
            assert await asyncio.wait_for(reader.read(), 10) == b"ok"
            writer.close()
            assert supervised.pids["server"] != first
            await supervised.stop(["server"])

    asyncio.run(scenario())
    assert any("ended with status 3; starting it again" in line for line in lines)
    log = (tmp_path / "server.log").read_text()
    assert "serving as" in log
    assert "[supervisor] ended with status 3" in log


def test_a_program_that_dies_again_and_again_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "BACKOFF_S", (0.0, 0.01))

    async def scenario() -> str:
        supervised = Supervisor(tmp_path, 0o600, lambda line: None)
        await supervised.start(make_program("raise SystemExit(1)"))
        await supervised.start(make_program("import time; time.sleep(60)", "other"))
        failed = await asyncio.wait_for(supervised.wait_for_failure(), 20)
        await supervised.stop(["server", "other"])
        return failed

    assert asyncio.run(scenario()) == "server"


def test_a_program_that_says_no_retry_helps_is_given_up_at_once(tmp_path: Path) -> None:
    async def scenario() -> str:
        supervised = Supervisor(tmp_path, 0o600, lambda line: None)
        await supervised.start(make_program(f"raise SystemExit({supervisor.HOPELESS_STATUS})"))
        failed = await asyncio.wait_for(supervised.wait_for_failure(), 10)
        await supervised.stop(["server"])
        return failed

    begin = time.monotonic()
    assert asyncio.run(scenario()) == "server"
    assert (tmp_path / "server.log").read_text().count("[supervisor]") == 1
    assert time.monotonic() - begin < 10


def test_stop_keeps_the_order_and_kills_the_deaf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "STOP_AFTER_S", 0.3)
    lines: list[str] = []
    begin = "import signal, time\nsignal.signal(15, {})\nprint('up', flush=True)\ntime.sleep(60)"
    polite, deaf = begin.format("lambda *_: exit(print('bye'))"), begin.format("signal.SIG_IGN")

    async def scenario() -> list[int]:
        supervised = Supervisor(tmp_path, 0o600, lines.append)
        await supervised.start(make_program(deaf, "deaf"))
        await supervised.start(make_program(polite, "polite"))
        await wait_for(lambda: sum("up" in line for line in lines) == 2)
        pids = list(supervised.pids.values())
        await supervised.stop(["deaf", "polite"])
        return pids

    for pid in asyncio.run(scenario()):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert lines.index("deaf: does not end; killing it") < lines.index("polite: bye")


def test_programs_get_a_session_of_their_own_and_only_the_named_descriptors(tmp_path: Path) -> None:
    lines: list[str] = []
    code = (
        "import os\n"
        "fds = sorted(map(int, os.listdir('/proc/self/fd')))\n"  # one is the listing's own, closed by now
        "fds = [fd for fd in fds if os.path.exists(f'/proc/self/fd/{fd}')]\n"
        "print(os.getsid(0) == os.getpid(), fds, flush=True)\n"
    )

    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as two:
            two.set_inheritable(True)
            supervised = Supervisor(tmp_path, 0o600, lines.append)
            await supervised.start(make_program(code, descriptors={"x": one.fileno()}))
            await wait_for(lambda: lines)
            assert lines[0] == f"server: True {[0, 1, 2, one.fileno()]}"
            await supervised.stop(["server"])

    asyncio.run(scenario())


def test_processes_die_with_their_supervisor(tmp_path: Path) -> None:
    child = (
        "import os, time\nfrom portico.cli.process import harden\nharden(gains_nothing=True)\n"
        "print(os.getpid(), flush=True)\ntime.sleep(60)"
    )
    parent = f"""
import os, subprocess, sys, time
os.environ["PORTICO_SUPERVISOR"] = str(os.getpid())
subprocess.Popen([sys.executable, "-c", {child!r}])
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, env=ENV, text=True) as process:
        assert process.stdout
        pid = int(process.stdout.readline())
        status = Path(f"/proc/{pid}/status").read_text()
        assert "NoNewPrivs:\t1" in status
        process.send_signal(signal.SIGKILL)
        process.wait()
        deadline = time.monotonic() + 10
        while Path(f"/proc/{pid}").exists() and " Z " not in Path(f"/proc/{pid}/stat").read_text():
            assert time.monotonic() < deadline, "the child outlived its supervisor"
            time.sleep(0.01)


def test_a_log_is_bounded_and_follows_no_link(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "x.log", mode=0o640, limit_bytes=1000, kept=2)
    for number in range(100):
        log.write(f"{number:099d}\n".encode())
    log.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.log", "x.log.1", "x.log.2"]
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
    assert (tmp_path / "x.log").read_text().endswith("99\n")
    assert stat.S_IMODE((tmp_path / "x.log").stat().st_mode) == 0o640
    (tmp_path / "link.log").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="link"):
        LogFile(tmp_path / "link.log", mode=0o640)
    assert not (tmp_path / "target").exists()


def test_a_line_for_the_terminal_is_harmless() -> None:
    assert render_line(b"a\x1b[2Jb\x07\xff\n") == "a\\x1b[2Jb\\x07\N{REPLACEMENT CHARACTER}"


def test_an_endless_line_is_cut(tmp_path: Path) -> None:
    lines: list[str] = []

    async def scenario() -> None:
        supervised = Supervisor(tmp_path, 0o600, lines.append)
        await supervised.start(make_program("print('x' * 100_000, flush=True); import time; time.sleep(60)"))
        await wait_for(lambda: sum(len(line) for line in lines) > 100_000)
        await supervised.stop(["server"])

    asyncio.run(scenario())
    assert max(len(line) for line in lines) < 2 * supervisor.LINE_LIMIT_BYTES
