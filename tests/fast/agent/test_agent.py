"""portico.agent: a session's folder, its processes, its shepherd and its terminal, as the user who runs the tests."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portico import wire
from portico.agent import processes, server, shepherd
from portico.agent.folder import Folder, find_sessions
from portico.agent.terminal import FrameReader, ProtocolError, Ring, render_frame
from portico.errors import Conflict, Invalid, NotFound, Unavailable

ID = "abcdefghijkl"
SOURCE = str(Path(server.__file__).resolve().parents[2])


def wait_until(condition: Callable[[], Any], timeout_s: float = 15) -> Any:
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)
    return value


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    home = tmp_path / "home"
    runtime = tmp_path / "run"
    home.mkdir()
    runtime.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    yield home
    for session_id in find_sessions():
        job = Folder(session_id).read_json("job.json")
        process = processes.find_recorded(job)
        processes.end_all(session_id, process.pid if process else None, 5)
        if process:
            wait_until(lambda job=job: not processes.find_recorded(job))


# folders


@pytest.mark.parametrize(
    "session_id", ["", "../etc/passwd", "ABCDEFGHIJKL", "abc", ID + "m", ID + "\n", "1bcdefghijkl"]
)
def test_only_session_ids_name_folders(home: Path, session_id: str) -> None:
    with pytest.raises(Invalid):
        Folder(session_id)


def test_files_are_whole_and_private(home: Path) -> None:
    folder = Folder(ID)
    folder.make()
    folder.write_json("session.json", {"a": "ä"})
    assert folder.read_json("session.json") == {"a": "ä"}
    assert {oct(os.stat(path).st_mode & 0o777) for path in (folder.path, folder.run)} == {"0o700"}
    assert os.stat(f"{folder.path}/session.json").st_mode & 0o777 == 0o600
    assert find_sessions() == [ID]
    folder.remove()
    assert find_sessions() == []


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a":' + b"1" * 300_000])
def test_a_broken_file_is_no_file(home: Path, content: bytes) -> None:
    folder = Folder(ID)
    folder.make()
    Path(folder.path, "job.json").write_bytes(content)
    assert folder.read_json("job.json") is None


def test_links_and_pipes_are_not_followed(home: Path, tmp_path: Path) -> None:
    folder = Folder(ID)
    folder.make()
    secret = tmp_path / "secret"
    secret.write_text('{"secret": 1}')
    os.symlink(secret, f"{folder.path}/job.json")
    os.mkfifo(f"{folder.path}/log")
    assert folder.read_json("job.json") is None
    assert folder.read_tail("log", 10) == ""
    folder.write("job.json", "{}")  # takes the link's place, and leaves what it led to
    assert secret.read_text() == '{"secret": 1}'
    folder.remove()
    os.symlink(tmp_path, folder.path)
    with pytest.raises(Conflict):
        folder.make()
    with pytest.raises(NotFound):
        folder.write("x", "y")
    assert not (tmp_path / "x").exists()


def test_the_tail_of_a_log_is_bounded_text(home: Path) -> None:
    folder = Folder(ID)
    folder.make()
    Path(folder.log).write_bytes(b"\xff" * 200_000 + b"\nlast\n")
    text = folder.read_tail("log", 2)
    assert text.endswith("\nlast")
    assert len(text.encode()) <= 64 * 1024 * 3  # each invalid byte is shown as one character of three bytes
    assert folder.read_tail("log", 1) == "last"


# processes


def test_a_pid_is_a_process_only_with_its_start_and_boot() -> None:
    me = processes.find_process(os.getpid())
    assert me is not None
    good = {"pid": me.pid, "start_ticks": me.start_ticks, "boot_id": processes.read_boot_id()}
    assert processes.find_recorded(good) == me
    for change in (
        {"start_ticks": 1},
        {"boot_id": "x"},
        {"pid": 1},
        {"pid": -1},
        {"pid": 10**30},
        {"pid": "1"},
        {"pid": True},
    ):
        assert processes.find_recorded(good | change) is None
    assert processes.find_recorded(None) is None


def test_a_reused_pid_is_not_signalled() -> None:
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        real = processes.find_process(sleeper.pid)
        assert real is not None
        assert processes.send_signal([real._replace(start_ticks=real.start_ticks - 1)], signal.SIGKILL) == 0
        assert sleeper.poll() is None
        assert processes.send_signal([real], signal.SIGKILL) == 1
        assert sleeper.wait(5) == -signal.SIGKILL
    finally:
        sleeper.kill()
        sleeper.wait()


# the shepherd


def start(script: str, *, seconds: float = 60, memory_bytes: int = 1 << 33) -> dict[str, Any]:
    folder = Folder(ID)
    folder.make()
    folder.write("job.sh", "#!/bin/sh\n" + script, 0o700)
    env = {**os.environ, "PORTICO_SESSION": ID, "PORTICO_SOCKET": folder.socket}
    return shepherd.start(
        folder, [f"{folder.path}/job.sh"], env, deadline=time.time() + seconds, memory_bytes=memory_bytes, cores=1,
        enforce=True,
    )  # fmt: skip


def wait_ended() -> dict[str, Any]:
    ended: dict[str, Any] = wait_until(lambda: Folder(ID).read_json("ended.json"), 30)
    return ended


def test_a_job_runs_and_its_end_is_recorded(home: Path) -> None:
    start("echo out; echo err >&2; exit 3")
    ended = wait_ended()
    assert (ended["exit_status"], ended["signal"], ended["why"]) == (3, None, "exited")
    assert sorted(Folder(ID).read_tail("log", 5).split()) == ["err", "out"]
    wait_until(lambda: not os.path.exists(Folder(ID).run))


def test_the_time_limit_needs_nobody_else(home: Path) -> None:
    start("trap 'echo asked; exit 0' TERM; while :; do sleep 0.1; done", seconds=1)
    assert wait_ended()["why"] == "time-limit"
    assert "asked" in Folder(ID).read_tail("log", 5)


def test_the_deadline_can_be_moved_but_not_by_rubbish(home: Path) -> None:
    start("sleep 60", seconds=2)
    folder = Folder(ID)
    job = folder.read_json("job.json")
    assert job
    folder.write_json("job.json", job | {"deadline": "soon"})
    time.sleep(0.2)
    folder.write_json("job.json", job | {"deadline": time.time() + 60})
    time.sleep(3)
    assert processes.find_recorded(folder.read_json("job.json"))


def test_too_much_memory_ends_it_where_there_are_no_cells(home: Path) -> None:
    start(
        f"exec {sys.executable} -c 'x = bytearray(300_000_000); import time; time.sleep(60)'", memory_bytes=100_000_000
    )
    assert wait_ended()["why"] == "out-of-memory"


def test_what_a_job_leaves_behind_ends_with_it(home: Path) -> None:
    start("setsid sh -c 'trap \"\" TERM; exec sleep 4242' & sleep 0.3; exit 0")
    wait_ended()
    wait_until(lambda: not processes.find_of_session(ID, None))


def test_a_program_that_is_not_there(home: Path) -> None:
    folder = Folder(ID)
    folder.make()
    with pytest.raises(Unavailable, match="could not be started"):
        shepherd.start(folder, ["/no/such"], {}, deadline=time.time() + 9, memory_bytes=1 << 30, cores=1, enforce=False)


# the agent itself


@pytest.fixture
def agent(home: Path) -> Iterator[socket.socket]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        try:
            ours.close()
            server.serve(theirs)
        finally:
            os._exit(0)
    theirs.close()
    ours.settimeout(10)
    yield ours
    ours.close()
    os.waitpid(pid, 0)  # it leaves when its channel closes


def test_an_agent_from_prepare_to_forget(agent: socket.socket) -> None:
    script = "#!/bin/sh\nexec " + sys.executable + " -c \"import socket,os,time\ns=socket.socket(1);" \
        "s.bind(os.environ['PORTICO_SOCKET']);s.listen();c,_=s.accept();c.send(b'hello');time.sleep(60)\"\n"  # fmt: skip
    assert wire.call(agent, "ping").body["uid"] == os.getuid()
    wire.call(agent, "prepare", {"session": ID, "record": {"id": ID}, "files": {"job.sh": script}})
    look = wire.call(agent, "look", {"session": ID}).body
    assert (look["running"], look["record"]) == (False, {"id": ID})
    request = {
        "session": ID, "argv": [f"{look['folder']}/job.sh"], "deadline": time.time() + 60, "memory_bytes": 1 << 33,
        "cores": 1, "enforce": True,
        "env": {"PORTICO_SESSION": ID, "PORTICO_SOCKET": f"{look['run']}/app.sock"},
    }  # fmt: skip
    wire.call(agent, "start", request)
    with pytest.raises(Conflict):
        wire.call(agent, "start", request)
    probe = {"session": ID, "reach": "pty", "path": ""}
    wait_until(lambda: wire.call(agent, "look", {"session": ID}).body["socket"])
    packet = wire.call(agent, "connect", {"session": ID})
    with socket.socket(fileno=packet.fds[0]) as app:
        app.settimeout(5)
        assert app.recv(5) == b"hello"
    assert wire.call(agent, "probe", probe).body["ready"] is True
    with pytest.raises(Conflict):
        wire.call(agent, "forget", {"session": ID})
    assert wire.call(agent, "sessions").body["sessions"][0]["session"] == ID
    assert wire.call(agent, "signal", {"session": ID, "signal": "TERM"}).body["processes"] >= 1
    wait_ended()
    wait_until(lambda: not wire.call(agent, "look", {"session": ID}).body["running"])
    wire.call(agent, "forget", {"session": ID})
    assert wire.call(agent, "sessions").body["sessions"] == []


def start_work(agent: socket.socket, script: str, folder: Path, output: str, error: str = "") -> None:
    """Start a batch job."""
    wire.call(agent, "prepare", {"session": ID, "record": {}, "files": {"job.sh": script}})
    look = wire.call(agent, "look", {"session": ID}).body
    wire.call(agent, "start", {
        "session": ID, "argv": [f"{look['folder']}/job.sh"], "env": {"PORTICO_SESSION": ID}, "memory_bytes": 1 << 33,
        "deadline": time.time() + 60, "cores": 1, "enforce": True,
        "work": {"folder": str(folder), "output": output, "error": error},
    })  # fmt: skip


def test_a_batch_job_works_where_it_is_told_to(agent: socket.socket, tmp_path: Path) -> None:
    output, error = tmp_path / "out put", tmp_path / "err"
    output.write_text("of before")
    start_work(agent, "#!/bin/sh\npwd; echo bad >&2; ls /proc/self/fd | wc -l\n", tmp_path, str(output), str(error))
    wait_ended()
    assert output.read_text() == f"{tmp_path}\n4\n" and error.read_text() == "bad\n"  # 0, 1, 2 and ls's own
    wait_until(lambda: not wire.call(agent, "look", {"session": ID}).body["running"])
    start_work(agent, "#!/bin/sh\necho one; echo two >&2\n", tmp_path, str(output))
    wait_until(lambda: output.read_text() == "one\ntwo\n")


def test_an_output_that_cannot_be_is_told_and_nothing_waits(agent: socket.socket, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    for folder, name, says in (
        (tmp_path, "pipe", "Nobody reads"), (tmp_path, "folder", "directory"), (tmp_path, "no/file", "No such file"),
        (tmp_path / "nowhere", "out", "no folder"),
    ):  # fmt: skip
        with pytest.raises(Conflict) as refused:
            start_work(agent, "#!/bin/sh\n", folder, str(tmp_path / name))
        assert says in refused.value.why
    with pytest.raises(Unavailable) as failed:
        start_work(agent, "#!/no/such/program\n", tmp_path, str(tmp_path / "out"))
    assert "program that is not here" in failed.value.why


@pytest.mark.parametrize(
    "work",
    [5, {}, {"folder": "/", "output": "relative", "error": ""}, {"folder": "/", "output": "/a\0", "error": ""},
     {"folder": "/", "output": 5, "error": ""}, {"folder": "", "output": "/a", "error": ""}],
)  # fmt: skip
def test_an_agent_refuses_work_that_is_none(agent: socket.socket, work: Any) -> None:
    with pytest.raises(Invalid):
        wire.call(agent, "start", {
            "session": ID, "argv": ["/bin/true"], "env": {}, "memory_bytes": 1, "deadline": 1, "cores": 1,
            "enforce": True, "work": work,
        })  # fmt: skip


@pytest.mark.parametrize(
    ("op", "args"),
    [
        ("no-such", {}),
        ("look", {}),
        ("look", {"session": "../x"}),
        ("log", {"session": ID, "lines": "5"}),
        ("prepare", {"session": ID, "record": {}, "files": {"../x": ""}}),
        ("prepare", {"session": ID, "record": {}, "files": {"a/b": ""}}),
        ("prepare", {"session": ID, "record": {}, "files": {"x": 5}}),
        ("signal", {"session": ID, "signal": "HUP"}),
        (
            "start",
            {"session": ID, "argv": [], "env": {}, "deadline": 1, "memory_bytes": 1, "cores": 1, "enforce": True},
        ),
        (
            "start",
            {"session": ID, "argv": ["a\0b"], "env": {}, "deadline": 1, "memory_bytes": 1, "cores": 1, "enforce": True},
        ),
    ],
)
def test_an_agent_refuses_what_it_does_not_know(agent: socket.socket, op: str, args: dict[str, Any]) -> None:
    with pytest.raises(Invalid):
        wire.call(agent, op, args)
    assert wire.call(agent, "ping").body["pid"]


# the terminal


@given(st.lists(st.tuples(st.sampled_from([b"a", b"i", b"r"]), st.binary(max_size=300)), max_size=20), st.data())
def test_frames_survive_any_cut(frames: list[tuple[bytes, bytes]], data: st.DataObject) -> None:
    stream = b"".join(render_frame(kind, payload) for kind, payload in frames)
    reader, found = FrameReader(), []
    while stream:
        size = data.draw(st.integers(1, len(stream)))
        found += reader.feed(stream[:size])
        stream = stream[size:]
    assert found == frames


def test_an_oversized_frame_is_refused_by_its_head() -> None:
    with pytest.raises(ProtocolError):
        FrameReader().feed(b"i" + struct.pack(">I", 1 << 30))


@given(st.lists(st.binary(max_size=80), max_size=40), st.integers(0, 4000))
def test_a_ring_gives_exactly_what_was_not_seen(parts: list[bytes], offset: int) -> None:
    ring, everything = Ring(limit=500), b"".join(parts)
    for part in parts:
        ring.add(part)
    start_, data = ring.read(offset)
    assert data == everything[start_ : ring.end]
    assert ring.end == len(everything)
    if ring.begin <= offset <= ring.end:
        assert start_ == offset


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[str]:
    path = str(tmp_path / "t.sock")
    process = subprocess.Popen(
        [sys.executable, "-m", "portico.agent.terminal", "--socket", path, "--", "/bin/sh"],
        env={"PYTHONPATH": SOURCE, "PATH": "/usr/bin:/bin", "PS1": "$ ", "HOME": "/"}, start_new_session=True,
    )  # fmt: skip
    wait_until(lambda: listens(path))
    yield path
    process.kill()
    process.wait()


def listens(path: str) -> bool:
    """Return whether somebody takes connections there: the path alone is there a little earlier."""
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(path) == 0


class Attached:
    """A client of a terminal."""

    def __init__(self, path: str, offset: int = 0) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(15)
        self.sock.connect(path)
        self.reader = FrameReader()
        self.output, self.offset, self.exit_status = b"", offset, None
        self.send(b"a", struct.pack(">Q", offset))

    def send(self, kind: bytes, payload: bytes) -> None:
        self.sock.sendall(render_frame(kind, payload))

    def wait(self, text: bytes) -> None:
        while text not in self.output and self.exit_status is None:
            data = self.sock.recv(65536)
            assert data, "closed"
            for kind, payload in self.reader.feed(data):
                if kind == b"s":
                    self.offset = struct.unpack(">QQ", payload)[0]
                elif kind == b"o":
                    self.output += payload
                    self.offset += len(payload)
                elif kind == b"e":
                    self.exit_status = struct.unpack(">I", payload)[0]


@pytest.fixture
def attach(terminal: str) -> Iterator[Callable[..., Attached]]:
    clients: list[Attached] = []

    def attach(offset: int = 0) -> Attached:
        clients.append(Attached(terminal, offset))
        return clients[-1]

    yield attach
    for client in clients:
        client.sock.close()


def test_two_clients_see_the_same_and_one_comes_back_where_it_was(
    terminal: str, attach: Callable[..., Attached]
) -> None:
    assert os.stat(terminal).st_mode & 0o777 == 0o600
    first, second = attach(), attach()
    first.send(b"r", struct.pack(">HH", 101, 33))
    first.send(b"i", b"stty size; echo one-$((1+1))\n")
    for client in (first, second):
        client.wait(b"one-2")
    assert b"33 101" in first.output
    offset = first.offset
    first.sock.close()
    second.send(b"i", b"echo two-$((2+2))\n")
    second.wait(b"two-4")
    again = attach(offset)
    again.wait(b"two-4")
    assert b"one-2" not in again.output
    again.send(b"i", b"exit 7\n")
    again.wait(b"never")
    assert again.exit_status == 7


def test_a_client_that_never_reads_stops_nobody(attach: Callable[..., Attached], tmp_path: Path) -> None:
    lazy = attach()
    lazy.send(b"i", f"head -c 20000000 /dev/zero | tr '\\0' x; touch {tmp_path}/done\n".encode())
    wait_until((tmp_path / "done").exists, 30)
    taken = 0
    while data := lazy.sock.recv(1 << 20):  # it gets what was on its way, and then the end
        taken += len(data)
    assert taken < 20_000_000


@pytest.mark.parametrize("rubbish", [b"zzzzz", render_frame(b"x", b""), render_frame(b"a", b"1"), b"i\xff\xff\xff\xff"])
def test_rubbish_ends_one_client_only(attach: Callable[..., Attached], rubbish: bytes) -> None:
    good, bad = attach(), attach()
    bad.sock.sendall(rubbish)
    while bad.sock.recv(65536):
        pass
    good.send(b"i", b"echo fine-$((1+1))\n")
    good.wait(b"fine-2")


# VNC passwords


def ask_vnc(**args: Any) -> dict[str, Any]:
    return server.OPERATIONS["vnc"]({"session": ID, **args})[0]


def make_vnc_folder(script: str = 'python "$PORTICO_VNC_DOOR"') -> Folder:
    folder = Folder(ID)
    folder.make()
    folder.write("job.sh", f"#!/bin/sh\n{script}\n")
    return folder


def test_vnc_passwords_are_written_for_their_user_alone_and_removed(home: Path) -> None:
    if not shutil.which("tigervncpasswd"):
        pytest.skip("not installed: tigervnc-tools; run ./portico test")
    folder = make_vnc_folder()
    assert ask_vnc() == {"takes": True, "has": False}
    assert ask_vnc(passwords=["fullpass", "viewpass"]) == {"takes": True, "has": True}
    path = Path(folder.path, "vnc-passwords")
    # As TigerVNC's own program writes them.
    assert path.read_bytes().hex() == "f14fc0231540cbc52b1990ff70c9ba81"
    assert path.stat().st_mode & 0o777 == 0o600
    assert ask_vnc(passwords=[]) == ask_vnc(passwords=[]) == {"takes": True, "has": False}


def test_vnc_passwords_follow_no_link_and_no_odd_request(home: Path, tmp_path: Path) -> None:
    folder = make_vnc_folder()
    (tmp_path / "mine").write_text("kept")
    Path(folder.path, "vnc-passwords").symlink_to(tmp_path / "mine")
    ask_vnc(passwords=["fullpass", "viewpass"])
    assert (tmp_path / "mine").read_text() == "kept"
    for odd in (
        ["a"],
        ["fullpass"],
        ["fullpass", "view\npas"],
        ["fullpass", "éééééééé"],
        ["fullpass"] * 3,
        [1, 2],
        "x",
    ):
        with pytest.raises(Invalid):
            ask_vnc(passwords=odd)
    make_vnc_folder("exec Xtigervnc -SecurityTypes None")
    with pytest.raises(Conflict, match="takes no VNC passwords"):
        ask_vnc(passwords=["fullpass", "viewpass"])


def test_without_tigervncs_program_that_is_said(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_vnc_folder()
    monkeypatch.setenv("PATH", str(home))
    with pytest.raises(Unavailable) as caught:
        ask_vnc(passwords=["fullpass", "viewpass"])
    assert "tigervnc-tools" in caught.value.hint
    (home / "vncpasswd").write_text("#!/bin/sh\nexit 3\n")
    (home / "vncpasswd").chmod(0o700)
    with pytest.raises(Unavailable, match="made no file"):
        ask_vnc(passwords=["fullpass", "viewpass"])
