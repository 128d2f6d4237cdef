"""One stream through the gateway, beside its peers, in the same run: MB/s, CPU per GB, echo latency, idle memory.

    PYTHONPATH=src python bench/gateway_stream.py [--mib 1024] [--rounds 3]

A source on a Unix socket sends zeros; a client on loopback TCP reads them. Between them stands, in turn: nothing,
HAProxy in TCP mode (no WebSocket at all), websockify (in a virtual environment made for this run), Portico's gateway.
Only the ratios carry over to another machine. CPU is the bridge's own, all its processes; memory is its PSS.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import multiprocessing
import os
import resource
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portico import wire

ECHOES, IDLE, BLOCK = 3000, 200, 1 << 20
CPU_TICKS = os.sysconf("SC_CLK_TCK")


# what is behind the bridge


def serve_app(path: str) -> None:
    """Per connection: a first byte ``s`` asks for bytes, whose number follows; anything else is sent back."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen(512)

    def serve(sock: socket.socket) -> None:
        with contextlib.suppress(OSError), sock:
            data = sock.recv(9)
            if data[:1] == b"s":
                left, block = struct.unpack(">Q", data[1:])[0], bytes(BLOCK)
                while left > 0:
                    sock.sendall(block)
                    left -= BLOCK
                return
            while data:
                sock.sendall(data)
                data = sock.recv(65536)

    while True:
        sock, _ = listener.accept()
        threading.Thread(target=serve, args=(sock,), daemon=True).start()


def serve_portal(run_dir: str, app: str) -> None:
    """Answer every route with a stream to the app."""

    async def handle(op: str, args: dict[str, Any], fds: list[int]) -> wire.Answer | None:
        if op != "route":
            return None
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(app)
        return {"kind": "stream", "protocol": "rfb", "view_only": False, "tags": ["user:bench"]}, [sock.detach()]

    async def main() -> None:
        listener = wire.listen(f"{run_dir}/routes.sock")
        listener.setblocking(False)
        kept = []
        while True:
            sock, _ = await asyncio.get_running_loop().sock_accept(listener)
            kept.append(wire.Channel(sock, handle))

    asyncio.run(main())


def serve_gateway(run_dir: str, port: int) -> None:
    """Be the gateway, with its one real entry."""
    from portico.config import load_config
    from portico.gateway import process
    from portico.gateway.limits import Limits

    config = load_config(None, run_dir=run_dir, state_dir="/x", install_dir="/x", port=port)
    sock = socket.create_server(("127.0.0.1", port))
    asyncio.run(process.serve(config, {"listen-portal": sock}, limits=Limits(connections_per_address=10_000)))


# the client


def connect_plain(address: Any) -> socket.socket:
    """Connect and say nothing."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    sock = socket.socket(family)
    sock.settimeout(60)
    sock.connect(address)
    if family == socket.AF_INET:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def connect_websocket(address: tuple[str, int]) -> socket.socket:
    """Connect and shake hands."""
    sock = connect_plain(address)
    key = base64.b64encode(bytes(16)).decode()
    sock.sendall(
        f"GET /stream HTTP/1.1\r\nHost: localhost:{address[1]}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: binary\r\n\r\n".encode()
    )
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += sock.recv(1)
    assert b" 101 " in head, head
    return sock


def frame(data: bytes) -> bytes:
    """Return a short binary frame, masked with zeros."""
    return struct.pack(">BB4x", 0x82, 0x80 | len(data)) + data


@dataclass
class Bridge:
    """One way to the app."""

    name: str
    address: Any
    websocket: bool
    pids: Callable[[], list[int]]

    def connect(self) -> socket.socket:
        """Open a stream."""
        return connect_websocket(self.address) if self.websocket else connect_plain(self.address)

    def say(self, sock: socket.socket, data: bytes) -> None:
        """Send a message."""
        sock.sendall(frame(data) if self.websocket else data)

    def cpu_s(self) -> float:
        """CPU used so far."""
        total = 0.0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                total += sum(int(field) for field in fields[11:15]) / CPU_TICKS  # with those of ended children
        return total

    def pss_bytes(self) -> int:
        """Memory, shared pages divided by those who share them."""
        total = 0
        for pid in self.pids():
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                    if line.startswith("Pss:"):
                        total += int(line.split()[1]) * 1024
        return total


@dataclass
class Result:
    """Figures of one bridge."""

    mb_per_s: float
    cpu_s_per_gb: float
    p50_us: float
    p99_us: float
    idle_bytes: float


def measure_stream(bridge: Bridge, size: int) -> tuple[float, float]:
    """Return (MB/s, CPU seconds per GB)."""
    with bridge.connect() as sock:
        cpu_s, begin = bridge.cpu_s(), time.perf_counter()
        bridge.say(sock, b"s" + struct.pack(">Q", size))
        buffer, left = bytearray(BLOCK), size
        while left > 0 and (got := sock.recv_into(buffer)):
            left -= got
        took_s, cpu_s = time.perf_counter() - begin, bridge.cpu_s() - cpu_s
    return size / took_s / 1e6, cpu_s / (size / 1e9)


def measure_echo(bridge: Bridge) -> tuple[float, float]:
    """Return p50 and p99 of an echo of 6 bytes, in microseconds."""
    times = []
    size = 6 + 2 * bridge.websocket
    with bridge.connect() as sock:
        for _ in range(ECHOES):
            begin = time.perf_counter()
            bridge.say(sock, b"hello!")
            got = 0
            while got < size:
                got += len(sock.recv(64))
            times.append((time.perf_counter() - begin) * 1e6)
    times.sort()
    return statistics.median(times), times[int(len(times) * 0.99)]


def measure_idle(bridge: Bridge) -> float:
    """Return the bridge's memory for each idle connection, in bytes."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(bridge.connect())
        time.sleep(0.5)
        before = bridge.pss_bytes()
        for _ in range(IDLE):
            sock = stack.enter_context(bridge.connect())
            bridge.say(sock, b"x")
            sock.recv(64)
        time.sleep(0.5)
        return (bridge.pss_bytes() - before) / IDLE


