"""The page with a session's ways in, in Chromium: in a dialog over the desktop, and on a phone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect
from running import RunningPortico, find_free_ports
from test_front_door import invite

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


def test_ways_are_shown_copied_and_downloaded(
    portico_factory: Callable[..., RunningPortico], chromium: Browser, tmp_path: Path
) -> None:
    house = portico_factory({"ssh_port": find_free_ports()[0]})
    alice = invite(house, chromium, "alice")
    session_id = alice.start("Desktop (light)")
    alice.wait_desktop(colours=10)
    alice.page.click("text=Ways in")
    dialog = alice.page.locator("dialog")
    expect(dialog).to_contain_text("You have no SSH key that is good now")
    expect(dialog.get_by_role("link", name="your account page").first).to_have_attribute("href", "/account#keys")
    # The desktop goes on behind it.
    expect(alice.page.locator("[data-link]")).to_have_text("connected")
    alice.context.grant_permissions(["clipboard-read", "clipboard-write"])
    dialog.locator("summary", has_text="A terminal").click()
    button = dialog.locator(".copy", has_text=f"ssh {session_id}.portico").get_by_role("button").first
    button.click()
    expect(button).to_have_text("Copied")
    assert alice.page.evaluate("() => navigator.clipboard.readText()") == f"ssh {session_id}.portico"
    with alice.page.expect_download() as download:
        dialog.get_by_role("link", name="portico_config").click()
    assert download.value.suggested_filename == "portico_config"
    download.value.save_as(tmp_path / "config")
    assert f"User {house.get_name('alice')}" in (tmp_path / "config").read_text()

    # VNC passwords: made in the dialog, shown once, copied, made anew after a question, removed.
    dialog.locator("summary", has_text="A VNC viewer").click()
    dialog.get_by_role("button", name="Make VNC passwords").click()
    expect(dialog).to_contain_text("shown only now")
    password = dialog.locator("#copy-full").inner_text()
    expect(dialog.locator(".copy", has=alice.page.locator("#copy-full")).get_by_role("button")).to_be_focused()
    alice.page.keyboard.press("Enter")
    alice.page.wait_for_function("text => navigator.clipboard.readText().then((found) => found === text)", arg=password)
    alice.page.once("dialog", lambda question: question.accept())
    dialog.get_by_role("button", name="Make new VNC passwords").click()
    expect(dialog.locator("#copy-full")).not_to_have_text(password)
    alice.page.once("dialog", lambda question: question.accept())
    dialog.get_by_role("button", name="Remove them").click()
    expect(dialog.get_by_role("button", name="Make VNC passwords")).to_be_visible()
    expect(dialog.locator("#copy-full")).to_have_count(0)
    expect(alice.page.locator("[data-link]")).to_have_text("connected")

    alice.page.set_viewport_size({"width": 390, "height": 844})
    alice.go(f"/sessions/{session_id}/connect")
    for summary in alice.page.locator("details:not([open]) > summary").all()[::-1]:
        summary.click()
    assert alice.page.evaluate("() => document.documentElement.scrollWidth") == 390, "nothing sticks out"
    expect(alice.page.locator(".copy:visible")).to_have_count(alice.page.locator(".copy").count())
    assert not alice.complaints
    assert not alice.foreign
    alice.context.close()
