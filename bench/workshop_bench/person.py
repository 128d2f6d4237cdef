"""What somebody in a workshop does at a desktop: types, scrolls, opens a window and closes it, and thinks in between.

Chance comes from a seed, so that every bridge gets the same people. What they do counts on the terminal that
``desktops`` has put on the desktop, and on nothing else that is there.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from workshop_bench.connection import Connection

RETURN: Final = 0xFF0D
CONTROL: Final = 0xFFE3
LOST_S: Final = 10.0
"""A key whose picture does not come within this time is a failure."""

COLUMNS, ROWS, BORDER = 80, 24, 2
PROMPT: Final = "$ "
TERMINAL_GEOMETRY: Final = f"{COLUMNS}x{ROWS}+60+60"
WINDOW_GEOMETRY: Final = "50x10+760+520"
WINDOW_PLACE: Final = (860, 580)
"""A pixel that is in the second window, wherever the frame is; the terminal's first rows are not below it."""

WORDS: Final = ("mesh", "solver", "cells", "residual", "flux", "turbulence", "pressure", "node", "queue", "job")
SCROLL_STEPS: Final = 12


@dataclass(frozen=True)
class Terminal:
    """Where the terminal's text is on the screen, in pixels."""

    x: int
    y: int
    width: int
    height: int

    def find_cell(self, column: int, row: int) -> tuple[int, int]:
        """Return the middle of a character."""
        wide, high = (self.width - 2 * BORDER) / COLUMNS, (self.height - 2 * BORDER) / ROWS
        return int(self.x + BORDER + (column + 0.5) * wide), int(self.y + BORDER + (row + 0.5) * high)


Tell = Callable[[str, float], None]
"""Takes what was measured (key, scroll, window, late) and how long it took, in seconds."""


class Person:
    """Somebody at a connected desktop.

    Args:
        connection: Theirs.
        terminal: Where it is.
        chance: Theirs alone.
        tell: Takes figures.
    """

    def __init__(self, connection: Connection, terminal: Terminal, chance: random.Random, tell: Tell) -> None:
        self._connection = connection
        self._viewer = connection.viewer
        self._terminal = terminal
        self._chance = chance
        self._tell = tell

    async def live(self) -> None:
        """Do one thing after the other, until the connection is lost or the task is cancelled.

        Raises:
            Lost: The connection has ended.
        """
        while True:
            await self._think(0.5, 3.0)
            await self._focus()
            (act,) = self._chance.choices((self._write, self._scroll, self._open_window), (10, 4, 3))
            await act()

    async def _think(self, least_s: float, most_s: float) -> None:
        await asyncio.sleep(self._chance.uniform(least_s, most_s))

    async def _focus(self) -> None:
        await self._click(*self._terminal.find_cell(COLUMNS // 2, 2))

    async def _click(self, x: int, y: int) -> None:
        for buttons in (0, 1, 0):
            self._viewer.point(x, y, buttons)
        await asyncio.sleep(0.2)

    async def _clear(self) -> None:
        """Have the cursor behind the prompt in the first row, whatever was there."""
        for key in "ul":  # readline's: forget this line, clear the screen
            self._press_control(ord(key))
        await asyncio.sleep(0.4)

    def _press_control(self, key: int) -> None:
        self._viewer.hold(CONTROL, True)
        self._viewer.press(key)
        self._viewer.hold(CONTROL, False)

    def _type(self, text: str) -> None:
        for character in text:
            self._viewer.press(RETURN if character == "\n" else ord(character))

    async def _timed(self, what: str, x: int, y: int, act: Callable[[], None]) -> None:
        """Do something, and tell how long it took until an update covered that place."""
        begin = time.monotonic()
        act()
        try:
            seen = await self._connection.see(x, y, LOST_S)
        except TimeoutError:
            self._tell(f"late {what}", LOST_S)
        else:
            self._tell(what, seen - begin)

    async def _write(self) -> None:
        await self._clear()
        line = "# " + " ".join(self._chance.choices(WORDS, k=self._chance.randint(3, 8)))
        for column, character in enumerate(line, len(PROMPT)):
            place = self._terminal.find_cell(column, 0)
            await self._timed("key", *place, partial(self._viewer.press, ord(character)))
            await self._think(0.06, 0.3)
        self._type("\n")

    async def _scroll(self) -> None:
        await self._clear()
        self._type("seq 300\n")
        await self._think(0.8, 1.5)
        x, y = self._terminal.find_cell(1, ROWS // 2)
        for step in range(SCROLL_STEPS):
            button = 8 if step < SCROLL_STEPS // 2 else 16  # the wheel's buttons are the fourth and the fifth

            def turn(button: int = button) -> None:
                self._viewer.point(x, y, button)
                self._viewer.point(x, y, 0)

            await self._timed("scroll", x, y, turn)
            await self._think(0.1, 0.4)

    async def _open_window(self) -> None:
        await self._clear()
        # Of another colour each time: one that a lost connection has left there would hide that a new one is shown.
        self._type(f"xterm -geometry {WINDOW_GEOMETRY} -bg '#{self._chance.randrange(1 << 24):06x}' &")
        await self._timed("window", *WINDOW_PLACE, lambda: self._type("\n"))
        await self._think(1.0, 3.0)
        await self._click(*WINDOW_PLACE)
        self._type("exit")
        await self._timed("close", *WINDOW_PLACE, lambda: self._type("\n"))
