"""VNC passwords of real desktops, with TigerVNC's own viewer on a display of its own: what each may, and what nobody."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from rfb import RfbClient
from running import RunningPortico, find_free_ports, wait_until
from ssh_client import (
    BLUE,
    STRICT,
    Client,
    count_blue,
    is_listened_on,
    is_mostly_blue,
    list_processes,
    outer_display,
    read_commands,
    read_display,
    set_up,
    start_open,
    wait_for_nothing_left,
)

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

GREETING = b"RFB 003.008\n"
QUIET: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}


@pytest.fixture(scope="module")
def house(portico_factory: Callable[..., RunningPortico]) -> RunningPortico:
    """Return a Portico with an sshd of its own."""
    for program in ("/usr/sbin/sshd", "xtigervncviewer", "tigervncpasswd", "xdotool", "xclip"):
        if not shutil.which(program):
            pytest.skip(f"{program} is not installed: run ./portico test")
    return portico_factory({"ssh_port": find_free_ports()[0]})


@pytest.fixture(scope="module")
def desktop(house: RunningPortico) -> str:
    """Return the id of a desktop of alice's whose ground is blue, with a window that writes down what is typed."""
    person = house.user("alice")
    session_id = str(person.start("desktop-light")["id"])
    person.wait(session_id)
    return session_id


@pytest.fixture(scope="module")
def inside(house: RunningPortico, desktop: str) -> dict[str, str]:
    """Return the environment of that desktop."""
    uid = pwd.getpwnam(house.get_name("alice")).pw_uid
    return wait_until(lambda: read_display(uid, desktop), 20, "a display")


@pytest.fixture(scope="module")
def alice(house: RunningPortico, desktop: str, inside: dict[str, str]) -> Iterator[Client]:
    """Return alice, whose ssh knows the way."""
    client = Client(house, house.get_name("alice"))
    set_up(client)
    client.run("xsetroot", "-solid", f"#{BLUE:06x}", **client.options(**inside))
    argv = ["xterm", "-geometry", "40x8+0+0", "-e", "sh", "-c", "exec cat >typed"]
    with subprocess.Popen(argv, **QUIET, **client.options(**inside)) as window:
        yield client
        window.terminate()


@pytest.fixture
def scratch(alice: Client) -> Iterator[Path]:
    """Return a folder of alice's own with a short name, for sockets."""
    folder = Path(tempfile.mkdtemp(prefix="pt-", dir="/tmp"))
    os.chown(folder, alice.uid, -1)
    yield folder
    shutil.rmtree(folder)


def make(house: RunningPortico, desktop: str) -> dict[str, str]:
    answer = house.user("alice").http.post(f"/api/v1/sessions/{desktop}/vnc-passwords")
    assert answer.status_code == 201, answer.text
    assert answer.headers["cache-control"] == "no-store"
    return dict(answer.json())


@contextmanager
def tunnel(alice: Client, command: str, port: int) -> Iterator[None]:
    """Run a page's command for a tunnel to a port."""
    with subprocess.Popen(["sh", "-c", f"exec {command}"], **QUIET, **alice.options()) as process:
        try:
            wait_until(lambda: is_listened_on(port), 20, "the tunnel")
            yield
        finally:
            process.terminate()


