"""The front door as people use it: two POSIX users in real Chromium, with the real programs behind every page."""

from __future__ import annotations

import json
import pwd
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect
from running import RunningPortico
from visitor import Visitor

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def house(portico_factory: Callable[..., RunningPortico]) -> RunningPortico:
    """Return a Portico in which nobody has signed in yet."""
    return portico_factory()


@pytest.fixture(scope="module")
def admin(house: RunningPortico, chromium: Browser) -> Iterator[Visitor]:
    """Return the admin, who followed the link that ``portico up`` printed."""
    visitor = Visitor(chromium, house.url, house.admin_link)
    yield visitor
    visitor.context.close()


def invite(house: RunningPortico, chromium: Browser, name: str) -> Visitor:
    """Add a user on the command line, and follow the link in a browser of their own."""
    link = json.loads(house.cli("user", "add", house.get_name(name), "--json").stdout)["link"]
    return Visitor(chromium, house.url, link)


@pytest.fixture(scope="module")
def alice(house: RunningPortico, chromium: Browser) -> Iterator[Visitor]:
    """Return alice, at her browser."""
    visitor = invite(house, chromium, "alice")
    yield visitor
    visitor.context.close()


@pytest.fixture(scope="module")
def bob(house: RunningPortico, chromium: Browser) -> Iterator[Visitor]:
    """Return bob, at his."""
    visitor = invite(house, chromium, "bob")
    yield visitor
    visitor.context.close()


def test_the_admin_adds_a_user_who_signs_in(house: RunningPortico, admin: Visitor, chromium: Browser) -> None:
    name = house.get_name("carol")
    admin.page.click("text=Users")
    admin.page.fill("input[name=name]", name)
    admin.page.click("button:has-text('Add user')")
    link = admin.page.inner_text("#secret")
    carol = Visitor(chromium, house.url, link)
    assert carol.page.inner_text(".who a") == name
    assert carol.page.locator("nav >> text=Users").count() == 0
    again = carol.context.new_page()
    again.goto(link)
    assert "#" not in again.url, "the code must not stay in the address bar"
    again.fill("input[name=password]", "another long password")
    again.fill("input[name=again]", "another long password")
    again.click("button.main")
    expect(again.get_by_role("alert")).to_contain_text("no longer good")
    # Locked: out at once, wherever she is.
    admin.go("/admin/users")
    admin.page.locator("tr", has_text=name).locator("button:has-text('Lock')").click()
    admin.page.wait_for_selector(f"tr:has-text('{name}') .state.locked")
    carol.page.reload()
    expect(carol.page).to_have_url(re.compile("/sign-in"))
    carol.context.close()


def test_a_wrong_password_says_what_to_do(house: RunningPortico, chromium: Browser) -> None:
    page = chromium.new_context().new_page()
    page.goto(f"{house.url}/account")
    expect(page).to_have_url(re.compile("/sign-in"))
    page.fill("input[name=name]", "nobody")
    page.fill("input[name=password]", "not the password")
    page.click("button.main")
    expect(page.get_by_role("alert")).to_contain_text("The name or the password is wrong.")
    page.context.close()


def test_terminal_survives_a_reload_and_a_lost_network(house: RunningPortico, alice: Visitor) -> None:
    session_id = alice.start("Terminal")
    alice.wait_terminal("$")
    alice.type_line("echo $((6*7)) $(id -un); stty size")
    shown = alice.wait_terminal(f"42 {house.get_name('alice')}")
    before = alice.wait(lambda: re.search(r"^(\d+) (\d+)$", alice.read_terminal(), re.M), "stty's answer", 10)
    alice.page.set_viewport_size({"width": 900, "height": 600})
    alice.page.wait_for_timeout(300)
    alice.type_line("clear; stty size")
    after = alice.wait(
        lambda: (m := re.search(r"^(\d+) (\d+)$", alice.read_terminal(), re.M)) and m[0] != before[0] and m,
        "a new size",
    )
    assert int(after[2]) < int(before[2]), "the program in the terminal learns of the window's size"
    alice.page.set_viewport_size({"width": 1280, "height": 800})
    alice.type_line("there=still; clear; echo before-reload")
    alice.wait_terminal("before-reload")
    alice.page.reload()
    alice.wait_terminal("before-reload")
    alice.type_line("echo $there-here")
    alice.wait_terminal("still-here")
    # A Wi-Fi drop: the connection is cut without the page's doing, and output goes on meanwhile.
    alice.type_line("clear; for i in $(seq 1 400); do echo line-$i; sleep 0.005; done; echo done-$there")
    alice.wait_terminal("line-20")
    alice.context.set_offline(True)
    alice.page.evaluate("() => window.dispatchEvent(new Event('offline'))")
    house.cli("session", "show", session_id)
    alice.page.wait_for_timeout(500)
    alice.context.set_offline(False)
    shown = alice.wait_terminal("done-still", 30)
    numbers = [int(n) for n in re.findall(r"^line-(\d+)$", shown, re.M)]
    assert numbers == list(range(1, 401)), "nothing lost, nothing twice"
    assert alice.complaints == []


