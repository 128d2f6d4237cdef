"""Apps on hosts of their own: a wildcard domain instead of a second port."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Browser, expect
from running import RunningPortico
from visitor import Visitor

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


def test_a_notebook_has_a_host_of_its_own(portico_factory: Callable[..., RunningPortico], chromium: Browser) -> None:
    house = portico_factory(options=("--apps-domain", "apps.localhost"))  # browsers know *.localhost (RFC 6761, 6.3)
    link = json.loads(house.cli("user", "add", house.get_name("alice"), "--json").stdout)["link"]
    alice = Visitor(chromium, house.url, link)
    session_id = alice.start("JupyterLab")
    with alice.context.expect_page() as opened:
        alice.page.click("button.main.big", timeout=60_000)
    lab = opened.value
    lab.wait_for_selector(".jp-Launcher", timeout=90_000)
    assert lab.url.startswith(f"http://{session_id}.apps.localhost:{house.port}/s/{session_id}/")
    lab.locator(".jp-LauncherCard[data-category=Console]").first.click()  # its kernel's WebSocket works there
    expect(lab.get_by_role("button", name=re.compile("Idle")).first).to_be_visible(timeout=60_000)
    # Another session's host, and the portal's pages on this one, are nothing.
    other = f"http://{'z' * 12}.apps.localhost:{house.port}/s/{session_id}/lab"
    for url in (other, f"http://{session_id}.apps.localhost:{house.port}/account"):
        answer = lab.goto(url)
        assert answer is not None
        assert answer.status in (401, 404), url
    alice.context.close()
