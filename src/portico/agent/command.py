"""Programs that the agent runs for the portal, beside its other requests: a scheduler's commands.

A slow one holds up nothing: the agent answers other requests meanwhile. It runs in a clean environment, in a session
of its own, for a bounded time and with bounded output, and never through a shell. It does not outlive the agent.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from portico import wire
from portico.errors import Invalid, NotFound, PorticoError, TooMany, Unavailable

Json = dict[str, Any]

AT_ONCE: Final = 8
TIMEOUT_LIMIT_S: Final = 300.0
STREAM_LIMIT_S: Final = 4 * 3600.0
"""Of one whose output goes to somebody's slow browser."""
OUTPUT_LIMIT_BYTES: Final = 32 << 20
STDERR_LIMIT_BYTES: Final = 16 * 1024
INHERITED: Final = ("HOME", "USER", "LOGNAME", "SHELL", "LANG", "PATH")
"""All that a command gets of the agent's environment; batch systems hand a job what its submission had."""


class Running:
    """A program under way. ``stdout`` is where its output goes; by default it is kept."""

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        stdin: int,
        timeout_s: float,
        limit: int,
        stdout: int = subprocess.PIPE,
    ) -> None:
        try:
            self.process = subprocess.Popen(
                list(argv),
                env=dict(env),
                stdin=stdin,
                stdout=stdout,
                stderr=subprocess.PIPE,
                cwd=env.get("HOME", "/"),
                start_new_session=True,
            )
        except (FileNotFoundError, NotADirectoryError) as error:
            raise NotFound(
                f"The program {argv[0]} is not here.", why=f"{error.filename}: {error.strerror}; PATH is {env['PATH']}"
            ) from error
        except (OSError, ValueError) as error:
            raise Unavailable(f"The program {argv[0]} could not be run.", why=str(error)) from error
        assert self.process.stderr is not None
        self.pidfd = os.pidfd_open(self.process.pid)
        self.deadline = time.monotonic() + timeout_s
        self.timed_out = self.cut = False
        self._limits: dict[Any, int] = {self.process.stderr: STDERR_LIMIT_BYTES}
        if self.process.stdout is not None:
            self._limits[self.process.stdout] = limit
        self._output: dict[Any, bytearray] = {pipe: bytearray() for pipe in self._limits}
        for pipe in self._output:
            os.set_blocking(pipe.fileno(), False)

    @property
    def pipes(self) -> list[Any]:
        """Its outputs."""
        return list(self._output)

    def read(self, pipe: Any) -> bool:
        """Take what a pipe holds; return whether more may come. What is over the limit is read and dropped."""
        kept, limit = self._output[pipe], self._limits[pipe]
        while True:
            try:
                data = os.read(pipe.fileno(), 1 << 16)
            except BlockingIOError:
                return True
            if not data:
                return False
            self.cut |= len(kept) + len(data) > limit
            kept += data[: max(0, limit - len(kept))]

    def kill(self) -> None:
        """Kill it, and what it has started in its process group."""
        with contextlib.suppress(OSError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def finish(self) -> tuple[Json, list[int]]:
        """Return the answer, once it has ended; its descriptor is the caller's."""
        status = self.process.wait()
        stdout = self._output.get(self.process.stdout, bytearray())
        stderr = self._output[self.process.stderr]
        return {
            "status": status,
            "stderr": stderr.decode("utf-8", errors="replace"),
            "cut": self.cut,
            "timed_out": self.timed_out,
        }, [wire.seal(bytes(stdout))]

    def close(self) -> None:
        """Close what is open."""
        for pipe in self._output:
            pipe.close()
        os.close(self.pidfd)


class Commands:
    """What is under way, and how it reaches the loop of the agent.

    Args:
        selector: The agent's; a key whose data is a callable is called when it is ready.
        answer: Sends an answer; it closes the descriptors.
    """

    def __init__(
        self, selector: selectors.BaseSelector, answer: Callable[[Any, Json | PorticoError, list[int]], None]
    ) -> None:
        self._selector = selector
        self._answer = answer
        self._running: dict[Running, Any] = {}

    def __len__(self) -> int:
        return len(self._running)

    @property
    def timeout_s(self) -> float | None:
        """Seconds until one of them has had its time; None where there is none."""
        deadlines = [running.deadline for running in self._running if not running.timed_out]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def start(self, request_id: Any, args: Json, fds: Sequence[int]) -> None:
        """Start one; its answer is sent when it ends.

        Args:
            request_id: What the answer bears.
            args: As docs/protocol.md has it.
            fds: Standard input, or nothing; with ``stream`` standard output. The caller closes them.

        Raises:
            Invalid: The arguments are not understood.
            NotFound: There is no such program.
            TooMany: AT_ONCE run already.
        """
        argv, env = args.get("argv"), args.get("env")
        timeout_s, limit = args.get("timeout_s"), args.get("limit_bytes")
        if not isinstance(argv, list) or not argv or not isinstance(env, dict):
            raise Invalid("A command has an argv and an env.")
        if not all(isinstance(text, str) and "\0" not in text for text in [*argv, *env, *env.values()]):
            raise Invalid("argv and env must be texts.")
        stream = args.get("stream") is True
        most_s = STREAM_LIMIT_S if stream else TIMEOUT_LIMIT_S
        if not isinstance(timeout_s, (int, float)) or not 0 < timeout_s <= most_s:
            raise Invalid(f"timeout_s must be above 0 and at most {most_s:g}.")
        if stream and len(fds) != 1:
            raise Invalid("A stream has a descriptor to go to.")
        if type(limit) is not int or not 0 <= limit <= OUTPUT_LIMIT_BYTES:
            raise Invalid(f"limit_bytes must be from 0 to {OUTPUT_LIMIT_BYTES}.")
        if len(self._running) >= AT_ONCE:
            raise TooMany(f"{AT_ONCE} of your commands run already.", retry_after_s=1)
        clean = {name: os.environ[name] for name in INHERITED if name in os.environ}
        stdin = fds[0] if fds and not stream else subprocess.DEVNULL
        stdout = fds[0] if stream else subprocess.PIPE
        running = Running(argv, {"PATH": os.defpath, **clean, **env}, stdin, timeout_s, limit, stdout)
        self._running[running] = request_id
        self._selector.register(running.pidfd, selectors.EVENT_READ, lambda: self._end(running))
        for pipe in running.pipes:
            self._selector.register(pipe, selectors.EVENT_READ, lambda pipe=pipe: self._read(running, pipe))

    def end_overdue(self) -> None:
        """Kill those that have had their time; their answers follow when they are gone."""
        for running in self._running:
            if not running.timed_out and time.monotonic() >= running.deadline:
                running.timed_out = True
                running.kill()

    def close(self) -> None:
        """Kill all; nobody waits for an answer any more."""
        for running in self._running:
            running.kill()
            running.process.wait()
            running.close()
        self._running.clear()

    def _read(self, running: Running, pipe: Any) -> None:
        if running in self._running and not running.read(pipe):
            self._selector.unregister(pipe)

    def _end(self, running: Running) -> None:
        request_id = self._running.pop(running)
        for pipe in running.pipes:
            running.read(pipe)  # what it left; whoever else holds the pipe is not waited for
            with contextlib.suppress(KeyError):
                self._selector.unregister(pipe)
        self._selector.unregister(running.pidfd)
        running.kill()
        answer: Json | PorticoError
        fds: list[int] = []
        try:
            answer, fds = running.finish()
        except OSError as error:
            answer = Unavailable("The command's output could not be kept.", why=str(error))
        running.close()
        self._answer(request_id, answer, fds)