def test_notebook_cell_terminal_and_kernel(house: RunningPortico, alice: Visitor) -> None:
    session_id = alice.start("JupyterLab")
    with alice.context.expect_page() as opened:
        alice.page.click("button.main.big", timeout=60_000)
    lab = alice.watch(opened.value)
    lab.wait_for_selector(".jp-Launcher", timeout=90_000)
    assert lab.url.startswith(f"http://localhost:{house.apps_port}/s/{session_id}/"), "an origin of its own"
    lab.locator(".jp-LauncherCard[data-category=Notebook]").first.click()
    lab.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
    expect(lab.get_by_role("button", name=re.compile("Idle")).first).to_be_visible(timeout=60_000)
    cell = lab.locator(".jp-Notebook .jp-Cell .cm-content").first
    cell.click()
    lab.keyboard.type("import os; print(6 * 7, os.environ['USER'])")
    expect(cell).to_contain_text("os.environ", timeout=10_000)  # typed while the notebook still opened, it is lost
    lab.keyboard.press("Shift+Enter")
    expect(lab.locator(".jp-OutputArea-output pre").first).to_have_text(
        re.compile(f"42 {house.get_name('alice')}"), timeout=60_000
    )
    # Its pages can't act as the user on the portal.
    assert (
        lab.evaluate(
            """async (portal) => { try { const r = await fetch(portal + "/api/v1/me", {credentials: "include"});
        return "read " + r.status } catch (e) { return "refused" } }""",
            house.url,
        )
        == "refused"
    )
    assert "portico" not in lab.evaluate("() => document.cookie").replace("portico-app", "")
    assert (
        lab.evaluate(
            """(portal) => new Promise((resolve) => { const s = new WebSocket(portal.replace("http", "ws")
        + "/sessions/aaaaaaaaaaaa/stream"); s.onopen = () => resolve("open");
        s.onerror = () => resolve("refused") })""",
            house.url,
        )
        == "refused"
    )
    lab.close()
    alice.complaints[:] = [text for text in alice.complaints if "blocked by CORS" not in text]  # just provoked
    assert alice.complaints == []


def test_desktop_draws_and_answers_keys(alice: Visitor) -> None:
    alice.start("Desktop (light)")
    alice.wait_desktop(colours=10)
    before = alice.wait_still()
    alice.page.keyboard.press("Control+Escape")  # icewm's menu
    alice.wait(lambda: alice.read_pixels() != before, "the menu", 10)
    alice.page.keyboard.press("Escape")
    # The desktop follows the window.
    size = alice.page.evaluate("() => document.querySelector('.screen canvas').width")
    alice.page.set_viewport_size({"width": 1000, "height": 700})
    alice.wait(
        lambda: alice.page.evaluate("() => document.querySelector('.screen canvas').width") < size, "a smaller desktop"
    )
    alice.page.set_viewport_size({"width": 1280, "height": 800})
    assert alice.complaints == []


def test_clipboard_goes_both_ways(house: RunningPortico, alice: Visitor) -> None:
    session_id = alice.start("Desktop (light)")
    alice.wait_desktop(colours=10)
    alice.page.click("[data-do=clipboard]")
    alice.page.fill("[data-panel=clipboard] textarea", "to the desktop 42")
    environment = read_display(house, session_id)
    alice.wait(lambda: read_selection(house, environment) == "to the desktop 42", "the text in X", 15)
    write_selection(house, environment, "from the desktop 43")
    alice.wait(
        lambda: alice.page.input_value("[data-panel=clipboard] textarea") == "from the desktop 43", "the text here", 15
    )
    house.cli("session", "stop", session_id)


def read_display(house: RunningPortico, session_id: str) -> dict[str, str]:
    """Return DISPLAY and XAUTHORITY of a session's desktop, as its own processes have them."""
    uid = pwd.getpwnam(house.get_name("alice")).pw_uid
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for folder in Path("/proc").iterdir():
            try:
                if not folder.name.isdigit() or folder.stat().st_uid != uid:
                    continue
                items = (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            env = dict(item.decode(errors="replace").partition("=")[::2] for item in items)
            if env.get("PORTICO_SESSION") == session_id and env.get("DISPLAY"):
                return {name: env[name] for name in ("DISPLAY", "XAUTHORITY", "HOME", "PATH")}
        time.sleep(0.1)
    raise TimeoutError("no process of the desktop has a DISPLAY")


def run_as_alice(house: RunningPortico, environment: dict[str, str], argv: list[str], **more: object) -> str:
    """Run a program on alice's display, as alice."""
    name = house.get_name("alice")
    ids = {"user": name, "group": name, "extra_groups": []}
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=10, check=False, **ids, **more)  # type: ignore[call-overload]
    return str(done.stdout)


def read_selection(house: RunningPortico, environment: dict[str, str]) -> str:
    """Return the clipboard of a display."""
    return run_as_alice(house, environment, ["xclip", "-o", "-selection", "clipboard"])


