"""A desktop over a weak network, in a real browser: the picture gets coarser and finer, and what was lost comes back."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser
from running import RunningPortico
from slow_desktop import LAG, LinkedLine, picture_shown, read_queued_bytes
from visitor import Visitor

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]

SLOW_BYTES_PER_S = 500_000 / 8
FPS = 5
"""Few, so that the link decides how late a picture is, and not a busy machine."""
QUEUED_MOST_BYTES = 400_000
"""Two pictures of the best quality; without adapting there are megabytes, or as much all the time."""

READ_QUALITY = "porticoDesktop.qualityLevel"
READ_LINK = "document.querySelector('[data-link]').textContent"
PLAY = """async (lags) => {
  const { Quality } = await import(document.querySelector("script[src*=desktop]").src.replace("desktop.js", "link.js"));
  const quality = new Quality();
  return lags.map(([lag, isLoaded]) => { quality.take(lag, isLoaded); return quality.level; });
}"""


@pytest.fixture(scope="module")
def line(portico: RunningPortico) -> Iterator[LinkedLine]:
    with LinkedLine(portico.port) as line:
        yield line


@pytest.fixture(scope="module")
def visitor(portico: RunningPortico, line: LinkedLine, chromium: Browser) -> Iterator[Visitor]:
    rules = f"--host-resolver-rules=MAP localhost:{portico.port} 127.0.0.1:{line.port}"
    arguments = ["--no-sandbox", "--disable-gpu", rules]
    browser = chromium.browser_type.launch(executable_path=shutil.which("chromium"), args=arguments)
    made = json.loads(portico.cli("user", "add", portico.get_name("wendy"), "--json").stdout)
    yield Visitor(browser, portico.url, str(made["link"]))
    browser.close()


@pytest.fixture(scope="module")
def moving(portico: RunningPortico, visitor: Visitor) -> Iterator[Visitor]:
    """Somebody at a desktop on which pictures move."""
    session_id = visitor.start("Desktop (light)")
    visitor.wait_desktop(colours=10)
    with picture_shown(portico.get_name("wendy"), session_id, FPS):
        visitor.wait(lambda: visitor.page.evaluate(LAG, 1000) > 0, "the picture, which answers keys", 30)
        yield visitor
    portico.cli("session", "stop", session_id)


def test_on_a_slow_link_the_picture_gets_coarser_and_then_finer(
    portico: RunningPortico, moving: Visitor, line: LinkedLine
) -> None:
    def read() -> int:
        return int(moving.page.evaluate(READ_QUALITY))

    before = read()
    line.down.bytes_per_s = SLOW_BYTES_PER_S
    moving.wait(lambda: read() <= 1, "a coarser picture", 90)
    assert "slow link" in moving.page.evaluate(READ_LINK)
    for _ in range(5):
        assert moving.page.evaluate(LAG, 20_000) > 0, "keys arrive, and are seen"
        assert read_queued_bytes(portico.port) <= QUEUED_MOST_BYTES
    coarse = read()
    line.down.bytes_per_s = float("inf")
    moving.wait(lambda: read() > coarse, "a finer picture", 120)
    moving.page.select_option("[data-do=quality]", "9")
    assert read() == 9, "who chooses has what they choose"
    moving.page.select_option("[data-do=quality]", "auto")
    assert read() < 9 <= before + 3


def test_the_quality_does_not_flap(moving: Visitor) -> None:
    def play(lags: list[tuple[float, bool]]) -> list[int]:
        return list(moving.page.evaluate(PLAY, [list(one) for one in lags]))

    assert play([(30, True)] * 4)[-1] == 6, "patience"
    assert play([(30, True)] * 40)[-1] == 8
    assert play([(30, False)] * 40)[-1] == 6, "a desktop at rest tells nothing of the link"
    assert play([(700, True)] * 40)[-1] == 8, "far away is not slow"
    assert play([(30, True), (500, True)])[-1] == 4 and play([(30, True), (3000, True)])[-1] == 2
    # A link that is good for one step less: each rise is late, each fall is good again.
    levels, lag = [], 30.0
    history: list[tuple[float, bool]] = [(30, True)]
    for _ in range(600):
        history.append((lag, True))
        levels = play(history)
        lag = 600.0 if levels[-1] >= 6 else 60.0
        if len(history) > 150:
            break
    changes = sum(one != other for one, other in itertools.pairwise(levels))
    assert changes <= 12, levels
    assert levels[-1] in (4, 6)


@pytest.mark.parametrize("forgetful", [False, True], ids=["the same address", "another address"])
def test_a_lost_network_is_noticed_and_the_desktop_comes_back(
    portico: RunningPortico, moving: Visitor, line: LinkedLine, forgetful: bool
) -> None:
    page = moving.page
    moving.wait(lambda: page.evaluate(READ_LINK).startswith("connected"), "a connection", 30)
    sessions = portico.cli("session", "list", "--everyone", "--json").stdout.count('"ready"')
    line.go()
    try:
        moving.wait(
            lambda: any(said in page.evaluate(READ_LINK) for said in ("no answer", "lost")), "a word about it", 15
        )
        page.wait_for_timeout(10_000)
    finally:
        line.come_back(forgetful=forgetful)
    moving.wait(lambda: page.evaluate(READ_LINK).startswith("connected"), "the desktop, by itself", 30)
    moving.wait(lambda: page.evaluate(LAG, 2000) > 0, "the same window, which answers keys", 30)
    assert portico.cli("session", "list", "--everyone", "--json").stdout.count('"ready"') == sessions
    assert moving.complaints == []
