"""Work beside the callers: at most one of a name at a time, and whose failure is told once and goes no further."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from portico.errors import PorticoError


class Tasks:
    """The tasks of one keeper.

    Args:
        log: Where failures are told.
    """

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._said: dict[str, str] = {}

    async def guard(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Await something whose failure is told, once while it stays the same, and goes no further."""
        try:
            await work
        except Exception as error:  # a defect too: no session must lose its keeper for it
            expected = isinstance(error, PorticoError)
            said = f"{error.message} {error.why}" if isinstance(error, PorticoError) else repr(error)
            if self._said.get(name) != said:
                self._said[name] = said
                self._log.warning("%s: %s", name, said, exc_info=None if expected else error)
        else:
            self._said.pop(name, None)

    def begin(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        """Do something that may take long."""
        if name in self._tasks:
            work.close()
            return
        task = self._tasks[name] = asyncio.create_task(self.guard(name, work))
        task.add_done_callback(lambda _: self._tasks.pop(name, None))

    async def close(self) -> None:
        """End all of it."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