# the bridges


def find_free_port() -> int:
    """Return a port that is free now."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


def list_family(pid: int) -> list[int]:
    """Return a process and its descendants."""
    found = [pid]
    for one in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{one}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text().split()]
    return found


@contextlib.contextmanager
def started(argv: list[str]) -> Iterator[int]:
    """Run a program."""
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


@contextlib.contextmanager
def forked(target: Callable[..., None], *args: Any) -> Iterator[int]:
    """Run a function in a process of its own."""
    process = multiprocessing.get_context("spawn").Process(target=target, args=args, daemon=True)
    process.start()
    try:
        assert process.pid
        yield process.pid
    finally:
        process.terminate()
        process.join(20)


def wait_for(condition: Callable[[], Any]) -> None:
    """Wait until it does not raise."""
    deadline = time.monotonic() + 30
    while True:
        try:
            condition()
            return
        except (OSError, AssertionError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@contextlib.contextmanager
def direct(folder: Path, app: str) -> Iterator[Bridge]:
    """No bridge."""
    yield Bridge("none", app, False, list)


@contextlib.contextmanager
def haproxy(folder: Path, app: str) -> Iterator[Bridge]:
    """HAProxy, TCP mode, splice-auto, one thread."""
    port = find_free_port()
    config = folder / "haproxy.cfg"
    config.write_text(
        "global\n nbthread 1\n maxconn 4000\ndefaults\n mode tcp\n option splice-auto\n timeout connect 5s\n"
        f" timeout client 60s\n timeout server 60s\nlisten x\n bind 127.0.0.1:{port}\n server app unix@{app}\n"
    )
    with started(["haproxy", "-db", "-f", str(config)]) as pid:
        wait_for(lambda: connect_plain(("127.0.0.1", port)).close())
        yield Bridge("HAProxy, mode tcp", ("127.0.0.1", port), False, lambda: list_family(pid))


@contextlib.contextmanager
def websockify(folder: Path, app: str) -> Iterator[Bridge]:
    """websockify, a process for each connection."""
    venv = folder / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    subprocess.run([str(venv / "bin/pip"), "install", "-qq", "websockify"], check=True)
    port = find_free_port()
    argv = [str(venv / "bin/websockify"), f"--unix-target={app}", f"127.0.0.1:{port}"]
    with started(argv) as pid:
        wait_for(lambda: connect_websocket(("127.0.0.1", port)).close())
        yield Bridge("websockify", ("127.0.0.1", port), True, lambda: list_family(pid))


@contextlib.contextmanager
def portico(folder: Path, app: str) -> Iterator[Bridge]:
    """The gateway."""
    port = find_free_port()
    with forked(serve_portal, str(folder), app), forked(serve_gateway, str(folder), port) as pid:
        wait_for(lambda: connect_websocket(("127.0.0.1", port)).close())
        yield Bridge("Portico's gateway", ("127.0.0.1", port), True, lambda: [pid])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    results: dict[str, Result] = {}
    with tempfile.TemporaryDirectory(prefix="bench", dir="/tmp") as name:
        folder = Path(name)
        app = str(folder / "app.sock")
        with forked(serve_app, app):
            wait_for(lambda: connect_plain(app).close())
            for make, needs in ((direct, ""), (haproxy, "haproxy"), (websockify, ""), (portico, "")):
                if needs and not shutil.which(needs):
                    print(f"skipped: {needs} is not installed")
                    continue
                try:
                    with make(folder, app) as bridge:
                        rounds = [measure_stream(bridge, options.mib << 20) for _ in range(options.rounds)]
                        speed, cpu_s = max(one[0] for one in rounds), min(one[1] for one in rounds)
                        results[bridge.name] = Result(speed, cpu_s, *measure_echo(bridge), measure_idle(bridge))
                except subprocess.CalledProcessError as error:
                    print(f"skipped: {make.__name__}: {error}")
    print(f"\n{'bridge':20} {'MB/s':>7} {'CPU s/GB':>9} {'echo p50 us':>12} {'p99':>6} {'idle KB':>8}")
    for bridge_name, one in results.items():
        print(
            f"{bridge_name:20} {one.mb_per_s:7.0f} {one.cpu_s_per_gb:9.2f} {one.p50_us:12.0f} {one.p99_us:6.0f}"
            f" {one.idle_bytes / 1024:8.1f}"
        )
    ours = results["Portico's gateway"]
    for bridge_name, one in results.items():
        if bridge_name in ("none", "Portico's gateway"):
            continue
        print(
            f"Portico / {bridge_name}: MB/s x {ours.mb_per_s / one.mb_per_s:.2f},"
            f" CPU per GB x {ours.cpu_s_per_gb / one.cpu_s_per_gb:.2f},"
            f" echo p50 x {ours.p50_us / one.p50_us:.2f}, p99 x {ours.p99_us / one.p99_us:.2f},"
            f" idle memory x {ours.idle_bytes / max(one.idle_bytes, 1):.2f}"
        )


if __name__ == "__main__":
    main()
