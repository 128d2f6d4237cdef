"""What strangers do to others who use Portico's sshd, for bench/ssh.py: failing logins, and silent connections.

They come from 127.0.0.2, alice from 127.0.0.1: sshd counts connections that are not let in yet by their source.
"""

from __future__ import annotations

import contextlib
import socket
import statistics
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from ssh_person import QUIET, SshPerson, make_key

STRANGER = "127.0.0.2"
A_SECOND = 100
SILENT = 150
"""More than all that MaxStartups had let in from one source."""


class Strangers:
    """Those who can't get in, until closed.

    Args:
        work: What one does, at its own pace.
        count: How many there are.
    """

    def __init__(self, work: Callable[[Strangers], None], count: int) -> None:
        self.told: Counter[str] = Counter()
        self.over = threading.Event()
        self._began = time.perf_counter()
        self._ticks = 0
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=work, args=(self,), daemon=True) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def wait_turn(self) -> bool:
        """Wait until the next login is due, of A_SECOND; return whether it still is to be."""
        with self._lock:
            due = self._began + self._ticks / A_SECOND
            self._ticks += 1
        return not self.over.wait(max(0.0, due - time.perf_counter()))

    def close(self) -> str:
        """End them; return what they were told."""
        self.over.set()
        for thread in self._threads:
            thread.join(40)
        took = time.perf_counter() - self._began
        return ", ".join(f"{what} {count / took:.0f} a second" for what, count in self.told.most_common())


def say_banner(port: int) -> Callable[[Strangers], None]:
    """Return the work of one who says no more than a version, and goes."""

    def work(all_: Strangers) -> None:
        while all_.wait_turn():
            try:
                with socket.create_connection(("127.0.0.1", port), 10, source_address=(STRANGER, 0)) as sock:
                    said = sock.recv(200)
                    if said:
                        sock.sendall(b"SSH-2.0-stranger\r\n" + b"\0" * 64)
                        sock.recv(2000)
                all_.told["greeted" if said.startswith(b"SSH-") else "turned away"] += 1
            except OSError:
                all_.told["turned away"] += 1

    return work


def offer_wrong_key(port: int, user_name: str, key: Path) -> Callable[[Strangers], None]:
    """Return the work of one who tries a key that is nobody's."""
    argv = ["ssh", *QUIET, "-b", STRANGER, "-i", str(key), "-p", str(port), f"{user_name}@127.0.0.1", "true"]

    def work(all_: Strangers) -> None:
        while all_.wait_turn():
            done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
            all_.told["refused" if "Permission denied" in done.stderr else "turned away"] += 1

    return work


@contextlib.contextmanager
def holding_silent(port: int) -> Iterator[None]:
    """Have SILENT connections open that say nothing, opened anew when they are ended."""
    over = threading.Event()

    def hold() -> None:
        while not over.is_set():
            try:
                with socket.create_connection(("127.0.0.1", port), 10, source_address=(STRANGER, 0)) as sock:
                    sock.settimeout(1)
                    while not over.is_set():
                        try:
                            if not sock.recv(200):
                                break
                        except TimeoutError:
                            continue
            except OSError:
                pass
            over.wait(0.5)

    threads = [threading.Thread(target=hold, daemon=True) for _ in range(SILENT)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(15)


def watch(alice: SshPerson, seconds: float) -> str:
    """Return how alice fares: what she types comes back, and she comes in once more."""
    echoes, logins, failed = [], [], 0
    argv = alice.front("echo in; exec cat")
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdin and process.stdout and process.stdout.read(3) == b"in\n"
        end = time.perf_counter() + seconds
        over = threading.Event()

        def type_on() -> None:
            while not over.wait(0.05):
                begin = time.perf_counter()
                process.stdin.write(b"x")  # type: ignore[union-attr]
                process.stdout.read(1)  # type: ignore[union-attr]
                echoes.append((time.perf_counter() - begin) * 1000)

        typing = threading.Thread(target=type_on)
        typing.start()
        while time.perf_counter() < end:
            begin = time.perf_counter()
            done = subprocess.run(alice.front("true"), stdin=subprocess.DEVNULL, capture_output=True, check=False)
            if done.returncode:
                failed += 1
            else:
                logins.append((time.perf_counter() - begin) * 1000)
            time.sleep(0.2)
        over.set()
        typing.join()
        process.stdin.close()
    echoes.sort()
    login = f"p50 {statistics.median(logins):.0f}, longest {max(logins):.0f} ms" if logins else "none"
    return (
        f"echo p50 {statistics.median(echoes):.1f}, p99 {echoes[int(len(echoes) * 0.99)]:.1f} ms; "
        f"logins: {len(logins)} good ({login}), {failed} failed"
    )


def measure(alice: SshPerson, folder: Path, seconds: float) -> None:
    """Print how alice fares, alone and beside strangers."""
    key = make_key(folder / "stranger_key")
    print(f"alice, alone: {watch(alice, seconds / 2)}", flush=True)
    for name, work, count in (
        (f"{A_SECOND} greetings a second", say_banner(alice.port), 100),
        (f"wrong keys, {A_SECOND} a second wanted", offer_wrong_key(alice.port, alice.name, key), 40),
    ):
        strangers = Strangers(work, count)
        print(f"alice, beside {name}: {watch(alice, seconds)}", flush=True)
        print(f"  strangers: {strangers.close()}", flush=True)
    with holding_silent(alice.port):
        time.sleep(2)
        print(f"alice, beside {SILENT} connections that say nothing: {watch(alice, seconds)}", flush=True)
