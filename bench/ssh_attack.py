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
from collections.abc import Callable
from pathlib import Path
from typing import Self

from ssh_person import QUIET, SshPerson, make_key

STRANGER = "127.0.0.2"
A_SECOND = 100
SILENT = 150
WARM_UP_S = 2.0


class Strangers:
    """Those who can't get in; a context in which they try.

    Args:
        work: What one does, at its own pace.
        count: How many there are.
    """

    def __init__(self, work: Callable[[Strangers], None], count: int) -> None:
        self.told: Counter[str] = Counter()
        self.over = threading.Event()
        self._began = 0.0
        self._ticks = 0
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=work, args=(self,), daemon=True) for _ in range(count)]

    def __enter__(self) -> Self:
        self._began = time.perf_counter()
        for thread in self._threads:
            thread.start()
        return self

    def wait_turn(self) -> bool:
        """Wait until the next login is due, of A_SECOND; return whether it still is to be."""
        with self._lock:
            due = self._began + self._ticks / A_SECOND
            self._ticks += 1
        return not self.over.wait(max(0.0, due - time.perf_counter()))

    def __exit__(self, *error: object) -> None:
        took = time.perf_counter() - self._began
        told = ", ".join(f"{what} {count / took:.0f} a second" for what, count in self.told.most_common())
        print(f"  strangers: {told or 'nothing'}", flush=True)
        self.over.set()
        for thread in self._threads:
            thread.join(40)


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


def stay_silent(port: int) -> Callable[[Strangers], None]:
    """Return the work of one who keeps a connection, says nothing, and makes another when it is ended."""

    def work(all_: Strangers) -> None:
        while not all_.over.wait(0.5):
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", port), 10, source_address=(STRANGER, 0)) as sock,
            ):
                all_.told["greeted" if sock.recv(200).startswith(b"SSH-") else "turned away"] += 1
                sock.settimeout(1)
                while not all_.over.is_set():
                    with contextlib.suppress(TimeoutError):
                        if not sock.recv(200):
                            break

    return work


def watch(alice: SshPerson, seconds: float, strangers: contextlib.AbstractContextManager[object]) -> str:
    """Return how alice fares beside strangers: what she types comes back, and she comes in once more."""
    echoes, logins, failed = [], [], 0
    argv = alice.front("echo in; exec cat")
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0))
        assert process.stdin and process.stdout and process.stdout.read(3) == b"in\n"
        stack.callback(process.stdin.close)
        stack.enter_context(strangers)
        time.sleep(WARM_UP_S)
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
    echoes.sort()
    login = f"p50 {statistics.median(logins):.0f}, longest {max(logins):.0f} ms" if logins else "none"
    return (
        f"echo p50 {statistics.median(echoes):.1f}, p99 {echoes[int(len(echoes) * 0.99)]:.1f} ms; "
        f"logins: {len(logins)} good ({login}), {failed} failed"
    )


def measure(alice: SshPerson, folder: Path, seconds: float) -> None:
    """Print how alice fares, alone and beside strangers."""
    key = make_key(folder / "stranger_key")
    port, name = alice.port, alice.name
    for told, strangers in (
        ("alone", contextlib.nullcontext()),
        (f"beside {A_SECOND} greetings a second", Strangers(say_banner(port), 100)),
        (f"beside wrong keys, {A_SECOND} a second wanted", Strangers(offer_wrong_key(port, name, key), 100)),
        (f"beside {SILENT} connections that say nothing", Strangers(stay_silent(port), SILENT)),
    ):
        print(f"alice, {told}: {watch(alice, seconds, strangers)}", flush=True)