def write_selection(house: RunningPortico, environment: dict[str, str], text: str) -> None:
    """Own the clipboard of a display; xclip stays until somebody else owns it."""
    name = house.get_name("alice")
    subprocess.run(
        ["xclip", "-i", "-selection", "clipboard"], env=environment, input=text, text=True, timeout=10, check=True,
        user=name, group=name, extra_groups=[], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def test_a_colleague_looks_and_touches_nothing(house: RunningPortico, alice: Visitor, bob: Visitor) -> None:
    session_id = alice.start("Terminal")
    alice.wait_terminal("$")
    alice.type_line("echo shown-to-bob")
    alice.wait_terminal("shown-to-bob")
    bob.go(f"/shared/{session_id}")
    expect(bob.page.locator("h1")).to_contain_text("no such shared session")
    alice.page.click("text=Share")
    alice.page.fill("input[name=viewer_name]", house.get_name("bob"))
    alice.page.click("text=Let them look")
    alice.page.wait_for_selector(f"li:has-text('{house.get_name('bob')}')")
    bob.go("/")
    bob.page.click("a.button:has-text('Look')")
    bob.wait_terminal("shown-to-bob")
    # Past the page's good will, straight through its WebSocket.
    bob.page.evaluate(
        """(path) => new Promise((resolve) => {
        const s = new WebSocket(location.origin.replace("http", "ws") + path, ["binary"]);
        s.onopen = () => { const t = new TextEncoder().encode("echo BOB-WAS-HERE\\n");
        const f = new Uint8Array(5 + t.length);
        f[0] = 105; f[4] = t.length; f.set(t, 5); s.send(f); setTimeout(resolve, 500) } })""",
        f"/shared/{session_id}/stream",
    )
    alice.open(session_id)
    alice.wait_terminal("shown-to-bob")
    alice.type_line("echo after-bob")
    assert "BOB-WAS-HERE" not in alice.wait_terminal("after-bob")
    # She lets him type as well, and then no more.
    alice.go(f"/sessions/{session_id}/share")
    alice.page.click("button:text('Let them control it')")
    alice.page.wait_for_selector("li >> text=controls it")
    bob.page.wait_for_selector("text=you control it")
    bob.page.wait_for_selector(".link.up")
    bob.wait_terminal("after-bob")
    bob.page.click(".screen")
    bob.type_line("echo typed-by-$((40 + 2))")
    bob.wait_terminal("typed-by-42")
    alice.page.click("button:text('View only again')")
    bob.page.wait_for_selector("text=view only")
    alice.go(f"/sessions/{session_id}/share")
    begin = time.monotonic()
    alice.page.click("text=Take back")
    bob.page.wait_for_selector("text=no such shared session")
    assert time.monotonic() - begin < 5
    house.cli("session", "stop", session_id)


def test_everything_is_still_there_after_kill_9(house: RunningPortico, alice: Visitor) -> None:
    terminal = alice.start("Terminal")
    alice.wait_terminal("$")
    alice.type_line("kept=safe; echo ready-$kept")
    alice.wait_terminal("ready-safe")
    desktop = alice.start("Desktop (XFCE)")
    alice.wait_desktop()
    alice.wait_still()
    processes = count_processes(house, "alice")
    house.kill()
    assert count_processes(house, "alice") >= processes - 1, "no session ends with Portico (an agent may)"
    house.start()
    alice.open(terminal)
    alice.wait_terminal("ready-safe")
    alice.type_line("echo and-$kept")
    alice.wait_terminal("and-safe")
    alice.open(desktop)
    alice.wait_desktop()
    assert alice.page.locator(".state.ready").count() == 1
    before = alice.wait_still()
    alice.page.mouse.move(640, 450)
    alice.page.mouse.click(640, 450, button="right")  # the same desktop answers
    alice.wait(lambda: alice.read_pixels() != before, "a menu", 10)
    assert alice.foreign == [], "no page loads anything from elsewhere"


def count_processes(house: RunningPortico, name: str) -> int:
    """Return how many processes a user has."""
    uid = pwd.getpwnam(house.get_name(name)).pw_uid
    found = 0
    for folder in Path("/proc").iterdir():
        try:
            found += folder.name.isdigit() and folder.stat().st_uid == uid
        except OSError:
            continue
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_fit_phones_and_have_names(
    house: RunningPortico, admin: Visitor, chromium: Browser, scheme: str, width: int
) -> None:
    context = chromium.new_context(
        storage_state=admin.context.storage_state(),
        viewport={"width": width, "height": 800},
        color_scheme=scheme,  # type: ignore[arg-type]
    )
    page = context.new_page()
    for path in ("/", "/apps/jupyter", "/account", "/admin/users", "/admin/sessions", "/admin/audit", "/api/docs"):
        page.goto(f"{house.url}{path}")
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width, f"{path} is wider than the screen"
        nameless = page.evaluate(
            """() => [...document.querySelectorAll("button, a, input:not([type=hidden]), select, textarea")]
            .filter((e) => e.offsetParent && !(e.innerText?.trim() || e.ariaLabel || e.labels?.length))
            .map((e) => e.outerHTML.slice(0, 100))"""
        )
        assert nameless == [], path
        assert page.locator("h1").count() == 1
    context.close()
