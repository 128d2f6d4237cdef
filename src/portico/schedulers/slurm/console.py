"""Has a command run and returns what it means: the only place where the pure pairs meet a runner."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Final, TypeVar

from portico.schedulers.slurm.command import Command, Runner

T = TypeVar("T")

LARGE_BYTES: Final = 100_000
"""What is longer is parsed in a thread, so that other requests have their turn meanwhile."""


class Console:
    """Where a cluster's commands are run.

    Args:
        runner: Runs them.
        environment: Added to every command's: SLURM_CONF, PATH.
    """

    def __init__(self, runner: Runner, environment: tuple[tuple[str, str], ...]) -> None:
        self._runner = runner
        self._environment = environment

    async def do(self, user_name: str | None, command: Command[T]) -> T:
        """Return what a command's result means, run as that user or as Portico's own account.

        Raises:
            PorticoError: As the runner or the command's parser says.
        """
        command = replace(command, env=(*self._environment, *command.env))
        result = await self._runner.run(user_name, command)
        if len(result.stdout) > LARGE_BYTES:
            return await asyncio.to_thread(command.parse, result)
        return command.parse(result)
