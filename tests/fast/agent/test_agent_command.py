"""The agent's ``command``: programs run for the portal beside its other requests, bounded, and in a clean environment."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from portico import wire
from portico.agent import command, server
from portico.errors import Invalid, NotFound, Refused, TooMany, from_wire

SHELL = "/bin/sh"


class Asker:
    """The portal's side: many requests at a time."""

    def __init__(self) -> None:
        self.sock, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(20)
        self.thread = threading.Thread(target=self._serve, args=(theirs,))
        self.thread.start()
        self.next_id = 0

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            server.serve(sock)

    def send(self, op: str, stdin: bytes | None = None, **args: Any) -> int:
        self.next_id += 1
        fds = [wire.seal(stdin)] if stdin is not None else []
        wire.send(self.sock, {"id": self.next_id, "op": op, "args": args}, fds)
        wire.close_all(fds)
        return self.next_id

    def run(self, *argv: str, stdin: bytes | None = None, **more: Any) -> int:
        args = {"argv": list(argv), "env": {}, "timeout_s": 20, "limit_bytes": 1 << 20}
        return self.send("command", stdin, **(args | more))

    def take(self) -> tuple[int, dict[str, Any], bytes]:
        packet = wire.receive(self.sock)
        assert packet is not None
        if error := packet.body.get("error"):
            raise from_wire(error)
        out = b"".join(wire.read_sealed(fd, 32 << 20) for fd in packet.fds)
        wire.close_all(packet.fds)
        return packet.body["id"], packet.body["ok"], out

    def close(self) -> None:
        self.sock.close()
        self.thread.join(20)
        assert not self.thread.is_alive()


@pytest.fixture
def asker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Asker]:
    monkeypatch.setattr(server.signal, "signal", lambda *_: None)  # not this thread's to set
    monkeypatch.setenv("HOME", str(tmp_path))
    asker = Asker()
    yield asker
    asker.close()


def test_it_runs_with_stdin_and_returns_all_there_is(asker: Asker) -> None:
    script = b"\xff\x00a" * 100_000  # larger than a message, and no text
    asker.run(SHELL, "-c", "cat; echo oh >&2; exit 3", stdin=script)
    _, answer, out = asker.take()
    assert answer == {"status": 3, "stderr": "oh\n", "cut": False, "timed_out": False}
    assert out == script


def test_its_environment_is_clean(asker: Asker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/secret")
    monkeypatch.setenv("SBATCH_WRAP", "evil")
    asker.run("/usr/bin/env", env={"SLURM_CONF": "/etc/x", "LANG": "C"})
    _, _, out = asker.take()
    found = dict(line.split("=", 1) for line in out.decode().splitlines())
    assert found["SLURM_CONF"] == "/etc/x" and found["HOME"] == str(tmp_path) and found["LANG"] == "C"
    assert set(found) <= {*command.INHERITED, "SLURM_CONF", "PWD"}


def test_a_slow_command_holds_up_nothing(asker: Asker) -> None:
    slow = asker.run(SHELL, "-c", "sleep 0.7; echo done")
    ping = asker.send("ping")
    quick = asker.run("/bin/echo", "quick")
    assert [asker.take()[0] for _ in range(3)] == [ping, quick, slow]


def test_a_command_that_hangs_is_killed_with_its_children(asker: Asker, tmp_path: Path) -> None:
    asker.run(SHELL, "-c", f"sleep 300 & echo $! > {tmp_path}/pid; trap '' TERM; wait", timeout_s=0.5)
    _, answer, _ = asker.take()
    assert answer["timed_out"] and answer["status"] == -9
    pid = int((tmp_path / "pid").read_text())
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] not in "ZX":
        assert time.monotonic() < deadline, "its child lives"
        time.sleep(0.02)


def test_output_is_bounded(asker: Asker) -> None:
    asker.run(SHELL, "-c", "head -c 3000000 /dev/zero; head -c 100000 /dev/zero >&2", limit_bytes=1000)
    _, answer, out = asker.take()
    assert out == bytes(1000) and answer["cut"] and len(answer["stderr"]) == command.STDERR_LIMIT_BYTES


