"""Live clients that are real Chromium, a browser each: ``python -m workshop_bench.browsers PLAN RESULT``.

The same plan and result as of ``clients``. What they do is less: they type into the terminal, with keys of the browser,
and look at the canvas.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import time
from typing import Any, Final

from playwright.async_api import Browser, Error, Page, async_playwright

from workshop_bench.clients import Event, Visit, work
from workshop_bench.person import COLUMNS, LOST_S, PROMPT, WORDS

OPEN_S: Final = 30.0
WIDTH, HEIGHT = 1280, 800
"""Of the desktops, to which the windows of these browsers are fitted: another size would move what is on them."""

PICTURED: Final = """() => { const c = document.querySelector(".screen canvas"); if (!c || !c.width) return false;
  const d = new Uint32Array(c.getContext("2d").getImageData(0, 0, c.width, Math.min(c.height, 200)).data.buffer);
  return new Set(d).size > 3; }"""
IS_UP: Final = "() => !!document.querySelector('[data-link].up')"
WATCH: Final = """([x, y, most]) => {
  const context = document.querySelector(".screen canvas").getContext("2d");
  const look = () => { try { return context.getImageData(x - 3, y - 5, 7, 11).data.join() } catch { return "" } };
  const before = look();
  window.seen = new Promise((resolve) => addEventListener("keydown", () => {
    const begin = performance.now();
    const wait = () => {
      const took = performance.now() - begin;
      if (look() !== before) resolve(took); else if (took > most) resolve(-1); else setTimeout(wait, 1);
    };
    wait();
  }, { capture: true, once: true }));
}"""
PLACE: Final = """([x, y]) => { const c = document.querySelector(".screen canvas"), r = c.getBoundingClientRect();
  return [r.left + (x * r.width) / c.width, r.top + (y * r.height) / c.height]; }"""


class Sitter:
    """Somebody at a browser."""

    def __init__(self, visit: Visit, events: list[Event]) -> None:
        self._visit, self._events = visit, events
        self._chance = random.Random(visit.seed)

    def _tell(self, what: str, took_s: float = 0.0, why: str = "") -> None:
        self._events.append(Event(self._visit.seat, what, time.monotonic(), took_s, why))

    async def stay(self, browser: Browser) -> None:
        """Come when it is time, and type until the time is over; the page comes back by itself."""
        page = await self._open(browser)
        await asyncio.sleep(self._visit.begin_s - time.monotonic())
        begin = time.monotonic()
        try:
            await page.goto(self._visit.way.page)
            await page.wait_for_function(PICTURED, timeout=OPEN_S * 1000, polling=5)
        except Error as error:
            self._tell("refused", why=error.message.splitlines()[0])
            return
        self._tell("browser picture", time.monotonic() - begin)
        typing = asyncio.create_task(self._type_on(page))
        try:
            await self._follow(page)
        finally:
            typing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await typing

    async def _open(self, browser: Browser) -> Page:
        async with contextlib.AsyncExitStack() as stack:
            plain = await browser.new_context(viewport={"width": WIDTH, "height": HEIGHT}, java_script_enabled=False)
            stack.push_async_callback(plain.close)
            await plain.add_cookies(self._cookies)
            page = await plain.new_page()
            await page.goto(self._visit.way.page)
            box = await page.locator(".screen").bounding_box()
        bars = HEIGHT - round(box["height"]) if box else 0
        context = await browser.new_context(viewport={"width": WIDTH, "height": HEIGHT + bars})
        await context.add_cookies(self._cookies)
        return await context.new_page()

    @property
    def _cookies(self) -> list[Any]:
        cookies = self._visit.way.headers.partition("Cookie: ")[2].partition("\r\n")[0]
        url = self._visit.way.page
        pairs = (part.partition("=") for part in cookies.split("; ") if part)
        return [{"name": name, "value": value, "url": url} for name, _, value in pairs]

    async def _follow(self, page: Page) -> None:
        """Tell when the page has lost its connection, and has it again."""
        was_up = True
        while True:
            await asyncio.sleep(0.05)
            with contextlib.suppress(Error):  # it loads itself anew
                is_up = bool(await page.evaluate(IS_UP)) and bool(await page.evaluate(PICTURED))
                if is_up != was_up:
                    self._tell("browser picture again" if is_up else "lost")
                was_up = is_up

    async def _type_on(self, page: Page) -> None:
        while True:
            await asyncio.sleep(self._chance.uniform(0.5, 3.0))
            try:
                await self._type_line(page)
            except Error:  # lost: the page has it again soon
                await asyncio.sleep(0.5)

    async def _type_line(self, page: Page) -> None:
        x, y = await page.evaluate(PLACE, self._visit.terminal.find_cell(COLUMNS // 2, 2))
        await page.mouse.click(x, y)
        await asyncio.sleep(0.2)
        for key in "ul":
            await page.keyboard.press(f"Control+{key}")
        await asyncio.sleep(0.5)
        line = "# " + " ".join(self._chance.choices(WORDS, k=self._chance.randint(2, 5)))
        for column, character in enumerate(line, len(PROMPT)):
            await page.evaluate(WATCH, [*self._visit.terminal.find_cell(column, 0), LOST_S * 1000])
            await page.keyboard.press(character if character != " " else "Space")
            took_ms = float(await page.evaluate("window.seen"))
            if took_ms < 0:
                self._tell("late browser key", LOST_S)
            else:
                self._tell("browser key", took_ms / 1000)
            await asyncio.sleep(self._chance.uniform(0.06, 0.3))
        await page.keyboard.press("Enter")


async def stay_all(visits: list[Visit]) -> list[Event]:
    """Be all of them, until their time is over."""
    events: list[Event] = []
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    path = shutil.which("chromium")
    async with async_playwright() as playwright:
        browsers: list[Any] = [await playwright.chromium.launch(executable_path=path, args=arguments) for _ in visits]
        with contextlib.suppress(TimeoutError):
            left_s = max(visit.end_s for visit in visits) - time.monotonic()
            async with asyncio.timeout(left_s), asyncio.TaskGroup() as group:
                for visit, browser in zip(visits, browsers, strict=True):
                    group.create_task(Sitter(visit, events).stay(browser))
        for browser in browsers:
            await browser.close()
    return events


if __name__ == "__main__":
    work(stay_all)
