"""Apps inside a container image, inside a Slurm job, on a node that has ch-run and sees the same image."""

from __future__ import annotations

import pwd
from pathlib import Path

import pytest
from containers import IMAGE, find_reason_to_skip_containers
from running import wait_until
from slurm_site import Site

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(find_reason_to_skip_containers()), reason=find_reason_to_skip_containers() or "-"),
]


def test_a_shell_in_an_image_on_a_node(site: Site) -> None:
    session = site.start_ready(values={"image": str(IMAGE)})
    assert session["node_name"] in site.slurm.nodes
    terminal = site.open_terminal(session["id"])
    terminal.type("test -e /etc/portico-test-image && echo in''side; hostname; pwd; echo $SLURM_JOB_ID.; echo en''d\n")
    shown = terminal.wait(lambda text: "\r\nend" in text)
    assert "\r\ninside" in shown and session["node_name"] in shown
    assert f"/home/{site.house.get_name('alice')}" in shown and f"{site.list_jobs(session['id'])[0]}." in shown


def test_a_desktop_in_an_image_on_a_node_and_its_end(site: Site) -> None:
    key = site.start("desktop-image", values={"image": str(IMAGE)})
    site.alice.wait(key, timeout_s=90)
    screen, _ = site.alice.open_desktop(f"/sessions/{key}/stream")
    screen.wait(lambda one: one.count_colours() > 20, timeout_s=60)
    uid = pwd.getpwnam(site.house.get_name("alice")).pw_uid

    def list_managers() -> list[Path]:
        return [
            path for path in Path("/proc").glob("[0-9]*")
            if _read(path / "comm").startswith("icewm") and path.stat().st_uid == uid
        ]  # fmt: skip

    assert all((path / "root/etc/portico-test-image").exists() for path in list_managers())
    assert list_managers()
    site.alice.close_streams()
    site.alice.http.post(f"/sessions/{key}/stop")
    site.alice.wait(key, "ended", 60)
    wait_until(lambda: not list_managers(), 30, "the end of what ran inside")
    assert str(IMAGE) not in Path("/proc/self/mountinfo").read_text()


def test_an_image_that_a_node_does_not_have_is_told(site: Site) -> None:
    key = site.start(values={"image": str(IMAGE.with_name("none"))})
    ended = site.alice.wait(key, "ended", 90)
    assert ended["reason"] == "failed" and f"there is no image {IMAGE.with_name('none')} on " in ended["detail"], ended


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
