"""The catalog's job scripts, for real: as an unprivileged user, in the environment that docs/protocol.md states."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import websockets.sync.client
from rfb import RfbClient, connect_unix
from running import INSTALL_DIR, end_processes_of, find_reason_to_skip, remove_leftovers_of, wait_until

import portico
from portico.cli.install import make_shared_socket_folders

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(find_reason_to_skip()), reason=find_reason_to_skip() or "-"),
]

CATALOG = Path(portico.__file__).parent / "catalog"
DESKTOPS = ["desktop-light", "desktop-xfce"]


@dataclass
class Account:
    name: str
    uid: int
    home: Path
    runtime: Path

    def run(self, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            argv, user=self.uid, group=pwd.getpwuid(self.uid).pw_gid, extra_groups=[],
            env={"PATH": "/usr/bin:/bin"} | env, cwd="/", text=True, capture_output=True, check=False, timeout=30,
        )  # fmt: skip


@dataclass
class Job:
    process: subprocess.Popen[bytes]
    socket: Path
    base_path: str
    log: Path

    def connect(self, timeout_s: float = 30) -> socket.socket:
        try:
            return connect_unix(str(self.socket), timeout_s)
        except TimeoutError as error:
            raise TimeoutError(f"{error}\n{self.log.read_text(errors='replace')}") from None


@pytest.fixture(scope="module")
def make_account() -> Iterator[Callable[[str], Account]]:
    suffix = secrets.token_hex(2)
    run_dir = Path(f"/run/pt-{suffix}")
    made: list[Account] = []
    make_shared_socket_folders()

    def make(name: str) -> Account:
        full = f"pt-{suffix}-{name}"
        ids = ["-K", "UID_MIN=20000", "-K", "UID_MAX=59999", "-K", "GID_MIN=20000", "-K", "GID_MAX=59999"]
        subprocess.run(["useradd", "-m", "-U", "-s", "/bin/bash", *ids, full], check=True)
        entry = pwd.getpwnam(full)
        remove_leftovers_of(entry.pw_uid)  # of an earlier account with this uid
        runtime = run_dir / "users" / str(entry.pw_uid)
        runtime.mkdir(parents=True, mode=0o755)
        os.chown(runtime, entry.pw_uid, entry.pw_gid)
        runtime.chmod(0o700)
        made.append(Account(full, entry.pw_uid, Path(entry.pw_dir), runtime))
        return made[-1]

    yield make
    for account in made:
        end_processes_of(account.uid)
        subprocess.run(["userdel", "-r", account.name], check=False, capture_output=True)
    shutil.rmtree(run_dir, ignore_errors=True)


@pytest.fixture(scope="module")
def alice(make_account: Callable[[str], Account]) -> Account:
    return make_account("alice")


@pytest.fixture(scope="module")
def bob(make_account: Callable[[str], Account]) -> Account:
    return make_account("bob")


@pytest.fixture
def start(alice: Account, tmp_path: Path) -> Iterator[Callable[..., Job]]:
    jobs: list[Job] = []

    def run(app: str, **form: str) -> Job:
        session = "k" + secrets.token_hex(6)[:11]
        folder, runtime = alice.home / ".local/share/portico/sessions" / session, alice.runtime / session
        gid = pwd.getpwuid(alice.uid).pw_gid
        for path in (*reversed(folder.relative_to(alice.home).parents), folder.relative_to(alice.home)):
            with contextlib.suppress(FileExistsError):
                (alice.home / path).mkdir(mode=0o700)
                os.chown(alice.home / path, alice.uid, gid)
        runtime.mkdir(mode=0o700)
        os.chown(runtime, alice.uid, gid)
        programs = next(INSTALL_DIR.glob("venv/lib/python*/site-packages/portico/agent"))
        env = {
            "PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": str(alice.home), "USER": alice.name, "LOGNAME": alice.name,
            "SHELL": "/bin/bash", "LANG": "C.UTF-8", "XDG_RUNTIME_DIR": str(alice.runtime), "PORTICO_SESSION": session,
            "PORTICO_SESSION_DIR": str(folder), "PORTICO_SOCKET": str(runtime / "app.sock"),
            "PORTICO_BASE_PATH": f"/s/{session}/", "PORTICO_CORES": "1", "PORTICO_MEMORY_BYTES": "2000000000",
            "PORTICO_TERMINAL": str(programs / "terminal.py"), "PORTICO_VNC_DOOR": str(programs / "vnc_door.py"),
            "PORTICO_VNC_PASSWORDS": str(folder / "vnc-passwords"),
            "PORTICO_PYTHON": str(INSTALL_DIR / "venv/bin/python"), "PORTICO_APPS": str(INSTALL_DIR),
            **{f"PORTICO_FORM_{name.upper()}": value for name, value in form.items()},
        }  # fmt: skip
        log = tmp_path / f"{session}.log"
        script = folder / "job.sh"
        script.write_text((CATALOG / app / "job.sh").read_text())
        script.chmod(0o755)
        with log.open("wb") as output:
            process = subprocess.Popen(
                [str(script)], user=alice.uid, group=gid, extra_groups=[], env=env, cwd=alice.home, umask=0o077,
                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        jobs.append(Job(process, runtime / "app.sock", f"/s/{session}/", log))
        return jobs[-1]

    yield run
    for job in jobs:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.process.pid, signal.SIGTERM)
    end_processes_of(alice.uid)
    remove_leftovers_of(alice.uid)
    for job in jobs:
        job.process.wait(10)


def find_tcp_listeners(uid: int) -> list[str]:
    """Return the lines of /proc/net/tcp* of sockets that a uid listens on."""
    found = []
    for table in ("tcp", "tcp6", "udp", "udp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            columns = line.split()
            if int(columns[7]) == uid and columns[3] in ("0A", "07"):
                found.append(line)
    return found


def find_display(uid: int) -> str:
    """Return the number of a uid's only X display."""
    numbers = [path.name[1:] for path in Path("/tmp/.X11-unix").iterdir() if path.stat().st_uid == uid]
    assert len(numbers) == 1
    return numbers[0]


