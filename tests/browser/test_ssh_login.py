"""The link that ``portico ssh login`` opens: its code outlives the sign-in, leaves the address bar, and is confirmed."""

from __future__ import annotations

import json
import shutil

import httpx
import pytest
from playwright.sync_api import Browser, expect
from running import PASSWORD, RunningPortico
from visitor import Visitor

pytestmark = [
    pytest.mark.browser,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="needs ssh-keygen"),
]

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAICz1EdICzNHmEqF7Z0XG6MSvSbgIcCW7Iw7EINrDsDuR"


def ask(portico: RunningPortico, path: str, body: dict[str, str]) -> dict[str, str]:
    headers = {"Origin": portico.url}
    answer = httpx.post(f"{portico.url}/api/v1/ssh{path}", json=body, headers=headers, trust_env=False)
    return dict(answer.raise_for_status().json())


def test_a_code_in_a_link_is_confirmed_after_the_sign_in(portico: RunningPortico, chromium: Browser) -> None:
    name = portico.get_name("dora")
    link = json.loads(portico.cli("user", "add", name, "--json").stdout)["link"]
    dora = Visitor(chromium, portico.url, link)
    page = dora.page
    page.click("text=Sign out")
    begun = ask(portico, "/login", {"public_key": KEY})
    dora.go(f"/ssh-login#{begun['user_code']}")
    page.fill("input[name=name]", name)
    page.fill("input[name=password]", "not the password")
    page.click("button.main")
    expect(page.locator("[role=alert]")).to_be_visible()
    page.fill("input[name=password]", PASSWORD)
    page.click("button.main")
    expect(page.locator("#code-form input")).to_have_value(begun["user_code"])
    assert page.url == f"{portico.url}/ssh-login"
    page.click("text=Go on")
    expect(page.locator("main")).to_contain_text("Only go on if you started this yourself")
    page.click("button:has-text('Confirm')")
    expect(page.locator("h1")).to_have_text("Done; go back to your terminal.")
    assert ask(portico, "/login/collect", {"device_code": begun["device_code"]})["state"] == "done"
    page.click("text=your account page")
    row = page.locator("section", has_text="SSH certificates").locator(".row")
    expect(row).to_contain_text("SHA256:A+Y8/32PUX8nRdts7b7HlTsrbhGlMN7Fw9TimYBirMU")
    row.locator("text=Revoke").click()
    expect(page.locator("section", has_text="SSH certificates")).to_contain_text("You have none.")
    assert dora.complaints == []
    assert dora.foreign == []
    dora.context.close()
