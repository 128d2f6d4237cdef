"""A site that limits the clipboard, in Chromium: the page says so, and what it does not say the gateway holds."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from playwright.sync_api import Browser, expect
from running import RunningPortico
from test_front_door import invite, read_display, read_selection, write_selection

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


def test_a_desktop_takes_short_texts_and_gives_none(
    portico_factory: Callable[..., RunningPortico], chromium: Browser
) -> None:
    house = portico_factory({"clipboard": "in", "clipboard_max_kb": 1})
    alice = invite(house, chromium, "alice")
    session_id = alice.start("Desktop (light)")
    alice.wait_desktop(colours=10)
    alice.page.click("[data-do=clipboard]")
    panel = alice.page.locator("[data-panel=clipboard]")
    expect(panel).to_contain_text("keeps what you copy in the desktop there")
    expect(panel).to_contain_text("up to 1 kB")
    alice.page.fill("[data-panel=clipboard] textarea", "to the desktop 42")
    environment = read_display(house, session_id)
    alice.wait(lambda: read_selection(house, environment) == "to the desktop 42", "the text in X", 15)
    # The page refuses a longer one, and says how long it is; one that does not ask the page is refused as well.
    alice.page.fill("[data-panel=clipboard] textarea", "ü" * 501)
    expect(panel.get_by_role("alert")).to_contain_text("1002 bytes")
    assert read_selection(house, environment) == "to the desktop 42"
    alice.page.evaluate("() => porticoDesktop.clipboardPasteFrom('x'.repeat(1001))")
    alice.wait(lambda: read_selection(house, environment) == "", "an empty text in X", 15)
    alice.page.fill("[data-panel=clipboard] textarea", "short again")
    expect(panel.get_by_role("alert")).to_have_count(0)
    alice.wait(lambda: read_selection(house, environment) == "short again", "the text in X", 15)
    # What is copied in the desktop stays there, although noVNC asks for it.
    heard = (
        "() => { window.heard = []; porticoDesktop.addEventListener('clipboard', (e) => heard.push(e.detail.text)); }"
    )
    alice.page.evaluate(heard)
    write_selection(house, environment, "from the desktop 43")
    assert read_selection(house, environment) == "from the desktop 43"
    alice.page.fill("[data-panel=clipboard] textarea", "later than that")
    alice.wait(lambda: read_selection(house, environment) == "later than that", "the text in X", 15)
    assert json.loads(alice.page.evaluate("() => JSON.stringify(heard)")) == []
    assert alice.complaints == []
    house.cli("session", "stop", session_id)
    alice.context.close()


def test_a_desktop_without_a_clipboard_says_so(
    portico_factory: Callable[..., RunningPortico], chromium: Browser
) -> None:
    house = portico_factory({"clipboard": "none"})
    alice = invite(house, chromium, "alice")
    session_id = alice.start("Desktop (light)")
    alice.wait_desktop(colours=10)
    alice.page.click("[data-do=clipboard]")
    panel = alice.page.locator("[data-panel=clipboard]")
    expect(panel).to_contain_text("lets nothing be copied")
    expect(panel.locator("textarea")).to_have_count(0)
    assert alice.complaints == []
    house.cli("session", "stop", session_id)
    alice.context.close()
