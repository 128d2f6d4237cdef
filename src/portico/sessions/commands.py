"""Schedulers' commands, run: as a user by that user's agent, as Portico itself in a child of this process.

Both have a clean environment, a time limit and bounded output, and neither has a shell.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import DEVNULL, PIPE
from typing import Final, TypeVar

from portico import wire
from portico.errors import NotFound, Unavailable
from portico.schedulers.slurm.command import Command, Result
from portico.sessions.machine import BrokerMachine

T = TypeVar("T")

STDERR_LIMIT_BYTES: Final = 16 * 1024
INHERITED: Final = ("HOME", "USER", "LOGNAME", "LANG", "PATH")
AT_ONCE: Final = 6
"""Below what an agent takes (agent/command.py), so that nobody reads that there are too many."""
ANSWER_S: Final = 10.0
"""How much longer than the command an agent may take to answer."""


class CommandRunner:
    """A schedulers.slurm.command.Runner.

    Args:
        machine: The agents.
    """

    def __init__(self, machine: BrokerMachine) -> None:
        self._machine = machine
        self._turns: dict[str | None, asyncio.Semaphore] = {}

    async def run(self, user_name: str | None, command: Command[T]) -> Result:
        """Run a command; see Runner. It is never run twice; a user's wait for each other beyond AT_ONCE."""
        async with self._turns.setdefault(user_name, asyncio.Semaphore(AT_ONCE)):
            if user_name is None:
                return await self._run_here(command)
            return await self._run_as(user_name, command)

    async def _run_as(self, user_name: str, command: Command[T]) -> Result:
        args = {
            "argv": list(command.argv),
            "env": dict(command.env),
            "timeout_s": command.timeout_s,
            "limit_bytes": command.limit_bytes,
        }
        fds = [wire.seal(command.stdin)] if command.stdin else []
        timeout_s = command.timeout_s + ANSWER_S
        answer, fds = await self._machine.ask_once(user_name, "command", args, fds, timeout_s=timeout_s)
        try:
            status, stderr = answer.get("status"), answer.get("stderr")
            if len(fds) != 1 or type(status) is not int or not isinstance(stderr, str):
                raise Unavailable("The user's agent did not answer as an agent does.")
            stdout = await asyncio.to_thread(wire.read_sealed, fds[0], command.limit_bytes)
        finally:
            wire.close_all(fds)
        said = stderr.encode(errors="replace")
        return Result(status, stdout, said, answer.get("timed_out") is True, answer.get("cut") is True)

    async def _run_here(self, command: Command[T]) -> Result:
        env = {name: os.environ[name] for name in INHERITED if name in os.environ} | dict(command.env)
        env.setdefault("PATH", os.defpath)
        try:
            process = await asyncio.create_subprocess_exec(
                *command.argv,
                env=env,
                cwd="/",
                stdin=PIPE if command.stdin else DEVNULL,
                stdout=PIPE,
                stderr=PIPE,
                start_new_session=True,
            )
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFound(
                f"The program {command.argv[0]} is not here.", why=f"{error.strerror}; PATH is {env['PATH']}"
            ) from error
        except OSError as error:
            raise Unavailable(f"The program {command.argv[0]} could not be run.", why=str(error)) from error
        assert process.stdout is not None and process.stderr is not None
        stdout, stderr = _Taker(process.stdout, command.limit_bytes), _Taker(process.stderr, STDERR_LIMIT_BYTES)
        timed_out = False
        try:
            async with asyncio.timeout(command.timeout_s):
                await asyncio.gather(_give(process, command.stdin), stdout.take(), stderr.take(), process.wait())
        except TimeoutError:
            timed_out = True
        finally:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                # Its pipes are read to their end, so that nothing stays open, also when this was cancelled.
                await asyncio.gather(stdout.take(), stderr.take(), process.wait(), return_exceptions=True)
        cut = stdout.cut or stderr.cut
        return Result(process.returncode or 0, bytes(stdout.data), bytes(stderr.data), timed_out, cut)


class _Taker:
    """Reads all of an output and keeps the first ``limit_bytes``."""

    def __init__(self, reader: asyncio.StreamReader, limit_bytes: int) -> None:
        self.data = bytearray()
        self.cut = False
        self._reader = reader
        self._limit_bytes = limit_bytes

    async def take(self) -> None:
        while data := await self._reader.read(1 << 16):
            self.cut |= len(self.data) + len(data) > self._limit_bytes
            self.data += data[: max(0, self._limit_bytes - len(self.data))]


async def _give(process: asyncio.subprocess.Process, stdin: bytes) -> None:
    if process.stdin is not None:
        with contextlib.suppress(ConnectionError):
            process.stdin.write(stdin)
            await process.stdin.drain()
            process.stdin.close()
            await process.stdin.wait_closed()
