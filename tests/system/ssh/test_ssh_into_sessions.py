"""SSH into running sessions of this machine: where it ends up, with which tools, within which limits, and whose it is."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
from pathlib import Path

import pytest
from running import RunningPortico, find_free_ports, wait_until
from ssh_person import SshPerson, connect, find_free_port, is_running, read_line, wait_for_port

pytestmark = pytest.mark.system


def test_it_ends_up_in_the_sessions_cell_as_its_user(alice: SshPerson, sessions: dict[str, str]) -> None:
    alice.add_key()
    done = alice.run("id -un; cat /proc/self/cgroup; echo $PORTICO_SESSION", session=sessions["alice"])
    lines = done.stdout.splitlines()
    assert lines[0] == alice.name and lines[-1] == sessions["alice"], done.stderr
    assert any(line.endswith(f"/{sessions['alice']}") for line in lines), "the limits are the session's"
    assert alice.run("echo $PORTICO_SESSION", session="terminal").stdout.strip() == sessions["alice"], "by its app"


def test_another_users_session_is_as_if_it_were_not_there(
    alice: SshPerson, bob: SshPerson, sessions: dict[str, str]
) -> None:
    alice.add_key(), bob.add_key()
    told = bob.run("true", session=sessions["alice"])
    nothing = bob.run("true", session="nothing-here")
    assert told.returncode == nothing.returncode == 255
    assert f"You have no session '{sessions['alice']}'" in told.stderr
    for words in ("a b", "$(id)", "../x", "x" * 300, "-oProxyCommand=id"):
        argv = [*bob.get_argv(f"{bob.house.run_dir}/ssh/connect '{words}'")]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False, stdin=subprocess.DEVNULL)
        assert done.returncode == 1 and "You have no session" in done.stderr and "uid=" not in done.stdout, words
    # Nor is there a way to alice's sockets by forwarding.
    uid = pwd.getpwnam(alice.name).pw_uid
    for path in (
        f"{bob.house.run_dir}/users/{uid}/{sessions['alice']}/app.sock", f"{bob.house.run_dir}/portal.sock",
        f"{bob.house.run_dir}/routes.sock", f"{bob.house.run_dir}/broker.sock",
    ):  # fmt: skip
        local = bob.folder / "forwarded"
        tunnel = bob.open("sleep 30", options=("-o", "StreamLocalBindUnlink=yes", "-L", f"{local}:{path}"))
        wait_until(local.exists, 20, "the forwarded socket")
        script = f"import socket; s = socket.socket(socket.AF_UNIX); s.settimeout(10); s.connect({str(local)!r}); print(s.recv(9))"
        done = subprocess.run(
            ["/usr/bin/python3", "-c", script], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.stdout.strip() == "b''" or "Error" in done.stderr, path
        tunnel.kill()
        tunnel.wait(10)
        local.unlink(missing_ok=True)


def test_without_a_key_that_is_good_the_reason_is_told(alice: SshPerson, sessions: dict[str, str]) -> None:
    key_id = alice.add_key()
    live = alice.open("echo in; sleep 1000", session=sessions["alice"])
    assert read_line(live) == "in"
    alice.remove_key(key_id)
    assert live.wait(10) == 255, "the way in has ended, and all that went by it"
    second = alice.make_key("second")
    alice.add_key(second)
    assert alice.run("echo in", session=sessions["alice"], key=second).stdout == "in\n", (
        "a key added now, in a session from before"
    )


def test_files_and_forwarding_inside(alice: SshPerson, sessions: dict[str, str]) -> None:
    alice.add_key()
    data = alice.folder / "data"
    data.write_bytes(os.urandom(3_000_000))
    assert alice.copy(str(data), "@inside", session=sessions["alice"]).returncode == 0
    done = alice.copy("@inside", str(alice.folder / "back"), session=sessions["alice"])
    assert done.returncode == 0 and (alice.folder / "back").read_bytes() == data.read_bytes(), done.stderr
    here, there = find_free_port(), find_free_port()
    server = alice.open(
        f"python3 -u -c 'import socket; s = socket.create_server((\"127.0.0.1\", {there})); print(1);"
        " c = s.accept()[0]; c.sendall(b\"inside\"); c.close()'", session=sessions["alice"],
    )  # fmt: skip
    assert read_line(server) == "1"
    alice.open("sleep 1000", session=sessions["alice"], options=("-L", f"{here}:127.0.0.1:{there}"))
    with connect(here) as sock:
        assert sock.recv(100) == b"inside"
    back = find_free_port()
    alice.open("sleep 1000", session=sessions["alice"], options=("-R", f"{back}:127.0.0.1:{alice.port}"))
    wait_for_port(back)


def test_what_vs_code_does(alice: SshPerson, sessions: dict[str, str]) -> None:
    """Remote-SSH runs a shell script over standard input, and then forwards through a dynamic port (SOCKS)."""
    alice.add_key()
    script = "uname -s; mkdir -p ~/.vscode-test && cd ~/.vscode-test && pwd; echo 'listeningOn=='$((40000+1))'=='\n"
    done = alice.run("bash", session=sessions["alice"], options=("-T",), stdin=None, input=script)
    assert done.stdout.splitlines() == ["Linux", f"/home/{alice.name}/.vscode-test", "listeningOn==40001=="], (
        done.stderr
    )
    there, socks = find_free_port(), find_free_port()
    server = alice.open(
        f"cd / && exec python3 -u -m http.server --bind 127.0.0.1 {there} 2>&1", session=sessions["alice"]
    )
    assert "Serving" in read_line(server)
    alice.open("sleep 1000", session=sessions["alice"], options=("-T", "-D", str(socks)))
    with connect(socks) as sock:  # SOCKS 5 (RFC 1928): no authentication, connect by name
        sock.sendall(b"\x05\x01\x00")
        assert sock.recv(2) == b"\x05\x00"
        sock.sendall(b"\x05\x01\x00\x03\x09localhost" + there.to_bytes(2, "big"))
        assert sock.recv(100)[:2] == b"\x05\x00"
        sock.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert sock.recv(12) == b"HTTP/1.0 200"


def test_x11_comes_back_to_the_laptop(alice: SshPerson, sessions: dict[str, str], tmp_path: Path) -> None:
    alice.add_key()
    number = 4000 + os.getpid() % 1000
    display, authority = f":{number}", tmp_path / "Xauthority"
    env = {"PATH": os.environ["PATH"], "HOME": str(alice.folder), "XAUTHORITY": str(authority), "DISPLAY": display}
    cookie = os.urandom(16).hex()
    subprocess.run(["xauth", "-f", str(authority), "add", display, ".", cookie], check=True, env=env)
    argv = ["Xtigervnc", display, "-rfbport", "-1", "-rfbunixpath", str(tmp_path / "rfb"), "-SecurityTypes", "None",
            "-auth", str(authority), "-geometry", "321x234", "-nolisten", "tcp"]  # fmt: skip
    server = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until(Path(f"/tmp/.X11-unix/X{number}").exists, 20, "the laptop's display")
        shown = alice.run(
            "xdpyinfo | grep dimensions; echo $DISPLAY", session=sessions["alice"], options=("-Y",), env=env
        )
        assert "321x234" in shown.stdout and "localhost:" in shown.stdout, shown.stderr
        window = alice.open(
            "xterm -T from-the-session -e sleep 100", session=sessions["alice"], options=("-Y",), env=env
        )

        def is_shown() -> bool:
            tree = subprocess.run(["xwininfo", "-root", "-tree"], capture_output=True, text=True, env=env, check=False)
            return "from-the-session" in tree.stdout

        wait_until(is_shown, 30, "the window")
        window.kill()
    finally:
        server.terminate()
        server.wait(10)


def test_it_ends_with_its_session(alice: SshPerson) -> None:
    alice.add_key()
    session = alice.browser.start("terminal")
    alice.browser.wait(session["id"])
    live = alice.open("setsid sleep 1000 & echo $!; sleep 1000", session=session["id"])
    pid = int(read_line(live))
    alice.browser.http.post(f"/api/v1/sessions/{session['id']}/stop")
    alice.browser.wait(session["id"], "ended", 60)
    assert live.wait(20) == 255
    wait_until(lambda: not is_running(pid), 20, "the end of all that was started in it")
    told = alice.run("true", session=session["id"])
    assert told.returncode == 255 and "does not run" in told.stderr
    assert "There is" not in alice.run("true", session="desktop").stderr


def test_its_memory_is_the_sessions(alice: SshPerson) -> None:
    alice.add_key()
    session = alice.browser.start("terminal", memory_gb=0.5)
    alice.browser.wait(session["id"])
    done = alice.run("python3 -c 'x = bytearray(900_000_000); print(len(x))'", session=session["id"])
    assert done.returncode != 0 and "900" not in done.stdout, "it was killed for it"
    alice.browser.http.post(f"/api/v1/sessions/{session['id']}/stop")


def test_it_lives_on_when_all_of_portico_is_killed(alice: SshPerson, sessions: dict[str, str]) -> None:
    alice.add_key()
    live = alice.open("cat", session=sessions["alice"])
    assert live.stdin is not None
    live.stdin.write("one\n")
    live.stdin.flush()
    assert read_line(live) == "one"
    os.kill(alice.house.pids["portal"], signal.SIGKILL)
    alice.house.kill()
    alice.house.start()
    live.stdin.write("two\n")
    live.stdin.flush()
    assert read_line(live) == "two"
    assert alice.run("echo again", session=sessions["alice"]).stdout == "again\n"


def test_the_secrets_of_its_sshd_are_its_users_alone(
    alice: SshPerson, bob: SshPerson, sessions: dict[str, str], ssh_house: RunningPortico
) -> None:
    alice.add_key()
    assert alice.run("true", session=sessions["alice"]).returncode == 0
    uid = pwd.getpwnam(alice.name).pw_uid
    folder = ssh_house.run_dir / f"users/{uid}/{sessions['alice']}/ssh"
    assert folder.stat().st_mode & 0o777 == 0o700 and folder.stat().st_uid == uid
    assert {path.name for path in folder.iterdir()} == {
        "authorized_keys",
        "host_key",
        "host_key-cert.pub",
        "log",
        "sshd_config",
    }
    assert all(path.stat().st_mode & 0o077 == 0 for path in folder.iterdir())
    key = (folder / "host_key").read_text().splitlines()[2]
    for log in (ssh_house.state_dir / "log").iterdir():
        assert key not in log.read_text(errors="replace")
    assert key not in (ssh_house.state_dir / "broker-audit.log").read_text()


def test_a_site_may_forbid_the_network(portico_factory: object) -> None:
    port = find_free_port()
    house = portico_factory({"ssh_port": port, "ssh_forwarding": "no"})  # type: ignore[operator]
    alice = SshPerson(house, "alice", port)
    try:
        alice.add_key()
        session = alice.browser.start("terminal")
        alice.browser.wait(session["id"])
        for where in ("", session["id"]):
            local = find_ports()
            alice.open("sleep 20", session=where, options=("-L", f"{local}:127.0.0.1:{port}"))
            with connect(local) as sock:
                assert sock.recv(100) == b"", "nothing answers at the other end"
            done = alice.run(
                "true", session=where, options=("-o", "ExitOnForwardFailure=yes", "-R", f"{find_ports()}:127.0.0.1:1")
            )
            assert done.returncode == 255
            assert alice.run("echo in", session=where).stdout == "in\n"
    finally:
        alice.close()


def find_ports() -> int:
    """Return a port that is free now, below those of outgoing connections."""
    return find_free_ports()[0]
