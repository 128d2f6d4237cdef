"""Keeps broker, portal and gateways running: starts them, restarts one that dies, keeps their output, ends them.

The listening sockets belong to the supervisor and stay open while a process is away, so that a connection made
meanwhile waits instead of being refused. It parses no byte of anybody's, and knows nothing of users or sessions.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from portico.cli.log_file import LogFile, render_line
from portico.errors import Unavailable

LINE_LIMIT_BYTES: Final = 16 * 1024
STOP_AFTER_S: Final = 5.0
READY_AFTER_S: Final = 20.0
BACKOFF_S: Final = (0.1, 0.5, 1.0, 2.0, 5.0, 10.0)
HOPELESS_STATUS: Final = 78
"""A process that ends with this (EX_CONFIG, sysexits.h) has said why, and another start would not help."""
STABLE_AFTER_S: Final = 30.0
"""A process that ran this long starts again with the first back-off."""


@dataclass(frozen=True)
class Program:
    """What to run: ``descriptors`` by their names in PORTICO_FDS; ``uid`` None keeps the supervisor's own.

    ``end_signal`` ends it now. One that ``has_siblings`` is never given up: they do its work meanwhile.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    descriptors: Mapping[str, int] = field(default_factory=dict)
    uid: int | None = None
    gid: int | None = None
    end_signal: signal.Signals = signal.SIGTERM
    has_siblings: bool = False

    @property
    def group(self) -> str:
        """What several of a kind have in common: ``gateway`` for ``gateway-2``."""
        return self.name.partition("-")[0]


class _State(enum.Enum):
    STARTING = enum.auto()  # not started again if it dies
    KEPT = enum.auto()
    CHANGING = enum.auto()  # asked to end, and started again at once
    DRAINING = enum.auto()  # asked to finish; not started again


