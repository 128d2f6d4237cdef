"""A person at a real browser: what they click, type and see."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from playwright.sync_api import Browser, Error, Page
from running import PASSWORD

T = TypeVar("T")

# What browsers and libraries say that is nobody's fault.
HARMLESS = ("Canvas2D: Multiple readback", "willReadFrequently", "WebSocket connection to", "net::ERR_", "503", "401")


class Visitor:
    """A browser context of its own, signed in by a one-time link."""

    def __init__(self, chromium: Browser, url: str, link: str, **options: object) -> None:
        self.url = url
        self.context = chromium.new_context(viewport={"width": 1280, "height": 800}, **options)  # type: ignore[arg-type]
        self.context.set_default_timeout(30_000)
        self.complaints: list[str] = []
        self.foreign: list[str] = []
        self.page = self.watch(self.context.new_page())
        self.page.goto(link)
        self.page.fill("input[name=password]", PASSWORD)
        self.page.fill("input[name=again]", PASSWORD)
        self.page.click("button.main")
        self.page.wait_for_url(f"{url}/")

    def watch(self, page: Page) -> Page:
        """Collect what a page complains of, and what it loads from elsewhere."""
        page.on("console", lambda m: self._complain(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: self._complain(str(error)))
        page.on("request", lambda r: self.foreign.append(r.url) if "//localhost" not in r.url[:20] else None)
        page.on("dialog", lambda dialog: dialog.accept())
        return page

    def _complain(self, text: str) -> None:
        if not any(harmless in text for harmless in HARMLESS):
            self.complaints.append(text)

    def go(self, path: str) -> None:
        """Open a page of the portal; one that is just loading itself anew gets a moment."""
        for last in (False, False, True):
            try:
                self.page.goto(f"{self.url}{path}")
                return
            except Error as error:
                if last or "interrupted by another navigation" not in error.message:
                    raise
                self.page.wait_for_timeout(300)

    def start(self, app: str) -> str:
        """Press Start on a card; return the session's id once its page is there."""
        self.go("/")
        self.page.locator(".card", has=self.page.locator("h3", has_text=app)).locator("button.main").click()
        self.page.wait_for_url("**/sessions/*")
        return self.page.url.rpartition("/")[2]

    def open(self, session_id: str) -> None:
        """Open a session's page."""
        self.go(f"/sessions/{session_id}")

    # terminal

    def read_terminal(self) -> str:
        """Return what the terminal holds, joined over wrapped lines."""
        return str(
            self.page.evaluate(
                """() => { const b = window.porticoTerminal?.buffer.active; if (!b) return "";
                const lines = []; for (let i = 0; i < b.length; i++) lines.push(b.getLine(i).translateToString(true));
                return lines.join("\\n"); }"""
            )
        )

    def wait_terminal(self, text: str, timeout_s: float = 20) -> str:
        """Wait until the terminal holds ``text``."""
        return self.wait(lambda: shown if text in (shown := self.read_terminal()) else "", f"{text!r}", timeout_s)

    def type_line(self, line: str) -> None:
        """Type a line into whatever has the focus."""
        self.page.keyboard.type(line + "\n")

    # desktop

    def wait_desktop(self, colours: int = 30, timeout_s: float = 60) -> None:
        """Wait until the desktop's canvas is drawn."""
        self.page.wait_for_selector(".screen canvas", timeout=timeout_s * 1000)
        self.wait(lambda: self.count_colours() >= colours, "a drawn desktop", timeout_s)

    def count_colours(self) -> int:
        """Return how many colours the canvas shows."""
        return int(
            self.page.evaluate(
                """() => { const c = document.querySelector(".screen canvas"); if (!c || !c.width) return 0;
                const d = new Uint32Array(c.getContext("2d").getImageData(0, 0, c.width, c.height).data.buffer);
                return new Set(d).size; }"""
            )
        )

    def read_pixels(self) -> str:
        """Return a hash of what the canvas shows."""
        return str(
            self.page.evaluate(
                """() => { const c = document.querySelector(".screen canvas"); let h = 0;
                const d = new Uint32Array(c.getContext("2d").getImageData(0, 0, c.width, c.height).data.buffer);
                for (const x of d) h = (Math.imul(h, 31) + x) | 0; return String(h); }"""
            )
        )

    def wait_still(self, timeout_s: float = 20) -> str:
        """Wait until the desktop has not changed for a second; return its hash."""
        last, since, deadline = self.read_pixels(), time.monotonic(), time.monotonic() + timeout_s
        while time.monotonic() - since < 1 and time.monotonic() < deadline:
            self.page.wait_for_timeout(100)
            if (now := self.read_pixels()) != last:
                last, since = now, time.monotonic()
        return last

    @staticmethod
    def _try(condition: Callable[[], T]) -> T | None:
        try:
            return condition()
        except Error as error:  # the page has just moved on by itself
            if "Execution context was destroyed" not in error.message:
                raise
            return None

    def wait(self, condition: Callable[[], T], what: str, timeout_s: float = 20) -> T:
        """Return the first true value of ``condition``, letting the page work meanwhile."""
        deadline = time.monotonic() + timeout_s
        while not (value := self._try(condition)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what} was not there within {timeout_s} s on {self.page.url}: {self.complaints}")
            self.page.wait_for_timeout(50)
        return value
