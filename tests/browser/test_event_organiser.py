"""What an organiser gives out and takes home, in real browsers: a link with a code, the summary, the archive."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from playwright.sync_api import Browser
from running import RunningPortico, wait_until
from visitor import Visitor

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

CODE = "für-alle 7"
SETTINGS = {
    "apps": [{"app_id": "terminal", "memory_gb": 0.25}],
    "fields": [{"name": "name", "label": "Name", "required": True}],
    "entry_code": CODE,
}


@pytest.fixture(scope="module")
def organiser(portico: RunningPortico, chromium: Browser) -> Visitor:
    name = portico.get_name("otto")
    link = str(json.loads(portico.cli("user", "add", name, "--json").stdout)["link"])
    portico.cli("user", "role", name, "organiser")
    return Visitor(chromium, portico.url, link)


@pytest.fixture(scope="module", autouse=True)
def seat(portico: RunningPortico, organiser: Visitor, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    path = tmp_path_factory.mktemp("event") / "settings.json"
    path.write_text(json.dumps(SETTINGS))
    at = datetime.now(UTC)
    portico.cli(
        "event", "create", "guild", "--begins", (at - timedelta(hours=1)).isoformat(), "--settings", str(path),
        "--ends", (at + timedelta(hours=3)).isoformat(), "--organiser", portico.get_name("otto"),
    )  # fmt: skip
    name = f"{portico.prefix}g1"
    portico.cli("event", "import", "guild", "-", stdin=None, input=f"account,password\n{name},a password\n")
    portico.cli("event", "open", "guild")
    wait_until(lambda: "free" in portico.cli("event", "seats", "guild").stdout, 60, "the seat")
    yield name
    portico.cli("event", "end", "guild", "--yes")
    portico.cli("event", "remove", "guild", "--yes", "--early")
    wait_until(lambda: name not in portico.cli("user", "list").stdout, 60, "the seat's end")


def test_who_scans_the_code_need_not_type_it_and_all_comes_home(
    portico: RunningPortico, chromium: Browser, organiser: Visitor, seat: str
) -> None:
    organiser.go("/events/guild")
    link = organiser.page.inner_text("#link")
    assert link.startswith(f"{portico.url}/e/guild#") and CODE in organiser.page.inner_text("main")

    phone = chromium.new_context(viewport={"width": 390, "height": 800})
    page = organiser.watch(phone.new_page())
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(link)
    organiser.wait(lambda: page.url == f"{portico.url}/e/guild", "an address without the code")
    assert "gets a copy" in page.inner_text("main")
    page.click("text=Get a seat")
    organiser.wait(lambda: page.input_value("input[name=code]") == CODE, "the code in the form")
    page.fill("[name=field-name]", "Ada")
    page.click("button.main")
    page.wait_for_url("**/e/guild/card")
    assert not any("alle" in url for url in asked), "the code is in no address that was asked for"
    page.click("text=Begin")
    page.click("button:text('Open')")
    page.wait_for_url("**/sessions/*")
    page.wait_for_selector(".xterm", timeout=60_000)
    phone.close()

    typed = chromium.new_context(java_script_enabled=False).new_page()
    typed.goto(f"{portico.url}/e/guild/register")
    typed.fill("[name=field-name]", "Bob")
    typed.fill("[name=code]", "something")
    typed.click("button.main")
    assert "The code is wrong" in typed.inner_text("main")
    typed.context.close()

    organiser.page.wait_for_selector("#summary polyline", timeout=30_000, state="attached")
    assert "terminal 1" in organiser.page.inner_text("#summary")
    with organiser.page.expect_download() as download:
        organiser.page.click("text=Fetch all files")
    assert download.value.suggested_filename == "guild-archive.zip"
    with zipfile.ZipFile(Path(download.value.path())) as archive:
        assert f"{seat}.tar.gz" in archive.namelist() and "PROBLEMS.txt" not in archive.namelist()
        page_of_its_own = archive.read("summary.html").decode()
    alone = organiser.watch(organiser.context.new_page())
    alone.set_content(page_of_its_own)
    assert alone.locator("polyline").count() >= 2
    assert organiser.complaints == [] and organiser.foreign == []
