"""The broker as its enemy sees it: a portal that has been taken over, and users of the machine.

A real broker, asked from processes with the uid of the portal, of users and of root.
"""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from person import Person, TerminalClient
from running import ROOT, RunningPortico, wait_until

pytestmark = [pytest.mark.system, pytest.mark.timeout(240)]

ASK = """
import json, socket, sys, os
from portico import wire
path, requests = sys.argv[1], json.load(sys.stdin)
for request in requests:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sock.settimeout(20)
    try:
        sock.connect(path)
        if request.get("raw") is not None:
            sock.send(request["raw"].encode("latin-1"))
        elif request.get("fds"):
            wire.send(sock, request["body"], [0, 1])
        else:
            wire.send(sock, request["body"])
        packet = wire.receive(sock)
        print(json.dumps(packet.body if packet else "closed"))
    except OSError as error:
        print(json.dumps("closed" if error.errno in (32, 104) else f"refused {error.errno}"))
    sock.close()
"""


@pytest.fixture(scope="module")
def house(portico_factory: Callable[..., RunningPortico]) -> RunningPortico:
    """Return a Portico."""
    return portico_factory()


@pytest.fixture(scope="module")
def alice(house: RunningPortico) -> Person:
    """Return alice, who has an account."""
    person = house.user("alice")
    person.wait(person.start("terminal")["id"])
    return person