@pytest.mark.parametrize("app", DESKTOPS)
def test_a_desktop_draws_and_only_its_user_reaches_it(
    app: str, start: Callable[..., Job], alice: Account, bob: Account
) -> None:
    job = start(app, geometry="1024x768")
    stream = job.connect()
    with stream:
        assert stat.S_IMODE(job.socket.stat().st_mode) == 0o600
        screen = RfbClient(stream)
        assert (screen.width, screen.height) == (1024, 768)
        screen.wait(lambda screen: screen.count_colours() > 20, timeout_s=30)
    assert not find_tcp_listeners(alice.uid)

    display = f":{find_display(alice.uid)}"
    cookie = job.socket.parent / "xauthority"
    assert stat.S_IMODE(cookie.stat().st_mode) == 0o600
    assert alice.run("xdpyinfo", DISPLAY=display, XAUTHORITY=str(cookie)).returncode == 0
    refused = bob.run("xdpyinfo", DISPLAY=display)
    assert refused.returncode != 0
    assert "uthorization required" in refused.stderr
    stolen = bob.run("cat", str(cookie))
    assert stolen.returncode != 0
    with socket.socket(socket.AF_UNIX) as abstract:  # the way around the file system's modes
        abstract.connect(f"\0/tmp/.X11-unix/X{display[1:]}")
        abstract.sendall(b"l\0\x0b\0\0\0\0\0\0\0\0\0")  # X11 connection setup without authorisation
        assert abstract.recv(1) == b"\0", "the display let somebody in without the cookie"


@pytest.mark.parametrize("app", DESKTOPS)
def test_a_desktop_keeps_its_cookie_out_of_arguments_and_environments(
    app: str, start: Callable[..., Job], alice: Account
) -> None:
    job = start(app)
    job.connect().close()
    wait_until(lambda: (job.socket.parent / "xauthority").stat().st_size > 30, 10)
    shown = alice.run("xauth", "-f", str(job.socket.parent / "xauthority"), "list").stdout.split()[-1]
    assert len(shown) == 32
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdigit() and process.stat().st_uid == alice.uid:
                for file in ("cmdline", "environ"):
                    assert shown.encode() not in (process / file).read_bytes()