@dataclass(eq=False)
class _Kept:
    program: Program
    process: asyncio.subprocess.Process
    state: _State
    keeper: asyncio.Task[None] | None = None
    since: str = ""

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)


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
        self._logs: dict[str, LogFile] = {}
        self._kept: dict[str, _Kept] = {}
        self._draining: list[_Kept] = []
        self._given_up = ""
        self._failed = asyncio.Event()
        self._stopping = False
        self.on_change: Callable[[], None] = lambda: None

    @property
    def pids(self) -> dict[str, int]:
        """The processes that are running now, by name; those that drain are not among them."""
        return {name: kept.process.pid for name, kept in self._kept.items() if kept.process.returncode is None}

    @property
    def draining(self) -> list[dict[str, Any]]:
        """The processes that were replaced and finish what they have: name, pid, since."""
        return [
            {"name": kept.program.name, "pid": kept.process.pid, "since": kept.since}
            for kept in self._draining
            if kept.process.returncode is None
        ]

    def has(self, name: str) -> bool:
        """Return whether a program of that name is kept running."""
        return name in self._kept

    async def start(self, program: Program) -> None:
        """Start ``program`` and keep it running.

        Raises:
            OSError: It can't be run at all.

        """
        self._kept[program.name] = await self._launch(program, _State.KEPT)

    async def change(self, program: Program) -> None:
        """End the program of that name and start ``program`` in its place; return when the old one has ended."""
        kept = self._kept[program.name]
        kept.program = program
        if kept.process.returncode is None:
            kept.state = _State.CHANGING
            await self._end(kept)

    async def replace(self, group: str, programs: Iterable[Program]) -> None:
        """Start ``programs``; once each says that it is ready, all others of the group drain (SIGTERM).

        Raises:
            Unavailable: One was not ready in time. The new ones are ended, the old ones go on as if nothing had been.

        """
        new: list[_Kept] = []
        try:
            async with asyncio.timeout(READY_AFTER_S):
                for program in programs:
                    if not await self._launch_until_ready(program, new):
                        raise Unavailable(f"The new {program.name} ended instead of getting ready.")
        except BaseException as error:
            for kept in new:
                await self._end(kept)
            if isinstance(error, TimeoutError):
                raise Unavailable(f"The new {group} is not ready after {READY_AFTER_S:g} s.") from None
            raise
        for kept in [kept for kept in self._kept.values() if kept.program.group == group]:
            del self._kept[kept.program.name]
            kept.state, kept.since = _State.DRAINING, datetime.now(UTC).isoformat(timespec="seconds")
            if kept.process.returncode is None:
                self._draining.append(kept)
                self._tell(kept, "replaced; finishes what it has")
                kept.signal(signal.SIGTERM)
        for kept in new:
            kept.state = _State.KEPT
            self._kept[kept.program.name] = kept
        self.on_change()

    async def wait_for_failure(self) -> str:
        """Return the name of a program that died at each start, too often. Never, while all is well."""
        await self._failed.wait()
        return self._given_up

    async def stop(self, order: Iterable[str]) -> None:
        """End all programs, group after group in ``order``, and those that drain with their group: KILL after
        STOP_AFTER_S.
        """
        self._stopping = True
        everything = [*self._kept.values(), *self._draining]
        for group in order:
            await asyncio.gather(*(self._end(kept) for kept in everything if kept.program.group == group))
        keepers = [kept.keeper for kept in everything if kept.keeper]
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
        for log in self._logs.values():
            log.close()

    async def _launch(self, program: Program, state: _State, ready: int | None = None) -> _Kept:
        if program.name not in self._logs:
            self._logs[program.name] = LogFile(self._log_dir / f"{program.name}.log", mode=self._log_mode)
        kept = _Kept(program, await self._spawn(program, ready), state)
        kept.keeper = asyncio.create_task(self._keep(kept))
        kept.keeper.add_done_callback(lambda keeper: self._on_keeper_done(kept, keeper))
        return kept

    async def _launch_until_ready(self, program: Program, launched: list[_Kept]) -> bool:
        """Start a program that writes into its descriptor ``ready`` when it is; whether it did, and lives."""
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        loop = asyncio.get_running_loop()
        told = asyncio.Event()
        loop.add_reader(reading, told.set)
        try:
            try:
                launched.append(await self._launch(program, _State.STARTING, writing))
            finally:
                os.close(writing)
            await told.wait()
            return bool(os.read(reading, 1))
        finally:
            loop.remove_reader(reading)
            os.close(reading)

    async def _end(self, kept: _Kept) -> None:
        """End a process now."""
        if kept.process.returncode is not None:
            return
        kept.signal(kept.program.end_signal)
        try:
            await asyncio.wait_for(kept.process.wait(), STOP_AFTER_S)
        except TimeoutError:
            self._show(f"{kept.program.name}: does not end; killing it")
            kept.signal(signal.SIGKILL)
            await kept.process.wait()

    async def _spawn(self, program: Program, ready: int | None = None) -> asyncio.subprocess.Process:
        descriptors = {**program.descriptors, **({"ready": ready} if ready is not None else {})}
        fds = ",".join(f"{name}={descriptor}" for name, descriptor in descriptors.items())
        ids: dict[str, Any] = {}
        if program.uid is not None:
            ids = {"user": program.uid, "group": program.gid, "extra_groups": []}
        return await asyncio.create_subprocess_exec(
            *program.argv,
            env={**program.env, "PORTICO_FDS": fds, "PORTICO_SUPERVISOR": str(os.getpid())},
            cwd="/",
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            pass_fds=tuple(descriptors.values()),
            start_new_session=True,  # Ctrl-C is the supervisor's; it ends them in order
            umask=0o077,
            limit=LINE_LIMIT_BYTES,
            **ids,
        )

    async def _keep(self, kept: _Kept) -> None:
        failures = 0
        while True:
            begin = time.monotonic()
            await self._copy_output(kept)
            status = await kept.process.wait()
            if self._stopping:
                return
            if kept.state in (_State.STARTING, _State.DRAINING):
                self._tell(kept, _describe(status))
                return
            delay_s = 0.0
            if kept.state is _State.CHANGING:
                kept.state, failures = _State.KEPT, 0
                self._tell(kept, f"{_describe(status)}; starting it with its new settings")
            else:
                failures = 0 if time.monotonic() - begin > STABLE_AFTER_S else failures + 1
                if status == HOPELESS_STATUS:
                    self._tell(kept, "can't start")
                    return
                if failures > len(BACKOFF_S) and not kept.program.has_siblings:
                    self._tell(kept, f"{_describe(status)}, again and again; giving up")
                    return
                delay_s = BACKOFF_S[min(max(0, failures - 1), len(BACKOFF_S) - 1)]
                self._tell(kept, f"{_describe(status)}; starting it again in {delay_s:g} s")
            await asyncio.sleep(delay_s)
            if self._stopping or kept.state is _State.DRAINING:
                return
            kept.process = await self._spawn(kept.program)
            self.on_change()

    def _on_keeper_done(self, kept: _Kept, keeper: asyncio.Task[None]) -> None:
        if kept in self._draining:
            self._draining.remove(kept)
            self.on_change()
        if keeper.cancelled():
            return
        if error := keeper.exception():
            self._tell(kept, f"can't be started: {error}")
        if kept.state is _State.KEPT and not self._stopping:
            self._given_up = kept.program.name
            self._failed.set()

    async def _copy_output(self, kept: _Kept) -> None:
        output = kept.process.stdout
        assert output is not None
        while True:
            try:
                line = await output.readuntil(b"\n")
            except asyncio.IncompleteReadError as error:
                line = error.partial
            except asyncio.LimitOverrunError as error:
                line = await output.readexactly(min(error.consumed, LINE_LIMIT_BYTES)) + b"\n"
            if not line:
                return
            self._write(kept, line.rstrip(b"\n"))
            self._show(f"{self._name(kept)}: {render_line(line)}")

    def _tell(self, kept: _Kept, text: str) -> None:
        self._write(kept, f"[supervisor] {text}".encode())
        self._show(f"{self._name(kept)}: {text}")

    def _write(self, kept: _Kept, line: bytes) -> None:
        mark = f"[draining {kept.process.pid}] ".encode() if kept.state is _State.DRAINING else b""
        self._logs[kept.program.name].write(time.strftime("%Y-%m-%dT%H:%M:%S%z ").encode() + mark + line + b"\n")

    @staticmethod
    def _name(kept: _Kept) -> str:
        draining = kept.state is _State.DRAINING
        return f"{kept.program.name} (draining, process {kept.process.pid})" if draining else kept.program.name


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
