"""``portico up`` as a person meets it: what it makes, says and refuses, and what survives it."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
import socket
import sqlite3
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from running import PASSWORD, RunningPortico, find_free_ports, wait_for_exit, wait_until

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def read_status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def test_processes_have_the_least_that_they_need(portico: RunningPortico) -> None:
    account = pwd.getpwnam("portico")
    pids = portico.pids
    assert pids.keys() == {"supervisor", "broker", "portal", "gateway"}
    for name in ("portal", "gateway"):
        status = read_status(pids[name])
        assert status["Uid"].split() == [str(account.pw_uid)] * 4
        assert status["Gid"].split() == [str(account.pw_gid)] * 4
        assert status["Groups"] in ("", str(account.pw_gid))
        assert {int(status[key], 16) for key in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
        assert status["NoNewPrivs"] == "1"
    assert read_status(pids["broker"])["Uid"].split() == ["0"] * 4


def test_processes_hold_only_their_own_sockets(portico: RunningPortico) -> None:
    def list_inodes(name: str) -> set[str]:
        links = (os.readlink(path) for path in Path(f"/proc/{portico.pids[name]}/fd").iterdir())
        return {link for link in links if link.startswith("socket:")}

    def find_inode(path: str) -> str:
        for line in Path("/proc/net/unix").read_text().splitlines():
            columns = line.split()
            if columns[-1] == path and columns[3] == "00010000":  # listening
                return f"socket:[{columns[6]}]"
        raise AssertionError(path)

    sockets = {name: find_inode(f"{portico.run_dir}/{name}.sock") for name in ("broker", "portal", "api", "routes")}
    assert sockets["broker"] in list_inodes("broker")
    assert not list_inodes("broker") & {sockets["portal"], sockets["api"], sockets["routes"]}
    assert not list_inodes("gateway") & set(sockets.values())
    assert sockets["broker"] not in list_inodes("portal")


def test_folders_and_sockets_have_the_modes_of_the_protocol(portico: RunningPortico) -> None:
    account = pwd.getpwnam("portico")

    def look(path: Path) -> tuple[int, int, str]:
        state = path.lstat()
        return state.st_uid, state.st_gid, oct(stat.S_IMODE(state.st_mode))

    run, state = portico.run_dir, portico.state_dir
    assert look(run) == (0, 0, "0o755")
    assert look(run / "users") == (0, 0, "0o755")
    for name in ("broker", "portal", "routes"):
        assert look(run / f"{name}.sock") == (account.pw_uid, account.pw_gid, "0o600")
    assert look(run / "api.sock") == (account.pw_uid, account.pw_gid, "0o666")
    assert look(state) == (0, account.pw_gid, "0o1770")
    assert look(state / "portico.db") == (account.pw_uid, account.pw_gid, "0o600")
    assert look(state / "broker-audit.log") == (0, 0, "0o600")
    assert look(state / "log") == (0, account.pw_gid, "0o750")


def test_the_service_account_cannot_replace_what_root_writes(portico: RunningPortico) -> None:
    account = pwd.getpwnam("portico")
    for path in (portico.state_dir / "broker-audit.log", portico.state_dir / "log" / "broker.log"):
        assert path.exists()
        done = subprocess.run(
            ["rm", "-f", str(path)], user=account.pw_uid, group=account.pw_gid, extra_groups=[], capture_output=True,
            check=False,
        )  # fmt: skip
        assert done.returncode != 0
        assert path.exists()


def test_no_secret_is_in_a_log(portico: RunningPortico) -> None:
    person = portico.admin()
    secrets = [portico.admin_link.partition("#")[2], PASSWORD, *person.http.cookies.values()]
    texts = [path.read_text(errors="replace") for path in portico.state_dir.rglob("*.log*")]
    for pid in portico.pids.values():
        texts += [Path(f"/proc/{pid}/cmdline").read_text(), Path(f"/proc/{pid}/environ").read_text()]
    assert len(texts) >= 12
    for secret in secrets:
        assert len(secret) > 20
        assert not any(secret in text for text in texts)


def test_a_second_one_on_the_same_state_says_that_it_runs(portico: RunningPortico) -> None:
    common = ["--no-install", "--port", "65000", "--state-dir", str(portico.state_dir), "--instance", portico.instance]
    same = portico.cli("up", *common, "--run-dir", str(portico.run_dir), check=False)
    assert same.returncode == 1
    assert "Portico is running already." in same.stderr
    assert f"process {portico.pids['supervisor']}" in same.stderr
    elsewhere = f"{portico.run_dir}-2"
    try:
        other = portico.cli("up", *common, "--run-dir", elsewhere, check=False)
    finally:
        subprocess.run(["rm", "-rf", elsewhere], check=True)
    assert other.returncode == 1
    assert f"with the state folder {portico.state_dir}" in other.stderr


def test_a_taken_port_is_told_with_the_one_who_has_it(portico: RunningPortico) -> None:
    folders = [f"{portico.run_dir}-3", f"{portico.state_dir}-3"]
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = portico.cli(
            "up", "--no-install", "--port", str(port), "--run-dir", folders[0], "--state-dir", folders[1], check=False
        )
    subprocess.run(["rm", "-rf", *folders], check=True)
    assert done.returncode == 1
    assert f"Port {port} is taken." in done.stderr
    assert f"(process {os.getpid()})" in done.stderr
    assert "--port" in done.stderr
    assert "Traceback" not in done.stderr


def test_nobody_else_can_answer_on_the_other_loopback_address(portico: RunningPortico) -> None:
    with socket.socket(socket.AF_INET6) as bob:
        bob.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with pytest.raises(OSError, match="in use"):
            bob.bind(("::1", portico.port))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--admin", "Not A Name"], "can't be a user's name"),
        (["--admin", "root"], "can't be a user's name"),
        (["--tls-certificate", "/nowhere.pem"], "go together"),
        (["--tls-certificate", "/nowhere.pem", "--tls-key", "/nowhere.key"], "can't be used"),
        (["--config", "/nowhere.toml"], "There is no file"),
        (["--run-dir", "/run/" + "x" * 80], "too long"),
    ],
)
def test_a_wrong_option_is_told_in_one_message(arguments: list[str], message: str, portico: RunningPortico) -> None:
    folders = [f"{portico.state_dir}-4", f"{portico.run_dir}-4"]
    options = ["--state-dir", folders[0], "--run-dir", folders[1]]
    try:
        done = portico.cli("up", "--no-install", "--port", str(find_free_ports()[0]), *options, *arguments, check=False)
    finally:
        subprocess.run(["rm", "-rf", *folders], check=True)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_process_that_dies_comes_back(portico: RunningPortico) -> None:
    portico.admin()
    for name in ("gateway", "portal", "broker"):
        before = portico.pids[name]
        os.kill(before, signal.SIGKILL)
        wait_until(lambda name=name, before=before: portico.pids.get(name, before) != before, 20, f"a new {name}")

        def answers() -> bool:
            with contextlib.suppress(httpx.HTTPError):
                return httpx.get(f"{portico.url}/api/v1/health", trust_env=False).status_code == 200
            return False

        wait_until(answers, 20, f"an answer after the death of the {name}")
    assert any("killed by SIGKILL; starting it again" in line for line in portico.output)


def test_sessions_survive_a_stop_and_a_kill(portico_factory: Callable[..., RunningPortico]) -> None:
    portico = portico_factory()
    alice = portico.user("alice")
    session = alice.start("terminal", memory_gb=0.25)
    alice.wait(session["id"])
    uid = pwd.getpwnam(portico.get_name("alice")).pw_uid

    def list_processes() -> set[str]:
        found = set()
        for path in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if (
                    path.name.isdigit()
                    and path.stat().st_uid == uid
                    and b"terminal.py" in ((path / "cmdline").read_bytes())
                ):
                    found.add(path.name)
        return found

    processes = list_processes()
    assert processes
    portico.stop()
    assert any("1 session goes on" in line for line in portico.output)
    assert list_processes() == processes
    begin = time.monotonic()
    portico.start()
    assert time.monotonic() - begin < 20
    assert not portico.admin_link or portico.admin_link.startswith(portico.url)
    alice.wait(session["id"])
    portico.kill()
    assert list_processes() == processes
    portico.start()
    alice.wait(session["id"])
    assert list_processes() == processes
    alice.http.post(f"/api/v1/sessions/{session['id']}/stop").raise_for_status()
    alice.wait(session["id"], "ended")
    wait_until(lambda: not list_processes(), 20, "the end of the terminal")


def test_status_and_stop(portico_factory: Callable[..., RunningPortico]) -> None:
    portico = portico_factory()
    facts = json.loads(portico.cli("status", "--json").stdout)
    assert facts["url"] == portico.url
    assert facts["pid"] == portico.pids["supervisor"]
    pids = portico.pids
    assert facts["processes"] == {name: pids[name] for name in ("broker", "portal")} | {"gateway-1": pids["gateway"]}
    assert facts["draining"] == []
    nobody = portico.cli("stop", user="nobody", check=False)
    assert nobody.returncode == 1
    assert "Ask root" in nobody.stderr
    assert "Sessions go on" in portico.cli("stop").stderr
    for pid in pids.values():
        wait_for_exit(pid, 10)
    assert portico.cli("status", check=False).returncode == 1
    assert portico.cli("user", "list", check=False).returncode == 1


def test_a_corrupt_database_stops_the_start_with_a_sentence(portico_factory: Callable[..., RunningPortico]) -> None:
    portico = portico_factory()
    portico.stop()
    database = portico.state_dir / "portico.db"
    good = database.read_bytes()
    for name in ("portico.db-wal", "portico.db-shm"):
        (portico.state_dir / name).unlink(missing_ok=True)
    database.write_bytes(b"this is no database" * 1000)
    begin = time.monotonic()
    with pytest.raises(RuntimeError) as told:
        portico.start()
    assert str(database) in str(told.value)
    assert "Traceback" not in str(told.value)
    assert time.monotonic() - begin < 20
    database.write_bytes(good)
    portico.start()


def test_a_backup_is_a_whole_database(portico: RunningPortico, tmp_path: Path) -> None:
    file = tmp_path / "backup.db"
    portico.cli("backup", str(file))
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert file.stat().st_uid == 0
    with contextlib.closing(sqlite3.connect(file)) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert (portico.admin_name,) in database.execute("SELECT name FROM users").fetchall()
    again = portico.cli("backup", str(file), check=False)
    assert again.returncode == 1
    assert "exists" in again.stderr


def test_a_lost_link_can_be_had_again(portico_factory: Callable[..., RunningPortico]) -> None:
    portico = portico_factory()
    link = portico.cli("admin-link", portico.admin_name).stdout.strip()
    assert link.startswith(f"{portico.url}/enrol#")
    assert link != portico.admin_link
    portico.admin_link = link
    assert portico.admin().http.get("/api/v1/me").json()["role"] == "admin"
    portico.restart()
    assert not portico.admin_link, "an admin with a password gets no link"
