"""A real browser behind the real Caddy, with HTTP/2 as browsers speak it: pages, a terminal, a notebook."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from front import HOST, find_program, make_pair, read_settings, running_front
from playwright.sync_api import Browser, expect
from running import RunningPortico, find_free_ports
from visitor import Visitor

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


def test_a_terminal_and_a_notebook_behind_caddy(
    portico_factory: Callable[..., RunningPortico], chromium: Browser, tmp_path: Path
) -> None:
    if not find_program("caddy"):
        pytest.skip("caddy is not here; `./portico test` fetches it from Debian")
    if not shutil.which("openssl"):
        pytest.skip("openssl is not installed")
    ports = find_free_ports()[:2]
    house = portico_factory(settings=read_settings("wildcard", *ports))
    url = f"https://{HOST}:{ports[0]}"
    browser = chromium.browser_type.launch(
        executable_path=shutil.which("chromium"),
        args=["--no-sandbox", "--disable-gpu", "--disable-quic", "--host-resolver-rules=MAP *.example.org 127.0.0.1"],
    )
    with running_front("caddy", "wildcard", house, ports, make_pair(tmp_path)):
        link = json.loads(house.cli("user", "add", house.get_name("alice"), "--json").stdout)["link"]
        alice = Visitor(browser, url, link, ignore_https_errors=True)
        protocol = alice.page.evaluate("performance.getEntriesByType('navigation')[0].nextHopProtocol")
        assert protocol == "h2"
        cookie = next(cookie for cookie in alice.context.cookies() if cookie["name"].endswith("portico"))
        assert (cookie["name"], cookie["secure"], cookie["httpOnly"]) == ("__Host-portico", True, True)
        alice.start("Terminal")
        alice.wait_terminal("$")
        alice.type_line("echo $((6*7)) $(id -un)")
        alice.wait_terminal(f"42 {house.get_name('alice')}")
        session_id = alice.start("JupyterLab")
        with alice.context.expect_page() as opened:
            alice.page.click("button.main.big", timeout=60_000)  # it shows by itself: events come through
        lab = opened.value
        lab.wait_for_selector(".jp-Launcher", timeout=90_000)
        assert lab.url.startswith(f"https://{session_id}.apps.example.org:{ports[0]}/s/{session_id}/")
        lab.locator(".jp-LauncherCard[data-category=Console]").first.click()
        expect(lab.get_by_role("button", name=re.compile("Idle")).first).to_be_visible(timeout=60_000)
        assert alice.complaints == []
        alice.context.close()
    browser.close()
