"""SSH keys on the account page, in real Chromium and with ssh-keygen behind it: pasted, uploaded, refused, removed."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect
from running import RunningPortico
from visitor import Visitor

pytestmark = [pytest.mark.browser, pytest.mark.timeout(180)]


@pytest.fixture(scope="module")
def house(portico_factory: Callable[..., RunningPortico]) -> RunningPortico:
    """Return a Portico in which nobody has signed in yet."""
    return portico_factory()


@pytest.fixture(scope="module")
def alice(house: RunningPortico, chromium: Browser) -> Iterator[Visitor]:
    """Return alice, at her browser."""
    link = json.loads(house.cli("user", "add", house.get_name("alice"), "--json").stdout)["link"]
    visitor = Visitor(chromium, house.url, link)
    yield visitor
    visitor.context.close()


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """Return the path of a new key's private half."""
    path = tmp_path / "id"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "at the laptop", "-f", path], check=True)
    return path


def read_fingerprint(key: Path) -> str:
    """Return what ssh-keygen says of a key."""
    return subprocess.run(["ssh-keygen", "-lf", key], capture_output=True, text=True, check=True).stdout.split()[1]


def test_a_key_is_pasted_with_limits_and_removed(alice: Visitor, key: Path) -> None:
    page = alice.page
    alice.go("/account")
    form = page.locator("form.add-key")
    expect(form.locator("[name=networks]")).to_be_hidden()
    expect(form.locator("[name=days]")).to_be_hidden()
    form.get_by_label("Public key").fill(key.with_suffix(".pub").read_text())
    form.get_by_label("Good from").select_option("these networks")
    form.locator("[name=networks]").fill("192.0.2.0/24, nonsense")
    form.get_by_label("Expires after").select_option("a number of days")
    form.locator("[name=days]").fill("90")
    form.get_by_role("button", name="Add key").click()
    expect(page.locator("#keys").get_by_role("alert")).to_contain_text("'nonsense' is no network")
    expect(page.locator("#keys").get_by_role("alert")).to_be_in_viewport()
    alice.complaints.clear()  # of the status 422
    expect(form.locator("[name=networks]")).to_have_attribute("aria-invalid", "true")
    expect(form.locator("[name=days]")).to_have_value("90")
    form.locator("[name=networks]").fill("192.0.2.0/24, 2001:db8::/32")
    form.get_by_role("button", name="Add key").click()
    row = page.locator("#keys tr", has_text="at the laptop")
    expect(row).to_contain_text(read_fingerprint(key))
    expect(row).to_contain_text("ED25519, 256 bits")
    expect(row).to_contain_text("2001:db8::/32")
    expect(row).to_contain_text("not yet")
    row.get_by_role("button", name="Remove").click()  # the question is answered with yes
    expect(row).to_have_count(0)
    assert alice.complaints == []


def test_a_key_is_uploaded(alice: Visitor, key: Path) -> None:
    page = alice.page
    alice.go("/account")
    form = page.locator("form.add-key")
    form.get_by_label("Or the file itself").set_input_files(key.with_suffix(".pub"))
    form.get_by_label("Label").fill("uploaded")
    form.get_by_label("Good from").select_option("here")
    form.get_by_role("button", name="Add key").click()
    row = page.locator("#keys tr", has_text="uploaded")
    expect(row).to_contain_text(read_fingerprint(key))
    expect(row).to_contain_text("127.0.0.1/32")
    expect(row).to_contain_text("never")
    row.get_by_role("button", name="Remove").click()
    expect(row).to_have_count(0)
    assert alice.complaints == []


def test_the_private_half_is_refused_and_gone(alice: Visitor, key: Path) -> None:
    page = alice.page
    alice.go("/account")
    form = page.locator("form.add-key")
    form.get_by_label("Or the file itself").set_input_files(key)
    form.get_by_role("button", name="Add key").click()
    expect(page.locator("#keys").get_by_role("alert")).to_contain_text("never give it to anybody")
    assert "PRIVATE KEY" not in page.content()
    assert page.locator("#keys tbody tr").count() == 0
