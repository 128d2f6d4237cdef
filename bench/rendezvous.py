#!/usr/bin/python3
"""What the way to another node costs: a stream through relay and rendezvous beside one straight from the app's socket.

    python bench/rendezvous.py [--mb 400] [--streams 1,4,16]

Runs the real relay, as a job would, with an app that sends as fast as it can, the rendezvous as a process of its own,
and, in this program, the portal that asks for streams and reads them. All of it shares this machine's cores, so the
network between is loopback and takes nothing away; prints MB/s, the CPU of relay and rendezvous for each GB, and how
long an answer to a few bytes takes. ./portico test installs all.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "src")]

import asyncio  # noqa: E402

from portico import wire  # noqa: E402
from portico.cli.relay_files import read_certificate  # noqa: E402
from portico.config import Config  # noqa: E402

SESSION = "kabcdefghij1"
APP = """
import os, socket, threading
def serve(sock):
    with sock:
        word = sock.recv(64)
        if word[:1] == b"E":
            while data := sock.recv(64):
                sock.sendall(data)
        else:
            block = bytes(1 << 18)
            for _ in range(int(word) * 4):
                sock.sendall(block)
listener = socket.socket(socket.AF_UNIX)
listener.bind(os.environ["PORTICO_SOCKET"])
listener.listen(64)
print(os.environ["PORTICO_SOCKET"], flush=True)
while True:
    threading.Thread(target=serve, args=(listener.accept()[0],), daemon=True).start()
"""
SERVE = """
import asyncio, socket, sys
from portico.cli.relay_files import RelayTls
from portico.config import Config
from portico.gateway import rendezvous
from portico.gateway.plane import PlaneLoop
listener = socket.socket(fileno=int(sys.argv[3]))
with asyncio.Runner(loop_factory=PlaneLoop) as runner:
    runner.run(rendezvous.serve(sys.argv[1], listener, RelayTls(Config(state_dir=sys.argv[2]))))
"""


class Way:
    """Portal, rendezvous and relay, with what they need."""

    def __init__(self, folder: Path) -> None:
        (folder / "state").mkdir()
        self._folder = folder
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._arrived = threading.Event()
        self._channel: wire.Channel | None = None
        self.processes: dict[str, int] = {}
        self.app = ""

    async def _handle(self, op: str, args: dict[str, object], fds: list[int]) -> wire.Answer | None:
        if op == "relay":
            self._loop.call_later(0.2, self._arrived.set)
            return {}, ()
        return None

    async def _accept(self, listener: socket.socket) -> None:
        sock, _ = await self._loop.sock_accept(listener)
        self._channel = wire.Channel(sock, self._handle, name="rendezvous")

    @contextlib.contextmanager
    def running(self) -> Iterator[Way]:
        """Run them; end them afterwards."""
        folder, path = self._folder, str(self._folder / "relays.sock")
        listener = wire.listen(path)
        listener.setblocking(False)
        tcp = socket.create_server(("127.0.0.1", 0))
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT / "src"), "HOME": "/"}
        rendezvous = subprocess.Popen(
            [sys.executable, "-c", SERVE, path, str(folder / "state"), str(tcp.fileno())], pass_fds=[tcp.fileno()],
            env=env,
        )  # fmt: skip
        asyncio.run_coroutine_threadsafe(self._accept(listener), self._loop).result(20)
        job = folder / "job.sh"
        job.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{APP}'\n")
        job.chmod(0o700)
        settings = {
            "hosts": [["127.0.0.1", tcp.getsockname()[1]]], "token": "bench",
            "certificate": read_certificate(Config(state_dir=str(folder / "state"))),
        }  # fmt: skip
        (folder / "relay.json").touch(0o600)
        (folder / "relay.json").write_text(json.dumps(settings))
        names = {"PORTICO_SESSION": SESSION, "PORTICO_SESSION_DIR": str(folder), "TMPDIR": "/tmp"}
        relay = subprocess.Popen(
            ["/usr/bin/python3", "-I", str(ROOT / "src/portico/relay/relay.py")], env={**env, **names},
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        try:
            assert relay.stdout
            self.app = relay.stdout.readline().strip()
            if not self._arrived.wait(20):
                raise TimeoutError("the relay did not come")
            children = Path(f"/proc/{relay.pid}/task/{relay.pid}/children").read_text().split()
            carrier = next(pid for pid in children if b"\0carry\0" in Path(f"/proc/{pid}/cmdline").read_bytes())
            self.processes = {"rendezvous": rendezvous.pid, "relay": int(carrier)}
            yield self
        finally:
            relay.terminate()
            relay.wait(20)
            rendezvous.terminate()
            rendezvous.wait(20)
            self._loop.call_soon_threadsafe(self._loop.stop)

    def open(self) -> socket.socket:
        """Return a stream to the app through relay and rendezvous, as a gateway gets it."""
        assert self._channel
        asking = self._channel.ask("relay_open", {"session": SESSION})
        return socket.socket(fileno=asyncio.run_coroutine_threadsafe(asking, self._loop).result(10).fds[0])

    def open_direct(self) -> socket.socket:
        """Return a stream straight to the app's socket, as a session on this machine has it."""
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(self.app)
        return sock

    def measure_cpu(self) -> dict[str, float]:
        """Return the seconds of CPU that each process has used."""
        stats = {name: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2] for name, pid in self.processes.items()}
        tick = os.sysconf("SC_CLK_TCK")
        return {name: sum(map(int, text.split()[11:13])) / tick for name, text in stats.items()}


