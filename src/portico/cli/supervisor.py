"""Keeps broker, portal and gateway running: starts them, restarts one that dies, keeps their output, ends them.

The listening sockets belong to the supervisor and stay open while a process is away, so that a connection made
meanwhile waits instead of being refused. It parses no byte of anybody's, and knows nothing of users or sessions.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

LINE_LIMIT_BYTES: Final = 16 * 1024
STOP_AFTER_S: Final = 5.0
BACKOFF_S: Final = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
HOPELESS_STATUS: Final = 78
"""A process that ends with this (EX_CONFIG, sysexits.h) has said why, and another start would not help."""
STABLE_AFTER_S: Final = 30.0
"""A process that ran this long starts again with the first back-off."""


@dataclass(frozen=True)
class Program:
    """What to run: ``descriptors`` by their names in PORTICO_FDS; ``uid`` None keeps the supervisor's own."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    descriptors: Mapping[str, int] = field(default_factory=dict)
    uid: int | None = None
    gid: int | None = None


class LogFile:
    """An append-only file of bounded size: at ``limit_bytes`` it becomes NAME.1, which becomes NAME.2 …; ``kept`` of
    them.

    A full disk loses lines, never the process.
    """

    def __init__(self, path: Path, *, mode: int, limit_bytes: int = 10_000_000, kept: int = 3) -> None:
        self._path = path
        self._mode = mode
        self._limit_bytes = limit_bytes
        self._kept = kept
        self._open()

    def write(self, line: bytes) -> None:
        """Append one line."""
        with contextlib.suppress(OSError):
            if self._size + len(line) > self._limit_bytes:
                self._rotate()
            self._size += os.write(self._descriptor, line)

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def _open(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, 0o600)
        folder = os.stat(self._path.parent)
        os.fchown(self._descriptor, -1, folder.st_gid)
        os.fchmod(self._descriptor, self._mode)
        self._size = os.fstat(self._descriptor).st_size

    def _rotate(self) -> None:
        for number in range(self._kept - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{self._path}.{number}", f"{self._path}.{number + 1}")
        os.replace(self._path, f"{self._path}.1")
        os.close(self._descriptor)
        self._open()


class Supervisor:
    """Runs programs until told to stop.

    Args:
        log_dir: Folder for NAME.log.
        log_mode: Mode of those files.
        show: Takes a line with the program's name before it, for the terminal.

    """

    def __init__(self, log_dir: Path, log_mode: int, show: Callable[[str], None]) -> None:
        self._log_dir = log_dir
        self._log_mode = log_mode
        self._show = show
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._keepers: dict[str, asyncio.Task[None]] = {}
        self._stopping = False

    @property
    def pids(self) -> dict[str, int]:
        """The processes that are running now, by name."""
        return {name: process.pid for name, process in self._processes.items() if process.returncode is None}

    async def start(self, program: Program) -> None:
        """Start ``program`` and keep it running.

        Raises:
            OSError: It can't be run at all.

        """
        process = await self._spawn(program)
        self._keepers[program.name] = asyncio.create_task(self._keep(program, process))

    async def wait_for_failure(self) -> str:
        """Return the name of a program that died at each start, too often. Never, while all is well."""
        done, _ = await asyncio.wait(self._keepers.values(), return_when=asyncio.FIRST_COMPLETED)
        for name, keeper in self._keepers.items():
            if keeper in done:
                return name
        return ""

    async def stop(self, order: list[str]) -> None:
        """End all programs, one after the other in ``order``: TERM, and KILL after STOP_AFTER_S."""
        self._stopping = True
        for name in order:
            process = self._processes.get(name)
            if process is None or process.returncode is not None:
                continue
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), STOP_AFTER_S)
            except TimeoutError:
                self._show(f"{name}: does not end; killing it")
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        for keeper in self._keepers.values():
            keeper.cancel()
        await asyncio.gather(*self._keepers.values(), return_exceptions=True)

    async def _spawn(self, program: Program) -> asyncio.subprocess.Process:
        fds = ",".join(f"{name}={descriptor}" for name, descriptor in program.descriptors.items())
        ids: dict[str, Any] = {}
        if program.uid is not None:
            ids = {"user": program.uid, "group": program.gid, "extra_groups": []}
        process = await asyncio.create_subprocess_exec(
            *program.argv,
            env={**program.env, "PORTICO_FDS": fds, "PORTICO_SUPERVISOR": str(os.getpid())},
            cwd="/",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            pass_fds=tuple(program.descriptors.values()),
            start_new_session=True,  # Ctrl-C is the supervisor's; it ends them in order
            umask=0o077,
            limit=LINE_LIMIT_BYTES,
            **ids,
        )
        self._processes[program.name] = process
        return process

    async def _keep(self, program: Program, process: asyncio.subprocess.Process) -> None:
        log = LogFile(self._log_dir / f"{program.name}.log", mode=self._log_mode)
        try:
            failures = 0
            while True:
                begin = time.monotonic()
                await self._copy_output(program.name, process, log)
                status = await process.wait()
                if self._stopping:
                    return
                failures = 0 if time.monotonic() - begin > STABLE_AFTER_S else failures + 1
                if status == HOPELESS_STATUS:
                    self._tell(program.name, log, "can't start")
                    return
                if failures > len(BACKOFF_S):
                    self._tell(program.name, log, f"{_describe(status)}, again and again; giving up")
                    return
                delay_s = BACKOFF_S[max(0, failures - 1)]
                self._tell(program.name, log, f"{_describe(status)}; starting it again in {delay_s:g} s")
                await asyncio.sleep(delay_s)
                process = await self._spawn(program)
        finally:
            log.close()

    async def _copy_output(self, name: str, process: asyncio.subprocess.Process, log: LogFile) -> None:
        assert process.stdout is not None
        while True:
            try:
                line = await process.stdout.readuntil(b"\n")
            except asyncio.IncompleteReadError as error:
                line = error.partial
            except asyncio.LimitOverrunError as error:
                line = await process.stdout.readexactly(min(error.consumed, LINE_LIMIT_BYTES)) + b"\n"
            if not line:
                return
            stamp = time.strftime("%Y-%m-%dT%H:%M:%S%z ").encode()
            log.write(stamp + line.rstrip(b"\n") + b"\n")
            self._show(f"{name}: {render_line(line)}")

    def _tell(self, name: str, log: LogFile, text: str) -> None:
        log.write(time.strftime("%Y-%m-%dT%H:%M:%S%z ").encode() + f"[supervisor] {text}\n".encode())
        self._show(f"{name}: {text}")


def render_line(line: bytes) -> str:
    """Return a line fit for a terminal: control characters, which could be a stranger's, are shown and not obeyed."""
    text = line.decode(errors="replace").rstrip("\r\n")
    return "".join(
        character if character.isprintable() or character == "\t" else repr(character)[1:-1] for character in text
    )


def show_on_stderr(line: str) -> None:
    """Show a line; a terminal that is gone never stops Portico."""
    with contextlib.suppress(OSError, ValueError):
        print(line, file=sys.stderr, flush=True)


def _describe(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"killed by signal {-status}"
