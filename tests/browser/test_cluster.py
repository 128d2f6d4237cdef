"""A cluster as people use it: a session on a node, and a job from its form to its output, in real Chromium."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Browser, expect
from running import RunningPortico
from visitor import Visitor

from portico.demo import DemoCluster

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def house(portico_factory: Callable[..., RunningPortico], slurm: DemoCluster) -> RunningPortico:
    """Return a Portico with a cluster besides this machine."""
    table = f'[clusters.demo]\ntitle = "Demo cluster"\nconf = "{slurm.conf}"\nrelay_host = "{slurm.host_address}"'
    return portico_factory(tables=table)


@pytest.fixture(scope="module")
def alice(house: RunningPortico, slurm: DemoCluster, chromium: Browser) -> Iterator[Visitor]:
    """Return alice, who may submit jobs."""
    link = json.loads(house.cli("user", "add", house.get_name("alice"), "--json").stdout)["link"]
    visitor = Visitor(chromium, house.url, link)
    visitor.go("/jobs/new")  # the first try makes her POSIX account, and says what is missing
    visitor.page.fill("textarea[name=script]", "#!/bin/sh\n")
    visitor.page.click("button.main:has-text('Submit')")
    expect(visitor.page.get_by_role("alert")).to_contain_text("may not use this cluster")
    slurm.add_user(house.get_name("alice"))
    time.sleep(5.5)  # who has no account is asked for again after so long
    visitor.complaints.clear()  # the browser's own line about the 422
    yield visitor
    slurm.run("scancel", "--user", house.get_name("alice"), check=False)
    visitor.context.close()


def test_a_terminal_on_a_node(alice: Visitor, slurm: DemoCluster) -> None:
    alice.go("/apps/terminal")
    alice.page.click("nav.pick a:has-text('Demo cluster')")
    expect(alice.page.locator("select[name=partition]")).to_have_value("batch")
    alice.page.fill("input[name=memory_gb]", "0.5")
    alice.page.click("button.main:has-text('Start')")
    alice.wait_terminal("$")
    alice.type_line("echo on-$(hostname)")
    alice.wait_terminal("on-n1")
    alice.page.reload()
    alice.wait_terminal("on-n1")
    alice.type_line("exit")
    expect(alice.page.locator("#progress")).to_contain_text("It ended by itself", timeout=30_000)
    expect(alice.page.locator(".facts")).to_contain_text("Demo cluster")
    assert alice.complaints == []


def test_a_job_from_the_form_to_its_output(alice: Visitor) -> None:
    alice.go("/jobs/new?template=serial")
    assert "hostname" in alice.page.input_value("textarea[name=script]")
    alice.page.fill("textarea[name=script]", "#!/bin/bash\nfor i in $(seq 1 600); do echo line-$i; sleep 0.1; done\n")
    alice.page.fill("input[name=name]", "counting")
    alice.page.fill("input[name=memory_gb]", "0.1")
    alice.page.fill("input[name=hours]", "0.5")
    alice.page.click("button.main:has-text('Submit')")
    expect(alice.page.locator("h1")).to_contain_text("counting")
    expect(alice.page.locator("pre.log").first).to_contain_text("line-3", timeout=30_000)  # it moves by itself
    first = alice.page.locator("pre.log").first.inner_text()
    expect(alice.page.locator("pre.log").first).not_to_have_text(first, timeout=15_000)
    expect(alice.page.locator(".meters")).to_contain_text("of 30 min")
    alice.go("/jobs?text=count")
    expect(alice.page.locator("tbody tr")).to_have_count(1)
    alice.page.click("tbody a")
    alice.page.once("dialog", lambda dialog: dialog.accept())
    alice.page.click("button:has-text('Cancel')")
    expect(alice.page.locator("#job")).to_contain_text("It was cancelled", timeout=30_000)
    alice.page.click("a:has-text('Submit again')")
    assert "seq 1 600" in alice.page.input_value("textarea[name=script]")
    assert alice.page.input_value("input[name=name]") == "counting"
    alice.go("/clusters/demo")
    expect(alice.page.locator(".nodes li")).to_have_count(6)
    assert alice.complaints == []
