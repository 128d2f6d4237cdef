"""Apps inside a container image, for real: Charliecloud's ch-run, an image of Debian's packages, a whole Portico.

Each reach: a seat's desktop of an event (rfb), a terminal (pty), and a site's own app whose script runs inside (http).
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from containers import IMAGE, IMAGES, find_reason_to_skip_containers
from person import Person, TerminalClient
from rfb import RfbClient
from running import INSTALL_DIR, RunningPortico, wait_until
from websockets.exceptions import InvalidStatus

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(find_reason_to_skip_containers()), reason=find_reason_to_skip_containers() or "-"),
]

HTTP_APP = """
name = "Course"
reach = "http"
[container]
script = "inside"
images = ["{image}"]
binds = ["/usr/share/keyrings:/mnt"]
"""
# perl-base, because that is the interpreter that is in every Debian image; the host's would say something else.
HTTP_SCRIPT = r"""#!/usr/bin/perl
use Socket;
umask 0077;
socket(my $listener, PF_UNIX, SOCK_STREAM, 0) or die;
bind($listener, sockaddr_un($ENV{PORTICO_SOCKET})) or die "bind: $!";
listen($listener, 16);
while (accept(my $client, $listener)) {
    my $line = <$client>;
    while (my $head = <$client>) { last if $head =~ /^\r?$/ }
    my $body = join("\n", -e "/etc/portico-test-image" ? "inside" : "outside", map { "$_=$ENV{$_}" } sort keys %ENV) . "\n";
    print $client "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: " . length($body) . "\r\n\r\n$body";
    close $client;
}
"""


@pytest.fixture(scope="module")
def images() -> Iterator[Path]:
    """A folder of the site's with images that something is wrong with."""
    folder = Path(f"/var/tmp/pt-images-{os.getpid()}")
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    tiny = folder / "tiny"  # a shell, and nothing to look at
    for path in (
        "bin/dash",
        "bin/sh",
        "lib64",
        "lib/x86_64-linux-gnu/libc.so.6",
        "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
    ):
        (tiny / path).parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-a", IMAGE / path, tiny / path], check=True)
    for name in ("dev", "proc", "sys", "tmp", "home", "etc", "usr/bin"):
        (tiny / name).mkdir(parents=True, exist_ok=True)
    shutil.copytree(tiny, folder / "bare", symlinks=True)
    for name in ("passwd", "group"):
        (tiny / "etc" / name).touch()
    shutil.copytree(tiny, folder / "closed", symlinks=True)
    shutil.copytree(tiny, folder / "speaking", symlinks=True)
    (folder / "speaking/ch").mkdir()
    (folder / "speaking/ch/environment").write_text("COURSE=of 2027\nHOME=/root\n")
    (folder / "closed").chmod(0o700)
    (folder / "notes.sif").write_text("hello")
    (folder / "old.sqfs").write_bytes(b"hsqs" + b"\0" * 200)
    (folder / "away").symlink_to("/usr")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def portico(portico_factory: Callable[..., RunningPortico], images: Path) -> RunningPortico:
    apps = images / "apps"
    (apps / "course").mkdir(parents=True)
    (apps / "course/app.toml").write_text(HTTP_APP.format(image=IMAGE))
    (apps / "course/job.sh").write_text(HTTP_SCRIPT)
    return portico_factory(settings={"image_dirs": [str(IMAGES), str(images)], "catalog_dirs": [str(apps)]})


def list_processes(uid: int, name: str = "") -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if path.stat().st_uid == uid and name in (path / "comm").read_text():
                found.append(int(path.name))
    return found


def find_process(uid: int, name: str) -> int:
    pids = wait_until(lambda: list_processes(uid, name), 20, f"a {name}")
    return int(pids[0])


def open_terminal(who: Person, session_id: str) -> TerminalClient:
    return TerminalClient(who.open_stream(f"/sessions/{session_id}/stream"))


