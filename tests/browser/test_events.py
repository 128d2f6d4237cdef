"""An event in real browsers: a phone without scripts, a laptop with them, the organiser's wall, and what it can't do."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page
from running import RunningPortico, wait_until
from visitor import Visitor

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

SETTINGS = {
    "welcome": "# Welcome\n\nThree *days*.",
    "apps": [{"app_id": "desktop-light", "memory_gb": 0.5}, {"app_id": "terminal", "memory_gb": 0.25}],
    "fields": [{"name": "name", "label": "Name", "required": True}],
    "texts": [{"name": "Terms", "text": "Be kind."}],
    "wall": True,
}


@pytest.fixture(scope="module")
def organiser(portico: RunningPortico, chromium: Browser) -> Visitor:
    name = portico.get_name("olga")
    link = str(json.loads(portico.cli("user", "add", name, "--json").stdout)["link"])
    portico.cli("user", "role", name, "organiser")
    return Visitor(chromium, portico.url, link)


@pytest.fixture(scope="module", autouse=True)
def event(portico: RunningPortico, organiser: Visitor, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    path = tmp_path_factory.mktemp("event") / "settings.json"
    path.write_text(json.dumps(SETTINGS))
    at = datetime.now(UTC)
    portico.cli(
        "event", "create", "fest", "--begins", (at - timedelta(hours=1)).isoformat(), "--settings", str(path),
        "--ends", (at + timedelta(hours=3)).isoformat(), "--organiser", portico.get_name("olga"), "--title", "The Fest",
    )  # fmt: skip
    names = [f"{portico.prefix}e{number}" for number in (1, 2)]
    text = "account,password\n" + "".join(f"{name},a password\n" for name in names)
    portico.cli("event", "import", "fest", "-", stdin=None, input=text)
    portico.cli("event", "open", "fest")
    wait_until(lambda: portico.cli("event", "seats", "fest").stdout.count("free") == 2, 60, "two seats")
    yield
    portico.cli("event", "end", "fest", "--yes")
    portico.cli("event", "remove", "fest", "--yes", "--early")
    wait_until(lambda: not any(name in portico.cli("user", "list").stdout for name in names), 60, "the seats' end")


def register(page: Page, url: str) -> tuple[str, str]:
    """Go from the landing page to the card; return name and secret."""
    page.goto(f"{url}/e/fest")
    page.click("text=Get a seat")
    page.fill("[name=field-name]", "Ada")
    page.check("[name=accept-0]")
    page.click("button.main")
    page.wait_for_url("**/e/fest/card")
    return page.locator("code.typed").first.inner_text(), page.inner_text("#secret")


def test_a_phone_without_scripts_and_a_laptop_with_them(
    portico: RunningPortico, chromium: Browser, organiser: Visitor, tmp_path: Path
) -> None:
    phone = chromium.new_context(viewport={"width": 390, "height": 800}, java_script_enabled=False)
    page = phone.new_page()
    name, secret = register(page, portico.url)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.click("text=Begin")
    (tmp_path / "small.txt").write_text("small")
    page.set_input_files("input[type=file]", tmp_path / "small.txt")
    page.click("text=Send")
    assert "Uploads/small.txt" in page.inner_text("[role=status]")

    laptop = chromium.new_context(viewport={"width": 1280, "height": 800})
    seat = organiser.watch(laptop.new_page())
    seat.goto(f"{portico.url}/e/fest/sign-in#{name}.{secret}")
    seat.wait_for_function("!location.hash && document.forms[0].elements.secret.value")
    assert secret not in seat.url
    seat.click("button.main")
    seat.wait_for_url("**/e/fest/home")
    (tmp_path / "large.bin").write_bytes(os.urandom(9_000_000))
    seat.set_input_files("input[type=file]", tmp_path / "large.bin")
    seat.wait_for_selector("text=is in Uploads", timeout=30_000)
    with seat.expect_download() as download:
        seat.click("text=Fetch all my files")
    assert Path(download.value.path()).stat().st_size > 9_000_000

    seat.locator(".card", has=seat.locator("h3", has_text="Desktop")).locator("button.main").click()
    seat.wait_for_url("**/sessions/*")
    seat.wait_for_selector(".screen canvas", timeout=60_000)

    organiser.go("/events/fest/wall")
    tile = organiser.page.locator(".tile", has_text=name)
    tile.locator("canvas").wait_for(timeout=30_000)
    colours = """() => { const c = document.querySelector(".tile canvas"); if (!c || !c.width) return 0;
        return new Set(new Uint32Array(c.getContext("2d").getImageData(0, 0, c.width, c.height).data.buffer)).size; }"""
    organiser.wait(lambda: organiser.page.evaluate(colours) > 5, "a picture on the wall", 30)

    organiser.go("/events/fest")
    organiser.page.fill("[name=text]", "Lunch is in the hall")
    organiser.page.click("button:text('Send')")
    organiser.page.wait_for_selector("text=Told 1 participant")
    seat.wait_for_selector(".toast >> text=Lunch is in the hall", timeout=15_000)
    assert organiser.complaints == [] and organiser.foreign == []
    phone.close()
    laptop.close()


def test_a_participant_is_helped_after_a_yes_and_no_longer_than_they_want(
    portico: RunningPortico, chromium: Browser, organiser: Visitor
) -> None:
    """Two people at one desktop: asked in full screen, agreed, typed together, stopped."""
    laptop = chromium.new_context(viewport={"width": 1280, "height": 800})
    seat = organiser.watch(laptop.new_page())
    name, _ = register(seat, portico.url)
    seat.click("text=Begin")
    seat.locator(".card", has=seat.locator("h3", has_text="Desktop")).locator("button.main").click()
    seat.wait_for_url("**/sessions/*")
    seat.wait_for_selector(".screen canvas", timeout=60_000)
    organiser.wait(lambda: count_colours(seat) > 5, "a drawn desktop", 60)
    seat.click("[data-do=fullscreen]")
    seat.wait_for_function("document.fullscreenElement")

    helper = organiser.page
    organiser.go("/events/fest/wall")
    helper.locator(".tile", has_text=name).locator("text=Help").click()
    helper.wait_for_selector("text=is asked…")
    organiser.wait(lambda: count_colours(helper) > 5, "the desktop, to look at", 30)
    seat.wait_for_selector("text=asks to control", timeout=15_000)
    assert seat.evaluate("document.fullscreenElement.contains(document.querySelector('.controls'))")
    before = hash_pixels(seat)
    helper.locator(".screen canvas").click()
    helper.keyboard.press("Control+Escape")  # the window manager's menu: nothing of it gets through
    seat.wait_for_timeout(1500)
    assert hash_pixels(seat) == before
    seat.click("text=Yes, let")
    helper.wait_for_selector("text=you control it", timeout=15_000)
    helper.wait_for_selector(".link.up", timeout=15_000)
    seat.wait_for_selector("text=can control your", timeout=15_000)
    assert seat.evaluate("!!document.fullscreenElement"), "answering has not left full screen"

    organiser.wait(lambda: count_colours(helper) > 5, "the desktop, to work on", 30)
    before = hash_pixels(seat)
    helper.locator(".screen canvas").click(position={"x": 400, "y": 300})
    helper.keyboard.press("Control+Escape")
    organiser.wait(lambda: hash_pixels(seat) != before, "the menu, on the participant's screen", 15)
    helper.keyboard.press("Escape")

    seat.click(".controls >> text=Stop")
    helper.wait_for_selector("text=view only", timeout=15_000)
    seat.wait_for_selector(".controls", state="detached", timeout=15_000)
    helper.wait_for_selector(".link.up", timeout=15_000)
    seat.wait_for_timeout(1000)
    before = hash_pixels(seat)
    helper.locator(".screen canvas").click()
    helper.keyboard.press("Control+Escape")
    seat.wait_for_timeout(1500)
    assert hash_pixels(seat) == before
    assert organiser.complaints == [] and organiser.foreign == []
    laptop.close()


def count_colours(page: Page) -> int:
    """Return how many colours the desktop of a page shows."""
    return int(
        page.evaluate(
            """() => { const c = document.querySelector(".screen canvas"); if (!c || !c.width) return 0;
            return new Set(new Uint32Array(c.getContext("2d").getImageData(0, 0, c.width, c.height).data.buffer)).size; }"""
        )
    )


def hash_pixels(page: Page) -> int:
    """Return a hash of the desktop of a page, without the task bar, where a clock goes on."""
    return int(
        page.evaluate(
            """() => { const c = document.querySelector(".screen canvas"); let h = 0;
            const d = new Uint32Array(c.getContext("2d").getImageData(0, 0, c.width, c.height - 40).data.buffer);
            for (const x of d) h = (Math.imul(h, 31) + x) | 0; return h; }"""
        )
    )