def test_a_child_that_keeps_the_pipe_is_not_waited_for(asker: Asker) -> None:
    began = time.monotonic()
    asker.run(SHELL, "-c", "echo said; sleep 15 &")
    assert asker.take()[2] == b"said\n"
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    "wrong",
    [
        {"argv": []}, {"argv": "ls"}, {"argv": ["a\0b"]}, {"argv": [1]}, {"env": {"A": 1}}, {"env": None},
        {"timeout_s": 0}, {"timeout_s": 10_000}, {"timeout_s": "1"}, {"limit_bytes": -1}, {"limit_bytes": True},
        {"limit_bytes": 1 << 40},
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused(asker: Asker, wrong: dict[str, Any]) -> None:
    asker.run("/bin/true", **wrong)
    with pytest.raises(Invalid):
        asker.take()


def test_a_program_that_is_not_there(asker: Asker) -> None:
    asker.run("squeue-of-nowhere")
    with pytest.raises(NotFound, match="squeue-of-nowhere"):
        asker.take()


def test_only_so_many_at_once_and_all_end_with_the_agent(asker: Asker) -> None:
    for _ in range(command.AT_ONCE):
        asker.run("/bin/sleep", "300")
    asker.run("/bin/true")
    with pytest.raises(TooMany):
        asker.take()


def test_only_sealed_memory_is_read(tmp_path: Path) -> None:
    fd = wire.seal(b"abc")
    assert wire.read_sealed(fd, 3) == b"abc" == wire.read_sealed(fd, 3)
    with pytest.raises(Refused):
        wire.read_sealed(fd, 2)
    with pytest.raises(OSError):
        os.pwrite(fd, b"x", 0)
    os.close(fd)
    reader, writer = os.pipe()
    unsealed = os.memfd_create("x")
    with open(tmp_path / "file", "w+b") as file:
        for other in (reader, unsealed, file.fileno()):
            with pytest.raises(Refused):
                wire.read_sealed(other, 10)
    for fd in (reader, writer, unsealed):
        os.close(fd)


def stream(asker: Asker, *argv: str, **more: Any) -> socket.socket:
    ours, theirs = socket.socketpair()
    asker.next_id += 1
    args = {"argv": list(argv), "env": {}, "timeout_s": 3600, "limit_bytes": 0, "stream": True}
    wire.send(asker.sock, {"id": asker.next_id, "op": "command", "args": args | more}, [theirs.fileno()])
    theirs.close()
    return ours


def test_a_stream_goes_past_the_agent_as_fast_as_it_is_read(asker: Asker) -> None:
    with stream(asker, SHELL, "-c", "head -c 50000000 /dev/zero; echo done >&2") as ours:
        time.sleep(0.2)  # it waits: nothing holds 50 MB
        asker.send("ping")
        assert asker.take()[1]["pid"] == os.getpid()
        total = 0
        while data := ours.recv(1 << 20):
            total += len(data)
        assert total == 50_000_000
    _, answer, out = asker.take()
    assert answer == {"status": 0, "stderr": "done\n", "cut": False, "timed_out": False} and out == b""


def test_a_reader_that_goes_ends_the_program(asker: Asker) -> None:
    with stream(asker, "/bin/cat", "/dev/zero") as ours:
        ours.recv(1 << 16)
    _, answer, _ = asker.take()
    assert answer["status"] != 0, "SIGPIPE, or ECONNRESET where something was left unread (unix(7))"


def test_standard_input_may_be_a_socket(asker: Asker) -> None:
    ours, theirs = socket.socketpair()
    args = {"argv": ["/usr/bin/wc", "-c"], "env": {}, "timeout_s": 20, "limit_bytes": 100}
    wire.send(asker.sock, {"id": 1, "op": "command", "args": args}, [theirs.fileno()])
    theirs.close()
    with ours:
        ours.sendall(b"x" * 3_000_000)
    assert asker.take()[2].strip() == b"3000000"


def test_a_stream_without_somewhere_to_go_is_refused(asker: Asker) -> None:
    asker.run("/bin/true", stream=True)
    with pytest.raises(Invalid):
        asker.take()