def stream(opened: Callable[[], socket.socket], streams: int, mb: int) -> float:
    """Return MB/s (10^6) of so many streams together."""
    socks = [opened() for _ in range(streams)]
    each = max(1, mb // streams)

    def read(sock: socket.socket) -> None:
        with sock:
            sock.sendall(b"%d" % each)
            buffer, left = bytearray(1 << 18), each << 20
            while left > 0 and (size := sock.recv_into(buffer)):
                left -= size
            assert left == 0

    begin = time.perf_counter()
    threads = [threading.Thread(target=read, args=(sock,)) for sock in socks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (each << 20) * streams / 1e6 / (time.perf_counter() - begin)


def echo(opened: Callable[[], socket.socket], count: int = 1000) -> tuple[float, float]:
    """Return p50 and p99 of a few bytes there and back, in microseconds."""
    with opened() as sock:
        sock.sendall(b"E")
        time.sleep(0.1)
        times = []
        for _ in range(count):
            begin = time.perf_counter()
            sock.sendall(b"a")
            sock.recv(64)
            times.append((time.perf_counter() - begin) * 1e6)
    return statistics.median(times), statistics.quantiles(times, n=100)[98]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=400)
    parser.add_argument("--streams", default="1,4,16")
    options = parser.parse_args()
    print(f"load of the machine before: {os.getloadavg()[0]:.1f} with {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder, Way(Path(folder)).running() as way:
        for streams in map(int, options.streams.split(",")):
            direct = stream(way.open_direct, streams, options.mb)
            before = way.measure_cpu()
            through = stream(way.open, streams, options.mb)
            spent = {name: cpu_s - before[name] for name, cpu_s in way.measure_cpu().items()}
            cpu = ", ".join(f"{name} {cpu_s / (options.mb / 1000):.2f} s" for name, cpu_s in spent.items())
            print(
                f"{streams} at once: direct {direct:.0f} MB/s, through relay and rendezvous {through:.0f} MB/s "
                f"({through / direct:.2f}); CPU for each GB: {cpu}",
                flush=True,
            )
        for name, opened in (("direct", way.open_direct), ("through", way.open)):
            p50, p99 = echo(opened)
            print(f"echo {name}: p50 {p50:.0f} us, p99 {p99:.0f} us")


if __name__ == "__main__":
    main()
