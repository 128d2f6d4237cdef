"""The commands against a real Portico: as root, as users of the machine, and from elsewhere with a token."""

from __future__ import annotations

import contextlib
import json
import pwd
import stat
import subprocess
from pathlib import Path

import pytest
from running import RunningPortico

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def make_account(portico: RunningPortico, name: str) -> None:
    """Have a user's POSIX account made, which their first session does."""
    person = portico.user(name)
    with contextlib.suppress(KeyError):
        pwd.getpwnam(portico.get_name(name))
        return
    session = person.start("terminal", memory_gb=0.25)
    person.wait(session["id"])
    person.http.post(f"/api/v1/sessions/{session['id']}/stop").raise_for_status()


def test_root_on_the_machine_is_an_admin_by_its_uid(portico: RunningPortico) -> None:
    me = json.loads(portico.cli("whoami", "--json").stdout)
    assert (me["name"], me["role"], me["via"]) == ("root", "admin", "socket")


def test_users_from_invitation_to_removal(portico: RunningPortico) -> None:
    name = portico.get_name("carol")
    link = json.loads(portico.cli("user", "add", name, "--json").stdout)["link"]
    assert link.startswith(f"{portico.url}/enrol#")
    listed = {user["name"]: user for user in json.loads(portico.cli("user", "list", "--json").stdout)}
    assert listed[name]["state"] == "invited"
    assert json.loads(portico.cli("user", "link", name, "--json").stdout)["link"] != link
    assert json.loads(portico.cli("user", "role", name, "admin", "--json").stdout)["role"] == "admin"
    assert json.loads(portico.cli("user", "lock", name, "--json").stdout)["state"] == "locked"
    portico.cli("user", "unlock", name)
    refused = portico.cli("user", "remove", name, check=False)
    assert refused.returncode == 1
    assert "--yes" in refused.stderr
    portico.cli("user", "remove", name, "--yes")
    assert name not in portico.cli("user", "list").stdout
    actions = [
        entry["action"] for entry in json.loads(portico.cli("audit", "--json").stdout) if entry["target"] == name
    ]
    assert [action for action in actions if action != "user:lock"] == [
        "user:remove",
        "user:role",
        "user:link",
        "user:add",
    ]
    assert actions.count("user:lock") >= 2


def test_a_user_of_the_machine_needs_no_login(portico: RunningPortico) -> None:
    make_account(portico, "alice")
    name = portico.get_name("alice")
    me = json.loads(portico.cli("whoami", "--json", user=name).stdout)
    assert (me["name"], me["role"]) == (name, "user")
    forbidden = portico.cli("user", "list", user=name, check=False)
    assert forbidden.returncode == 1
    assert "Traceback" not in forbidden.stderr
    apps = {app["id"] for app in json.loads(portico.cli("app", "list", "--json", user=name).stdout)}
    assert {"terminal", "jupyter", "desktop-xfce", "desktop-light"} <= apps


def test_a_stranger_of_the_machine_is_refused(portico: RunningPortico) -> None:
    done = portico.cli("session", "list", user="nobody", check=False)
    assert done.returncode == 1
    assert "is no user of this portal" in done.stderr


def test_a_session_from_start_to_end(portico: RunningPortico) -> None:
    person, name = portico.user("alice"), portico.get_name("alice")
    make_account(portico, "alice")
    started = portico.cli(
        "session", "start", "terminal", "--memory-gb", "0.25", "--title", "x y", "--wait", "--json", user=name
    )
    session = json.loads(started.stdout)
    assert (session["state"], session["title"]) == ("ready", "x y")
    id = session["id"]
    assert id in portico.cli("session", "list", user=name).stdout
    assert f"{portico.url}/sessions/{id}" in portico.cli("session", "open", "--print", id, user=name).stdout
    longer = json.loads(portico.cli("session", "extend", id, "--json", user=name).stdout)
    assert longer["ends"] > session["ends"]
    portico.cli("session", "log", id, user=name)
    portico.user("bob")
    shared = json.loads(portico.cli("session", "share", id, portico.get_name("bob"), "--json", user=name).stdout)
    assert str(shared["id"]) in portico.cli("session", "shares", id, user=name).stdout
    portico.cli("session", "unshare", id, str(shared["id"]), user=name)
    portico.cli("session", "stop", id, user=name)
    person.wait(id, "ended")
    portico.cli("session", "forget", id, user=name)
    gone = portico.cli("session", "show", id, user=name, check=False)
    assert gone.returncode == 1
    assert "no such session" in gone.stderr