def test_logging_out_of_the_light_desktop_ends_the_job(start: Callable[..., Job], alice: Account) -> None:
    job = start("desktop-light")
    with job.connect() as stream:
        RfbClient(stream).wait(lambda screen: screen.count_colours() > 20, timeout_s=30)
    wait_until(lambda: _find_process(alice.uid, "icewm-session"), 10)
    os.kill(_find_process(alice.uid, "icewm-session"), signal.SIGTERM)
    job.process.wait(15)
    wait_until(lambda: not _find_process(alice.uid, "Xtigervnc"), 10, "the end of the X server")


def test_logging_out_of_xfce_ends_the_job(start: Callable[..., Job], alice: Account) -> None:
    job = start("desktop-xfce")
    with job.connect() as stream:
        RfbClient(stream).wait(lambda screen: screen.count_colours() > 200, timeout_s=30)
    pid = wait_until(lambda: _find_process(alice.uid, "xfce4-session"), 10)
    environ = dict(
        entry.split("=", 1) for entry in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in entry
    )
    names = ("DISPLAY", "XAUTHORITY", "DBUS_SESSION_BUS_ADDRESS", "HOME", "XDG_RUNTIME_DIR")

    def log_out() -> bool:  # its D-Bus name comes after its first windows
        done = alice.run("xfce4-session-logout", "--logout", "--fast", **{name: environ[name] for name in names})
        return done.returncode == 0

    wait_until(log_out, 20, "XFCE's logout")
    assert job.process.wait(60) == 0
    wait_until(lambda: not _find_process(alice.uid, "Xtigervnc"), 10, "the end of the X server")


def test_ten_probes_do_not_lock_a_desktop(start: Callable[..., Job]) -> None:
    job = start("desktop-light")
    for _ in range(12):
        with job.connect() as stream:
            assert stream.recv(12) == b"RFB 003.008\n"
    with job.connect() as stream:
        RfbClient(stream).wait(lambda screen: screen.count_colours() > 3, timeout_s=30)


def test_a_desktop_takes_a_second_viewer(start: Callable[..., Job]) -> None:
    job = start("desktop-light")
    with job.connect() as one, job.connect() as two:
        first, second = RfbClient(one), RfbClient(two)
        first.wait(lambda screen: screen.count_colours() > 3, timeout_s=30)
        second.wait(lambda screen: screen.count_colours() > 3, timeout_s=30)


def test_jupyter_runs_code_without_tcp(start: Callable[..., Job], alice: Account) -> None:
    job = start("jupyter")
    job.connect(60).close()
    assert stat.S_IMODE(job.socket.stat().st_mode) == 0o600
    status, data = _ask(job, "GET", "api")
    assert status == 200
    assert "version" in data
    status, kernel = _ask(job, "POST", "api/kernels", {"name": "python3"})
    assert status == 201, kernel
    code = (
        "import os, sys, multiprocessing\n"
        "print(6 * 7, os.getuid(), 'debugpy' in sys.modules, flush=True)\n"
        "child = multiprocessing.get_context('fork').Process(target=print, args=('forked',))\n"
        "child.start(); child.join()\n"
    )
    text = _run_cell(job, str(kernel["id"]), code, until="forked")
    assert text.split() == ["42", str(alice.uid), "False", "forked"]
    assert not find_tcp_listeners(alice.uid)


def _run_cell(job: Job, kernel_id: str, code: str, until: str) -> str:
    """Run code in a kernel as JupyterLab does; return its output as soon as that has ``until``."""
    address = f"ws://localhost{job.base_path}api/kernels/{kernel_id}/channels"
    header = {
        "msg_id": "1",
        "msg_type": "execute_request",
        "username": "",
        "session": "1",
        "version": "5.3",
        "date": "",
    }
    content = {"code": code, "silent": False}
    message = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
    with websockets.sync.client.connect(address, sock=job.connect(), open_timeout=20) as connection:
        connection.send(json.dumps(message))
        text = ""
        while until not in text:
            answer = json.loads(connection.recv(timeout=60))
            if answer["msg_type"] == "stream":
                text += answer["content"]["text"]
        return text