def test_a_shell_inside_an_image(portico: RunningPortico) -> None:
    alice = portico.user("alice")
    entry_name = portico.get_name("alice")
    session = alice.start("terminal", values={"image": str(IMAGE)}, memory_gb=0.5)
    alice.wait(session["id"])
    home = Path(pwd.getpwnam(entry_name).pw_dir)
    (home / "mine").write_text("of alice\n")
    os.chown(home / "mine", pwd.getpwnam(entry_name).pw_uid, -1)
    terminal = open_terminal(alice, session["id"])
    terminal.type("test -e /etc/portico-test-image && echo in''side; ls -d /opt/portico* /etc/shadow; echo en''d\n")
    shown = terminal.wait(lambda text: "\r\nend" in text)
    assert "\r\ninside" in shown and shown.count("cannot access") == 2
    terminal.type("cat mine; pwd; touch /usr/x; id -un; ls -la /tmp/portico; echo ne''xt\n")
    shown = terminal.wait(lambda text: "\r\nnext" in text)
    assert "of alice" in shown and f"/home/{entry_name}" in shown and "Read-only file system" in shown
    assert entry_name in shown and "app.sock" in shown
    # A clean environment: what Portico says, what a shell needs, and nothing that leads to a place outside.
    terminal.type("env | cut -d= -f1 | sort | tr '\\n' ' '; echo; echo la''st\n")
    shown = terminal.wait(lambda text: "\r\nlast" in text)
    names = set(shown.split("la''st")[-1].split())
    assert {"PORTICO_SESSION", "PORTICO_SOCKET", "HOME", "USER", "PATH"} <= names
    assert not names & {"PORTICO_PYTHON", "PORTICO_APPS", "LD_LIBRARY_PATH", "TMPDIR", "DBUS_SESSION_BUS_ADDRESS"}
    terminal.type("exit 3\n")
    ended = alice.wait(session["id"], "ended")
    assert (ended["reason"], ended["detail"]) == ("failed", "exit status 3")


def test_what_is_written_to_the_containers_tmp_counts_as_the_sessions_memory(portico: RunningPortico) -> None:
    alice = portico.user("alice")
    session = alice.start("terminal", values={"image": str(IMAGE)}, memory_gb=0.25)
    alice.wait(session["id"])
    terminal = open_terminal(alice, session["id"])
    terminal.type("head -c 600M /dev/zero >/tmp/large\n")
    ended = alice.wait(session["id"], "ended")
    assert ended["reason"] == "out-of-memory", ended


def test_what_the_images_own_environment_says_holds_inside(portico: RunningPortico, images: Path) -> None:
    alice = portico.user("alice")
    session = alice.start("terminal", values={"image": str(images / "speaking")}, memory_gb=0.5)
    alice.wait(session["id"])
    terminal = open_terminal(alice, session["id"])
    terminal.type("echo $COURSE; echo $HOME; echo en''d\n")
    shown = terminal.wait(lambda text: "\r\nend" in text or "\nend" in text)
    assert "of 2027" in shown and f"/home/{portico.get_name('alice')}" in shown
    alice.http.post(f"/sessions/{session['id']}/stop")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("none", "there is no image .*/none on .*\\. Whoever chose it can look at its path"),
        ("closed", "you may not read the image .*/closed\\. Its owner can allow it: chmod -R a\\+rX"),
        ("notes.sif", "notes.sif is no image"),
        ("old.sqfs", "nothing on .* runs an image that is a SquashFS file \\(ch-run or apptainer or singularity\\)"),
        ("away", "away leads to /usr, which is not where this site has images"),
        ("bare", "can't bind: destination not found: /etc/passwd\\. The image needs that file"),
    ],
)
def test_an_image_that_can_not_be_used_is_told_in_a_sentence(
    portico: RunningPortico, images: Path, name: str, words: str
) -> None:
    alice = portico.user("alice")
    session = alice.start("terminal", values={"image": str(images / name)}, memory_gb=0.5)
    ended = alice.wait(session["id"], "ended")
    assert ended["reason"] == "failed"
    assert re.search(words, ended["detail"]), ended
    page = alice.http.get(f"/sessions/{session['id']}").text
    assert "The program ended with an error: " in page and str(images / name) in page


def test_an_image_without_a_desktop_says_so_before_there_is_a_picture(portico: RunningPortico, images: Path) -> None:
    alice = portico.user("alice")
    session = alice.start("desktop-image", values={"image": str(images / "tiny")})
    ended = alice.wait(session["id"], "ended")
    assert "the image tiny has no desktop that is known here. It needs XFCE" in ended["detail"]
    assert ended["ready"] is None


@pytest.mark.parametrize("image", ["/etc", "/usr/../etc", "relative", "/a:/etc"])
def test_an_image_from_elsewhere_is_refused_at_once(portico: RunningPortico, image: str) -> None:
    answer = portico.user("alice").http.post(
        "/api/v1/sessions", json={"app_id": "terminal", "values": {"image": image}}
    )
    assert answer.status_code == 422 and answer.json()["error"]["field"] == "image", answer.text


def test_a_sites_own_app_runs_whole_inside(portico: RunningPortico) -> None:
    alice = portico.user("alice")
    session = alice.start("course")
    alice.wait(session["id"])
    assert session["values"] == {"image": str(IMAGE)}
    ticket = re.search(r'name="ticket" value="([^"]+)"', alice.http.post(f"/sessions/{session['id']}/connect").text)
    assert ticket
    apps = portico.url.replace(str(portico.port), str(portico.apps_port))
    with httpx.Client(base_url=apps, follow_redirects=True, timeout=30) as browser:
        page = browser.post("/_portico/enter", data={"ticket": ticket[1]}, headers={"Origin": portico.url}).text
    assert page.startswith("inside\n") and "PORTICO_SOCKET=/tmp/portico/app.sock" in page
    uid = pwd.getpwnam(portico.get_name("alice")).pw_uid
    socket = next((portico.run_dir / "users" / str(uid)).glob("*/app.sock"))
    assert socket.stat().st_mode & 0o077 == 0
    alice.http.post(f"/sessions/{session['id']}/stop")
    alice.wait(session["id"], "ended")