@contextmanager
def viewer(alice: Client, display: str, port: int, password: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run TigerVNC's viewer, which takes the password from its environment."""
    argv = ["xtigervncviewer", "-ReconnectOnError=0", "-AlertOnFatalError=0", f"localhost::{port}"]
    with subprocess.Popen(argv, **QUIET, **alice.options(DISPLAY=display, VNC_PASSWORD=password)) as process:
        try:
            yield process
        finally:
            process.terminate()


def type_and_copy(alice: Client, display: str, word: str) -> None:
    """Type into the viewer's window, and copy on its display, as a person there does."""
    env = alice.options(DISPLAY=display)
    window = wait_until(
        lambda: alice.run("xdotool", "search", "--name", "TigerVNC", check=False, **env).stdout.split(), 20, "a window"
    )[-1]
    alice.run("tee", "clip", input=f"copied {word}", stdin=None)
    subprocess.run(["xclip", "-selection", "clipboard", "clip"], check=True, timeout=20, **QUIET, **env)
    alice.run("xdotool", "windowfocus", "--sync", window, "mousemove", "100", "90", "click", "1", **env)
    time.sleep(0.5)
    alice.run("xdotool", "type", "--delay", "30", f"{word}\n", **env)


def read_clipboard(alice: Client, inside: dict[str, str]) -> str:
    return alice.run("xclip", "-o", "-selection", "clipboard", check=False, **alice.options(**inside)).stdout


def read_typed(alice: Client) -> str:
    with contextlib.suppress(FileNotFoundError):
        return (alice.home / "typed").read_text()
    return ""


def test_the_full_password_types_and_the_other_only_looks(
    house: RunningPortico, alice: Client, desktop: str, inside: dict[str, str], scratch: Path
) -> None:
    commands = read_commands(house, desktop)
    port = int(commands["viewer"].rpartition(":")[2])
    made = make(house, desktop)
    with tunnel(alice, commands["password_tunnel"], port):
        with outer_display(alice, scratch) as (display, eyes), viewer(alice, display, port, made["view_only"]):
            eyes.wait(is_mostly_blue, 40)
            type_and_copy(alice, display, "looking")
            # Pixels go on: what is painted now is seen, and nothing of the above was done by then.
            alice.run("xsetroot", "-solid", "#208020", **alice.options(**inside))
            eyes.wait(lambda client: count_blue(client) < 1000, 20)
            alice.run("xsetroot", "-solid", f"#{BLUE:06x}", **alice.options(**inside))
            eyes.wait(is_mostly_blue, 20)
            time.sleep(1)
            assert "looking" not in read_typed(alice)
            assert "looking" not in read_clipboard(alice, inside)
        with outer_display(alice, scratch) as (display, eyes), viewer(alice, display, port, made["full"]):
            eyes.wait(is_mostly_blue, 40)
            type_and_copy(alice, display, "working")
            wait_until(lambda: "working" in read_typed(alice), 20, "what was typed")
            wait_until(lambda: read_clipboard(alice, inside) == "copied working", 20, "what was copied")


def read_exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        part = sock.recv(size - len(data))
        assert part, f"{data!r} and the end"
        data += part
    return data


@contextmanager
def at_the_door(alice: Client, desktop: str, folder: Path) -> Iterator[Path]:
    """Lead a socket to the desktop's one for passwords."""
    near = folder / "door"
    far = alice.run("ssh", *STRICT, f"{desktop}.portico", "echo $PORTICO_SOCKET.password").stdout.strip()
    argv = ["ssh", "-N", *STRICT, "-L", f"{near}:{far}", f"{desktop}.portico"]
    with subprocess.Popen(argv, **QUIET, **alice.options()) as process:
        try:
            wait_until(near.exists, 20, "the tunnel")
            yield near
        finally:
            process.terminate()


def knock(path: Path, response: bytes) -> bytes:
    """Answer the challenge; return what the desktop says."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        sock.connect(str(path))
        read_exactly(sock, 12)
        sock.sendall(GREETING)
        if read_exactly(sock, 1) == b"\0":
            return read_exactly(sock, int.from_bytes(read_exactly(sock, 4), "big"))
        assert read_exactly(sock, 1) == b"\x02", "VNC Authentication alone is offered"
        sock.sendall(b"\x02")
        read_exactly(sock, 16)
        sock.sendall(response)
        assert read_exactly(sock, 4) != b"\0\0\0\0"
        return read_exactly(sock, int.from_bytes(read_exactly(sock, 4), "big"))


def test_guesses_are_slowed_down_and_the_browser_is_not_locked_out(
    house: RunningPortico, alice: Client, desktop: str, scratch: Path
) -> None:
    make(house, desktop)
    with at_the_door(alice, desktop, scratch) as door:
        said = [knock(door, os.urandom(16)) for _ in range(25)]
        assert b"Too many wrong passwords. Try again in" in said[-1]
        assert sum(b"Too many" not in one for one in said) <= 8
        client, connection = house.user("alice").open_desktop(f"/sessions/{desktop}/stream")
        client.wait(is_mostly_blue, 20)
        connection.close()
        with socket.socket(socket.AF_UNIX) as sock:  # None is not taken either
            sock.connect(str(door))
            read_exactly(sock, 12)
            sock.sendall(GREETING)
            assert read_exactly(sock, 2) == b"\x01\x02"
            sock.sendall(b"\x01")
            assert read_exactly(sock, 4) == b"\0\0\0\1"
    log = (alice.home / f".local/share/portico/sessions/{desktop}/log").read_text()
    assert 1 <= log.count("a wrong VNC password") <= 8


def test_removed_passwords_end_what_they_let_in(
    house: RunningPortico, alice: Client, desktop: str, scratch: Path
) -> None:
    commands = read_commands(house, desktop)
    port = int(commands["viewer"].rpartition(":")[2])
    person = house.user("alice")
    time.sleep(11)  # a guess is free again after the test before
    made = make(house, desktop)
    assert person.http.get(f"/api/v1/sessions/{desktop}/vnc-passwords").json() == {"made": True}
    with (
        tunnel(alice, commands["password_tunnel"], port),
        outer_display(alice, scratch) as (display, eyes),
        viewer(alice, display, port, made["full"]) as process,
    ):
        eyes.wait(is_mostly_blue, 40)
        assert person.http.delete(f"/api/v1/sessions/{desktop}/vnc-passwords").status_code == 204
        process.wait(20)
    assert person.http.get(f"/api/v1/sessions/{desktop}/vnc-passwords").json() == {"made": False}
    with at_the_door(alice, desktop, scratch) as door:
        assert b"has no VNC password" in knock(door, b"")


def test_others_reach_neither_socket_nor_file_and_nothing_has_the_passwords(
    house: RunningPortico, alice: Client, desktop: str
) -> None:
    made = make(house, desktop)
    house.user("bob").start("terminal", memory_gb=0.5)  # makes the account
    bob = Client(house, house.get_name("bob"))
    wait_until(lambda: bob.name in {entry.pw_name for entry in pwd.getpwall()}, 20, "bob's account")
    told = alice.run("ssh", *STRICT, f"{desktop}.portico", "echo $PORTICO_SOCKET.password")
    door, file = Path(told.stdout.strip()), alice.home / f".local/share/portico/sessions/{desktop}/vnc-passwords"
    for path in (door, file):
        assert path.stat().st_uid == alice.uid
        assert path.stat().st_mode & 0o777 == 0o600
    assert file.stat().st_size == 16
    code = f"import socket; s = socket.socket(socket.AF_UNIX); s.connect('{door}')"
    assert "PermissionError" in bob.run("python3", "-c", code, check=False).stderr
    assert "Permission denied" in bob.run("cat", str(file), check=False).stderr
    for folder in (house.state_dir, Path(alice.home, ".local/share/portico")):
        for path in folder.rglob("*"):
            if path.is_file() and not path.is_symlink():
                data = path.read_bytes()
                assert not any(one.encode() in data for one in made.values()), path
    argv = subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True, check=True).stdout
    assert not any(one in argv for one in made.values())
    audit = house.admin().http.get("/api/v1/audit").json()
    assert [(one["actor"], one["target"], one["detail"]) for one in audit if one["action"] == "session:vnc-passwords"][
        :1
    ] == [(alice.name, desktop, "made")]


def test_one_command_makes_a_password_and_opens_the_viewer(
    house: RunningPortico, alice: Client, desktop: str, scratch: Path
) -> None:
    with outer_display(alice, scratch) as (display, eyes):
        port = find_free_ports()[0]
        opened = start_open(house, alice, desktop, "--password", "--port", str(port), DISPLAY=display)
        try:
            eyes.wait(is_mostly_blue, 40)
            (pid,) = list_processes(alice, f"xtigervncviewer localhost::{port}")
            os.kill(pid, signal.SIGTERM)
            told = opened.communicate(timeout=20)[0]
            password = told.partition("VNC password")[2].split()[0]
            assert len(password) == 8, told
        finally:
            opened.kill()
            opened.communicate()
    wait_for_nothing_left(alice)
    shown = house.cli("desktop", "password", desktop, "--json", user=alice.name).stdout
    assert '"view_only"' in shown and password not in shown
    assert "removed" in house.cli("desktop", "password", desktop, "--remove", user=alice.name).stderr


def test_the_door_outlives_portico_and_ends_with_the_session(
    house: RunningPortico, alice: Client, scratch: Path
) -> None:
    person = house.user("alice")
    session_id = str(person.start("desktop-light")["id"])
    person.wait(session_id)
    make(house, session_id)
    (door,) = [
        pid for pid in list_processes(alice, "vnc_door.py") if session_id in Path(f"/proc/{pid}/cmdline").read_text()
    ]
    with at_the_door(alice, session_id, scratch) as path:
        house.kill()
        assert b"uthentication" in knock(path, bytes(16))
        house.start()
        assert b"uthentication" in knock(path, bytes(16))
    file = alice.home / f".local/share/portico/sessions/{session_id}/vnc-passwords"
    assert file.exists()
    person = house.user("alice")
    person.http.post(f"/api/v1/sessions/{session_id}/stop").raise_for_status()
    person.wait(session_id, "ended")
    wait_until(lambda: not Path(f"/proc/{door}").exists(), 10, "the door's end")
    assert not file.exists()
    refused = person.http.post(f"/api/v1/sessions/{session_id}/vnc-passwords")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "conflict")


def test_a_desktop_from_before_says_so(house: RunningPortico, alice: Client, desktop: str) -> None:
    script = alice.home / f".local/share/portico/sessions/{desktop}/job.sh"
    text = script.read_text()
    script.write_text(text.replace("PORTICO_VNC_DOOR", "PORTICO_OTHER"))
    try:
        refused = house.user("alice").http.post(f"/api/v1/sessions/{desktop}/vnc-passwords")
        assert refused.status_code == 409
        assert "started before" in refused.text
        page = house.user("alice").http.post(f"/sessions/{desktop}/connect/passwords").text
        assert "This desktop takes no VNC passwords" in page
    finally:
        script.write_text(text)


def test_a_viewer_without_a_password_still_sees_the_desktop_by_the_first_socket(
    house: RunningPortico, alice: Client, desktop: str
) -> None:
    """Both security types are offered there; a shared viewer's filter and browsers go on with None."""
    house.user("bob")
    person = house.user("alice")
    answer = person.http.post(f"/api/v1/sessions/{desktop}/shares", json={"viewer_name": house.get_name("bob")})
    assert answer.status_code == 201, answer.text
    client, connection = house.user("bob").open_desktop(f"/shared/{desktop}/stream")
    assert isinstance(client, RfbClient)
    client.wait(is_mostly_blue, 20)
    connection.close()