def ask(house: RunningPortico, requests: list[dict[str, Any]], user: str = "portico") -> list[Any]:
    """Ask the broker as a POSIX user, each request on a connection of its own."""
    account = pwd.getpwnam(user)
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(house.run_dir / "broker.sock")], input=json.dumps(requests), text=True,
        user=account.pw_uid, group=account.pw_gid, extra_groups=[], capture_output=True, timeout=120, check=True, cwd="/",
        env={"PYTHONPATH": str(ROOT / "src"), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    return [json.loads(line) for line in done.stdout.splitlines()]


def request(op: str, **args: Any) -> dict[str, Any]:
    """Return a well-formed request."""
    return {"body": {"id": 1, "op": op, "args": args}}


def read_audit(house: RunningPortico) -> str:
    """Return the broker's own log."""
    return (house.state_dir / "broker-audit.log").read_text()


def test_only_the_portals_uid_is_heard(house: RunningPortico, alice: Person) -> None:
    for user in (house.get_name("alice"), "nobody", "root"):
        said = ask(house, [request("cells")], user)[0]
        assert said == "closed" or said.startswith("refused"), user
    assert ask(house, [request("cells")])[0]["ok"]["cells"] is not None
    assert "refused connection of uid 0" in read_audit(house)


@pytest.fixture
def outsider(house: RunningPortico) -> Iterator[str]:
    """Return an account in the range that root made, and did not give to portico-users."""
    name = f"{house.prefix}out"
    subprocess.run(["useradd", "--no-create-home", "-K", "UID_MIN=20000", "-K", "UID_MAX=59999", name], check=True)
    yield name
    subprocess.run(["userdel", name], check=True)


def test_it_acts_for_nobody_but_portals_users(house: RunningPortico, alice: Person, outsider: str) -> None:
    names = ["root", "daemon", "nobody", "portico", "www-data", outsider]
    for op, more in (("agent", {}), ("account_make", {}), ("account_lock", {"locked": True}),
                     ("account_remove", {"remove_home": True})):  # fmt: skip
        for name, said in zip(names, ask(house, [request(op, user=name, **more) for name in names]), strict=True):
            assert said["error"]["code"] == "conflict", (op, name, said)
    assert pwd.getpwnam(outsider)
    assert "usermod -aG portico-users" in ask(house, [request("agent", user=outsider)])[0]["error"]["hint"]
    assert f'agent {{"user": "{outsider}"}}' in read_audit(house)


def test_who_has_an_account_is_not_turned_away_for_many_that_were_made(house: RunningPortico, alice: Person) -> None:
    """Each start of a session asks for the account: 120 in a minute are a workshop, and change nothing."""
    said = ask(house, [request("account_make", user=house.get_name("alice"))] * 120)
    assert all(one["ok"]["made"] is False for one in said)


def test_a_tool_that_fails_is_heard(house: RunningPortico) -> None:
    name = house.get_name("taken")
    subprocess.run(["groupadd", name], check=True)  # useradd(8), 9: the name of its group is taken
    try:
        (said,) = ask(house, [request("account_make", user=name)])
        assert said["error"]["code"] == "unavailable" and f"group {name} exists" in said["error"]["why"]
        with pytest.raises(KeyError):
            pwd.getpwnam(name)
    finally:
        subprocess.run(["groupdel", name], check=True)


GOOD_CELL = {"name": "a" * 12, "cores": 1, "memory_bytes": 1 << 30}


@pytest.mark.parametrize(
    "bad",
    [
        {"raw": "not json"},
        {"raw": "[]"},
        {"raw": "[" * 5000},
        {"raw": "{" + " " * 130_000 + "}"},
        {"body": {"op": "cells", "args": {}}},
        {"body": {"id": 1, "op": "cells", "args": {}, "more": 1}},
        {"body": {"id": 1, "op": ["cells"], "args": {}}},
        {"body": {"id": 1, "op": "cells", "args": []}},
        request("shell", command="id"),
        request("__init__"),
        request("cells", more=1),
        request("agent"),
        request("agent", user="a\nb"),
        request("agent", user="-rf"),
        request("agent", user="a" * 33),
        request("agent", user="Alice"),
        request("agent", user="al ice"),
        request("agent", user="alice\0"),
        request("agent", user=["alice"]),
        request("agent", user="alice", uid=0),
        request("agent", user="alice", cell=GOOD_CELL | {"name": "../../../etc"}),
        request("agent", user="alice", cell=GOOD_CELL | {"name": "a/bcdefghijk"}),
        request("agent", user="alice", cell=GOOD_CELL | {"cores": 0}),
        request("agent", user="alice", cell=GOOD_CELL | {"cores": True}),
        request("agent", user="alice", cell=GOOD_CELL | {"cores": 1e9}),
        request("agent", user="alice", cell=GOOD_CELL | {"memory_bytes": 1.5}),
        request("agent", user="alice", cell=GOOD_CELL | {"memory_bytes": -1}),
        request("agent", user="alice", cell={"name": "a" * 12}),
        request("agent", user="alice", cell=GOOD_CELL | {"more": 1}),
        request("cell_end", name="../portico"),
        request("cell_end", name=""),
        request("account_lock", user="alice", locked="yes"),
        request("account_remove", user="alice", remove_home=1),
        {**request("cells"), "fds": True},
    ],
    ids=lambda bad: str(bad)[:60],
)
def test_what_the_table_does_not_know_closes(house: RunningPortico, bad: dict[str, Any]) -> None:
    first, second = ask(house, [bad, request("cells")])
    assert first == "closed"
    assert "ok" in second, "others are served on"


def test_nan_is_no_number_of_cores(house: RunningPortico) -> None:
    raw = '{"id":1,"op":"agent","args":{"user":"alice","cell":{"name":"aaaaaaaaaaaa","cores":NaN,"memory_bytes":1073741824}}}'
    assert ask(house, [{"raw": raw}])[0] == "closed"


def test_forks_have_a_rate(house: RunningPortico, alice: Person) -> None:
    said = ask(house, [request("agent", user=house.get_name("alice"))] * 120)
    assert any("error" in answer and answer["error"]["code"] == "too-many" for answer in said)
    assert "ok" in said[0]
    time.sleep(1.1)
    assert "ok" in ask(house, [request("agent", user=house.get_name("alice"))])[0]


def run_in_terminal(person: Person, house: RunningPortico, command: str, marker: Path) -> str:
    """Run a command in a session of its own, and return what it wrote to ``marker``."""
    session_id = person.start("terminal")["id"]
    person.wait(session_id)
    terminal = TerminalClient(person.open_stream(f"/sessions/{session_id}/stream"))
    terminal.type(f"{command} > {marker}.new 2>&1; mv {marker}.new {marker}\n")
    wait_until(marker.exists, 20, str(marker))
    person.http.post(f"/api/v1/sessions/{session_id}/stop").raise_for_status()
    person.wait(session_id, "ended")
    return marker.read_text()


def test_a_job_is_alice_and_can_never_be_more(house: RunningPortico, alice: Person) -> None:
    account = pwd.getpwnam(house.get_name("alice"))
    marker = Path(account.pw_dir) / "probe"
    code = (
        "import os,json;"
        "r={};"
        "exec('''for name, function in (('setuid', lambda: os.setuid(0)), ('setgid', lambda: os.setgid(0)), "
        "('setgroups', lambda: os.setgroups([0])), ('chroot', lambda: os.chroot('/'))):\\n"
        " try: function(); r[name]='done'\\n"
        " except OSError: r[name]='refused'\\n''');"
        "r['ids']=os.getresuid()+os.getresgid();r['groups']=os.getgroups();"
        "r['umask']=os.umask(0);r['env']=sorted(os.environ);"
        "r['caps']=[l.split()[1] for l in open('/proc/self/status') if l.startswith(('CapPrm','CapEff','CapAmb'))];"
        "r['fds']=sorted(int(f) for f in os.listdir('/proc/self/fd'));"
        "print(json.dumps(r))"
    )
    said = json.loads(run_in_terminal(alice, house, f'/usr/bin/python3 -c "{code}"', marker))
    assert [said[name] for name in ("setuid", "setgid", "setgroups", "chroot")] == ["refused"] * 4
    assert said["ids"] == [account.pw_uid] * 3 + [account.pw_gid] * 3
    assert all(gid >= 1000 or gid == account.pw_gid for gid in said["groups"])
    assert set(said["caps"]) == {"0000000000000000"}
    assert said["umask"] == 0o077
    assert max(said["fds"]) <= 3, "the listing itself is the fourth"
    assert not [name for name in said["env"] if name.startswith("PORTICO_") and name in (
        "PORTICO_SETTINGS", "PORTICO_FDS", "PORTICO_SUPERVISOR", "PORTICO_ADMIN")]  # fmt: skip
    assert "PYTHONPATH" not in said["env"], "nothing of the one who started Portico reaches a job"


def test_a_job_that_hides_is_ended_with_its_cell(house: RunningPortico, alice: Person) -> None:
    session_id = alice.start("terminal")["id"]
    alice.wait(session_id)
    terminal = TerminalClient(alice.open_stream(f"/sessions/{session_id}/stream"))
    terminal.type('env -i setsid sh -c \'trap "" TERM HUP; (trap "" TERM HUP; exec sleep 7777) &\' ; echo o-k\n')
    terminal.wait(lambda text: "o-k\r\n" in text)
    uid = pwd.getpwnam(house.get_name("alice")).pw_uid

    def find_hidden() -> list[str]:
        found = subprocess.run(["pgrep", "-u", str(uid), "-f", "7777"], capture_output=True, text=True, check=False)
        return found.stdout.split()

    assert wait_until(find_hidden, 5)
    alice.http.post(f"/api/v1/sessions/{session_id}/stop").raise_for_status()
    alice.wait(session_id, "ended")
    wait_until(lambda: not find_hidden(), 10, "what hid is gone")


def test_a_fork_bomb_stays_in_its_cell(house: RunningPortico, alice: Person) -> None:
    session_id = alice.start("terminal")["id"]
    alice.wait(session_id)
    limit = next(
        path / session_id / "pids.max"
        for path in house.iter_cell_folders()
        if (path / session_id / "pids.max").exists()
    )
    assert int(limit.read_text()) <= 4096
    alice.http.post(f"/api/v1/sessions/{session_id}/stop").raise_for_status()
    alice.wait(session_id, "ended")


def test_a_tampered_record_harms_nobody_else(house: RunningPortico, alice: Person) -> None:
    session_id = alice.start("terminal")["id"]
    alice.wait(session_id)
    account = pwd.getpwnam(house.get_name("alice"))
    folder = Path(account.pw_dir) / ".local/share/portico/sessions" / session_id
    victim = subprocess.Popen(["/bin/sleep", "600"], user="nobody", group="nogroup", extra_groups=[])
    try:
        stat = Path(f"/proc/{victim.pid}/stat").read_text().rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        forged = {"pid": victim.pid, "start_ticks": int(stat[19]), "boot_id": boot, "deadline": 1}
        for text in (json.dumps(forged), "{", json.dumps({"pid": 10**30, "start_ticks": "x"}), json.dumps({"pid": 1})):
            (folder / "job.json").write_text(text)
            assert alice.http.get(f"/api/v1/sessions/{session_id}/log").status_code == 200
            assert alice.get(session_id)["state"] in ("ready", "ended")
        (folder / "job.json").write_text(json.dumps(forged))
        alice.http.post(f"/api/v1/sessions/{session_id}/stop").raise_for_status()
        alice.wait(session_id, "ended")
        assert victim.poll() is None, "another user's process is no session of alice's"
    finally:
        victim.kill()
        victim.wait()


def test_a_link_in_place_of_the_folder_writes_nowhere_else(house: RunningPortico, alice: Person) -> None:
    account = pwd.getpwnam(house.get_name("alice"))
    sessions = Path(account.pw_dir) / ".local/share/portico/sessions"
    kept = sessions.with_name("kept")
    elsewhere = Path(f"/run/{house.instance}-elsewhere")
    elsewhere.mkdir(mode=0o777)
    elsewhere.chmod(0o777)
    sessions.rename(kept)
    os.symlink(elsewhere, sessions)
    os.lchown(sessions, account.pw_uid, account.pw_gid)
    try:
        answer = alice.http.post("/api/v1/sessions", json={"app_id": "terminal"})
        if answer.status_code == 201:  # her own files, written with her own rights, wherever she points
            alice.wait(answer.json()["id"])
            alice.http.post(f"/api/v1/sessions/{answer.json()['id']}/stop")
            alice.wait(answer.json()["id"], "ended")
        assert all(path.lstat().st_uid == account.pw_uid for path in elsewhere.rglob("*"))
    finally:
        sessions.unlink()
        kept.rename(sessions)
        subprocess.run(["rm", "-rf", str(elsewhere)], check=True)