def test_jupyter_asks_nothing_at_its_first_start(start: Callable[..., Job]) -> None:
    job = start("jupyter")
    job.connect(60).close()
    page = _request(job, "GET", "lab", None, {})[2]
    config = json.loads(
        page.partition('<script id="jupyter-config-data" type="application/json">')[2].partition("<")[0]
    )
    disabled = [entry if isinstance(entry, str) else entry["raw"] for entry in config["disabledExtensions"]]
    assert "@jupyterlab/apputils-extension:announcements" in disabled


def test_jupyter_ends_with_TERM_and_leaves_no_runtime_folder(start: Callable[..., Job]) -> None:
    job = start("jupyter")
    job.connect(60).close()
    os.killpg(job.process.pid, signal.SIGTERM)
    job.process.wait(60)
    wait_until(lambda: not (job.socket.parent / "jupyter").exists(), 10, "the removal of Jupyter's runtime folder")


@pytest.mark.parametrize("folder", ["../..", "no such folder", "/etc"])
def test_jupyter_with_an_odd_folder_begins_in_the_home(folder: str, start: Callable[..., Job], alice: Account) -> None:
    job = start("jupyter", folder=folder)
    job.connect(60).close()
    assert "begins in your home" in job.log.read_text()
    status, listing = _ask(job, "GET", "api/contents/?content=1")
    assert status == 200, listing


TYPE_A_COMMAND = """
import socket, sys
stream = socket.socket(socket.AF_UNIX)
stream.settimeout(20)
stream.connect(sys.argv[1])
typed = b"shopt login_shell; echo is-$((6*7))\\n"
stream.sendall(b"a" + (8).to_bytes(4, "big") + bytes(8))
stream.sendall(b"i" + len(typed).to_bytes(4, "big") + typed)
data = b""
while b"is-42" not in data:
    data += stream.recv(65536) or sys.exit("closed")
sys.stdout.write(data.decode(errors="replace"))
"""


def test_a_terminal_is_a_login_shell_of_its_user_alone(start: Callable[..., Job], alice: Account, bob: Account) -> None:
    job = start("terminal")
    job.connect().close()
    assert stat.S_IMODE(job.socket.stat().st_mode) == 0o600
    done = alice.run("/usr/bin/python3", "-I", "-c", TYPE_A_COMMAND, str(job.socket))
    assert "login_shell    \ton" in done.stdout, done
    assert "Permission denied" in bob.run("/usr/bin/python3", "-I", "-c", TYPE_A_COMMAND, str(job.socket)).stderr


def _request(job: Job, method: str, path: str, body: str | None, headers: dict[str, str]) -> tuple[int, list[str], str]:
    connection = http.client.HTTPConnection("localhost", timeout=30)
    connection.sock = job.connect()
    with contextlib.closing(connection):
        connection.request(method, f"{job.base_path}{path}", body, headers)
        answer = connection.getresponse()
        return answer.status, answer.headers.get_all("Set-Cookie", []), answer.read().decode()


def _ask(job: Job, method: str, path: str, body: object = None) -> tuple[int, dict[str, object]]:
    """Ask Jupyter as its own pages do: with the token against cross-site requests that a page has set."""
    headers = {}
    if body is not None:
        cookies = [cookie.partition(";")[0] for cookie in _request(job, "GET", "lab", None, {})[1]]
        token = next(cookie.partition("=")[2] for cookie in cookies if cookie.startswith("_xsrf="))
        headers = {"Content-Type": "application/json", "Cookie": "; ".join(cookies), "X-XSRFToken": token}
    status, _, text = _request(job, method, path, None if body is None else json.dumps(body), headers)
    return status, json.loads(text)


def _find_process(uid: int, name: str) -> int:
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdigit() and process.stat().st_uid == uid:
                words = (process / "cmdline").read_bytes().split(b"\0")
                if os.path.basename(words[0].decode()) == name:
                    return int(process.name)
    return 0