def test_a_user_adds_the_key_in_their_home(portico: RunningPortico) -> None:
    make_account(portico, "alice")
    name = portico.get_name("alice")
    entry = pwd.getpwnam(name)
    ids = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    path = f"{entry.pw_dir}/.ssh/id_ed25519"
    subprocess.run(["mkdir", "-p", "-m", "700", f"{entry.pw_dir}/.ssh"], check=True, cwd="/", **ids)  # type: ignore[call-overload]
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "made here", "-f", path]
    subprocess.run(command, check=True, cwd="/", **ids)  # type: ignore[call-overload]
    done = portico.cli("keys", "add", "--from", "10.1.2.3/8", "--from", "::1", "--days", "30", "--json", user=name)
    key = json.loads(done.stdout)
    assert f"Taking {path}.pub." in done.stderr
    assert (key["label"], key["sources"]) == ("made here", ["10.0.0.0/8", "::1/128"])
    shown = portico.cli("keys", "list", user=name).stdout
    assert key["fingerprint"][:20] in shown and "10.0.0.0/8" in shown
    again = portico.cli("keys", "add", user=name, check=False)
    assert again.returncode == 1 and "have this key already: made here" in again.stderr
    private = portico.cli("keys", "add", path, user=name, check=False)
    assert private.returncode == 1 and "private half" in private.stderr
    root = portico.cli("keys", "add", f"{path}.pub", check=False)
    assert root.returncode == 1 and "in person" in root.stderr
    portico.cli("keys", "remove", str(key["id"]), user=name)
    assert "no keys" in portico.cli("keys", "list", user=name).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no-such-app"], "There is no app"),
        (["terminal", "--hours", "1000"], "Hours"),
        (["terminal", "--cores", "-1"], "Cores"),
        (["terminal", "--memory-gb", "100000"], "memory"),
        (["terminal", "--set", "x"], "NAME=VALUE"),
        (["terminal", "--set", "nothing=1"], "has no field"),
        (["desktop-light", "--set", "geometry=1x1"], "First size"),
    ],
)
def test_a_wrong_request_is_told_in_one_message(arguments: list[str], message: str, portico: RunningPortico) -> None:
    make_account(portico, "alice")
    done = portico.cli("session", "start", *arguments, user=portico.get_name("alice"), check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_token_from_elsewhere(portico: RunningPortico, tmp_path: Path) -> None:
    person = portico.user("alice")
    token = person.http.post("/api/v1/tokens", json={"label": "laptop", "days": 1}).json()["token"]
    elsewhere = ["env", f"XDG_CONFIG_HOME={tmp_path}", *portico.get_command(), "--url", portico.url]

    def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
        env = portico.get_env()
        return subprocess.run(
            [*elsewhere, *arguments], env=env, text=True, capture_output=True, check=False, cwd="/", **more
        )  # type: ignore[call-overload]

    before = run("whoami")
    assert before.returncode == 1
    assert "login" in before.stderr
    wrong = run("login", input="nonsense\n")
    assert wrong.returncode == 1
    assert not json.loads((tmp_path / "portico/tokens.json").read_text())
    assert run("login", input=f"{token}\n").returncode == 0
    assert stat.S_IMODE((tmp_path / "portico/tokens.json").stat().st_mode) == 0o600
    assert json.loads(run("whoami", "--json").stdout)["name"] == portico.get_name("alice")
    made = json.loads(run("token", "list", "--json").stdout)
    assert [entry["label"] for entry in made] == ["laptop"]
    assert run("token", "revoke", str(made[0]["id"])).returncode == 0
    assert run("whoami").returncode == 1
    assert run("logout").returncode == 0


def test_wrong_usage_is_status_2(portico: RunningPortico) -> None:
    assert portico.cli("no-such-command", check=False).returncode == 2
    assert portico.cli("session", "start", check=False).returncode == 2