def test_a_home_that_is_elsewhere_is_at_its_place_inside(portico: RunningPortico, images: Path) -> None:
    name = portico.get_name("alice")
    portico.user("alice")
    entry = pwd.getpwnam(name)
    home, run = images / "gpfs/alice", images / "run/kabc"
    session = home / "sessions/kabc"
    for folder in (session, run, home / "work"):
        folder.mkdir(parents=True)
    settings = {"runtime": "auto", "binds": [], "allowed": [str(IMAGES)]}
    (session / "container.json").write_text(json.dumps(settings))
    (session / "job.sh").write_text("#!/bin/sh\necho $0 $1; pwd; echo $HOME $PORTICO_SESSION_DIR $PORTICO_SOCKET\n")
    (session / "job.sh").chmod(0o755)
    subprocess.run(["chown", "-R", f"{entry.pw_uid}:{entry.pw_gid}", home, run], check=True)
    env = {
        "PATH": "/usr/bin:/bin", "HOME": str(home), "USER": name, "PORTICO_SESSION_DIR": str(session),
        "PORTICO_SOCKET": str(run / "app.sock"), "PORTICO_FORM_IMAGE": str(IMAGE),
    }  # fmt: skip
    program = next(INSTALL_DIR.glob("venv/lib/python*/site-packages/portico/agent/container.py"))
    done = subprocess.run(
        ["/usr/bin/python3", "-I", program, "--", str(session / "job.sh"), str(run / "x")], user=entry.pw_uid,
        group=entry.pw_gid, extra_groups=[], env=env, cwd=home / "work", text=True, capture_output=True, check=False,
        timeout=30,
    )  # fmt: skip
    inside = f"/home/{name}/sessions/kabc"
    assert done.stdout.splitlines() == [
        f"{inside}/job.sh /tmp/portico/x", f"/home/{name}/work", f"/home/{name} {inside} /tmp/portico/app.sock",
    ], done  # fmt: skip


# the seat


@pytest.fixture(scope="module")
def guests(portico: RunningPortico) -> Iterator[list[Person]]:
    """Two participants of an event whose desktop runs in the organiser's image."""
    at = datetime.now(UTC)
    settings = {
        "apps": [{"app_id": "desktop-image", "memory_gb": 0.5, "hours": 1, "image": str(IMAGE)}],
        "fields": [{"name": "name", "label": "Name"}],
    }
    path = portico.run_dir / "school.json"
    path.write_text(json.dumps(settings))
    names = [f"{portico.prefix}i{number}" for number in (1, 2)]
    portico.cli(
        "event", "create", "images", "--title", "Images", "--begins", (at - timedelta(hours=1)).isoformat(),
        "--ends", (at + timedelta(hours=3)).isoformat(), "--settings", str(path),
    )  # fmt: skip
    lines = ["account,password", *(f"{name},a password of {name}" for name in names)]
    portico.cli("event", "import", "images", "-", stdin=None, input="\n".join(lines))
    portico.cli("event", "open", "images")
    shown = wait_until(
        lambda: all(seat["state"] == "free" for seat in json.loads(portico.cli("event", "seats", "images", "--json").stdout)),
        60, "the seats",
    )  # fmt: skip
    assert shown
    people = []
    for _ in names:
        person = Person(portico.url)
        page = person.http.get("/e/images/register").text
        token = re.search(r'name="token" value="([\w-]+)"', page)
        assert token, page
        answer = person.http.post("/e/images/register", data={"token": token[1], "field-name": "Ada"})
        assert answer.status_code == 303, answer.text
        people.append(person)
    yield people
    for person in people:
        person.close()


def find_seat(person: Person) -> str:
    found = re.search(r'<code class="typed">([\w-]+)<', person.http.get("/e/images/card").text)
    assert found
    return found[1]


def wait_for_picture(person: Person, session_id: str) -> RfbClient:
    screen, _ = person.open_desktop(f"/sessions/{session_id}/stream")
    screen.wait(lambda one: one.count_colours() > 20, timeout_s=60)
    return screen


def test_a_seats_desktop_runs_inside_the_organisers_image(portico: RunningPortico, guests: list[Person]) -> None:
    one, other = guests
    page = one.http.post("/e/images/apps/desktop-image").headers["location"]
    key = page.rpartition("/")[2]
    wait_until(lambda: "data-stream" in one.http.get(page).text, 60, "a ready desktop")
    assert f"Container image {IMAGE}" in one.http.get(page).text
    wait_for_picture(one, key)
    seat = pwd.getpwnam(find_seat(one))
    uid, home = seat.pw_uid, Path(seat.pw_dir)

    # The X server is the host's, the desktop is the image's, and its home is the seat's.
    server, manager = find_process(uid, "Xtigervnc"), find_process(uid, "icewm")
    assert not Path(f"/proc/{server}/root/etc/portico-test-image").exists()
    root = Path(f"/proc/{manager}/root")
    assert (root / "etc/portico-test-image").exists() and not (root / "etc/shadow").exists()
    assert os.stat(f"{root}/home/{seat.pw_name}").st_ino == home.stat().st_ino
    assert [path.name for path in (root / "home").iterdir()] == [seat.pw_name]
    displays = [path.name for path in (root / "tmp/.X11-unix").iterdir()]
    assert len(displays) == 1 and Path("/tmp/.X11-unix", displays[0]).stat().st_uid == uid
    assert key in Path(f"/proc/{manager}/cgroup").read_text()  # the cell's limits are the container's

    # What is typed into its terminal happens inside.
    find_process(uid, "xterm")
    screen = wait_for_picture(one, key)
    screen.point(200, 200, 1)
    screen.point(200, 200, 0)
    command = "cat /etc/debian_version /etc/portico-test-image; test -e /etc/shadow || echo $HOME"
    proof = home / "proof"

    def typed() -> bool:
        screen.type(f"({command}) > proof\n")
        with contextlib.suppress(TimeoutError):
            return bool(wait_until(lambda: proof.exists() and seat.pw_name in proof.read_text(), 3))
        return False

    wait_until(typed, 30, "what was typed")
    assert proof.read_text().splitlines()[-1] == f"/home/{seat.pw_name}"

    # Another one reaches neither the session, nor the folder, nor the container, nor the display.
    with pytest.raises(InvalidStatus):
        other.open_stream(f"/sessions/{key}/stream")
    assert other.http.get(page).status_code == 404
    stranger = pwd.getpwnam(find_seat(other))
    for path in (f"{portico.run_dir}/users/{uid}/{key}", f"/proc/{manager}/root/etc", str(home)):
        assert run_as(stranger, "ls", path).returncode != 0, path
    refused = run_as(stranger, "env", f"DISPLAY=:{displays[0][1:]}", "xdpyinfo")
    assert refused.returncode != 0 and "uthorization required" in refused.stderr

    # Portico is killed: the same processes go on, and the desktop is there again.
    one.close_streams()
    portico.kill()
    portico.start()
    wait_until(lambda: one.http.get("/api/v1/health").status_code == 200, 30, "an answer")
    wait_until(lambda: "data-stream" in one.http.get(page).text, 30, "the same desktop")
    wait_for_picture(one, key)
    assert find_process(uid, "icewm") == manager and find_process(uid, "Xtigervnc") == server

    # The end leaves neither process nor mount nor socket.
    one.close_streams()
    assert one.http.post(f"{page}/stop").status_code == 303
    wait_until(lambda: not list_processes(uid, "icewm") and not list_processes(uid, "Xtigervnc"), 30, "the end")
    wait_until(lambda: not (portico.run_dir / "users" / str(uid) / key).exists(), 10, "that the folder is gone")
    sockets = Path("/tmp/.X11-unix").iterdir()  # others of this machine may have the number by now
    assert not [path for path in sockets if path.exists() and path.stat().st_uid == uid]
    assert str(IMAGE) not in Path("/proc/self/mountinfo").read_text()


def run_as(who: pwd.struct_passwd, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, user=who.pw_uid, group=who.pw_gid, extra_groups=[], env={"PATH": "/usr/bin:/bin"}, cwd="/",
        text=True, capture_output=True, check=False, timeout=30,
    )  # fmt: skip


def test_an_event_with_an_image_from_elsewhere_is_refused(portico: RunningPortico) -> None:
    path = portico.run_dir / "bad.json"
    at = datetime.now(UTC)
    for app, image, words in (
        ("desktop-image", "/etc", "Desktop (image): Container image:"),
        ("desktop-light", str(IMAGE), "runs in no image"),
    ):
        path.write_text(json.dumps({"apps": [{"app_id": app, "image": image}]}))
        done = portico.cli(
            "event", "create", "bad", "--title", "Bad", "--begins", at.isoformat(),
            "--ends", (at + timedelta(hours=3)).isoformat(), "--settings", str(path), check=False,
        )  # fmt: skip
        assert done.returncode != 0 and words in done.stderr, done
