"""The page that says how to reach a session, its files, and the API's word on SSH."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pytest
from portal_rig import World, make_key

from portico.errors import Unavailable
from portico.model import SessionState, SshKey, now
from portico.ssh.client import Way, render_known_hosts, render_ssh_config


def add_key(world: World, name: str) -> None:
    kind, body = make_key().split()
    with world.store.begin() as tx:
        tx.add_ssh_key(SshKey(0, name, "laptop", kind, body, "SHA256:x", 256, (), now()))


def show(world: World, name: str = "alice", app: str = "screen", state: SessionState = SessionState.READY) -> str:
    session = world.start(name, app, state)
    answer = world.ask("GET", f"/sessions/{session.id}/connect", cookie=world.sign_in(name))
    assert answer.status_code == 200
    return answer.text.replace(session.id, "SESSION")


def list_commands(page: str) -> dict[str, str]:
    return {
        name: html.unescape(text) for name, text in re.findall(r'<pre id="copy-(\w+)">(.*?)</pre>', page, re.DOTALL)
    }


def test_commands_have_this_users_own_names(own_world: World) -> None:
    add_key(own_world, "alice")
    commands = list_commands(show(own_world))
    assert commands["ssh"] == "ssh SESSION.portico"
    assert commands["code"] == "code --remote ssh-remote+SESSION.portico"
    assert commands["config"] == "portico --url http://localhost:8000 ssh config --write"
    assert commands["desktop"] == "portico --url http://localhost:8000 desktop open SESSION"
    assert re.fullmatch(
        r'plink -proxycmd "plink -batch -P 2222 -hostkey SHA256:\S{43} alice@localhost /\S+/ssh/connect SESSION" '
        r"-loghost portico-session alice@SESSION\.portico",
        commands["putty"],
    )
    assert re.fullmatch(
        r"""ssh -N -L "59\d\d:\$\(ssh SESSION\.portico 'echo \$PORTICO_SOCKET'\)" SESSION\.portico""",
        commands["tunnel"],
    )


def test_every_command_can_be_copied(own_world: World) -> None:
    page = show(own_world)
    assert re.findall(r'data-copy="#copy-(\w+)"', page) == re.findall(r'<pre id="copy-(\w+)">', page)
    assert len(list_commands(page)) > 10


def test_without_a_key_that_is_said_first(own_world: World) -> None:
    page = show(own_world)
    assert "You have no SSH key that is good now" in page
    assert page.index('href="/account#keys"') < page.index("<details")
    add_key(own_world, "alice")
    assert "You have no SSH key" not in show(own_world)


def test_where_certificates_alone_are_good_that_is_said(tmp_path: Path) -> None:
    world = World(tmp_path, ssh_keys=False)
    add_key(world, "alice")
    page = show(world)
    assert "certificates alone" in page
    assert "/account#keys" not in page
    world.close()


@pytest.mark.parametrize("off", [True, False])
def test_without_ssh_the_browser_is_left(tmp_path: Path, off: bool) -> None:
    world = World(tmp_path, **({"ssh_port": 0} if off else {}))
    if not off:
        Path(world.config.ssh_dir, "host_keys.pub").unlink()
    page = show(world)
    assert ("SSH is off here" if off else "No sshd of Portico") in page
    assert "This browser" in page
    assert not list_commands(page)
    session = world.start("alice", "screen")
    cookie = world.sign_in("alice")
    assert world.ask("GET", f"/sessions/{session.id}/connect/portico_config", cookie=cookie).status_code == 503
    assert world.ask("GET", "/api/v1/ssh", cookie=cookie).json()["error"]["code"] == "unavailable"
    world.close()


def test_a_viewer_is_for_desktops(own_world: World) -> None:
    assert "A VNC viewer" in show(own_world)
    assert "A VNC viewer" not in show(own_world, app="shell")
    session = own_world.start("alice", "shell")
    cookie = own_world.sign_in("alice")
    for name in ("desktop.vnc", "desktop.tigervnc", "nothing", "..%2fconnect"):
        assert own_world.ask("GET", f"/sessions/{session.id}/connect/{name}", cookie=cookie).status_code == 404


def test_a_session_that_is_not_ready_or_has_ended_is_said_so(own_world: World) -> None:
    assert "not ready yet" in show(own_world, state=SessionState.QUEUED)
    assert "has ended" in show(own_world, state=SessionState.ENDED)


def test_files_are_downloads_without_a_secret(own_world: World) -> None:
    session = own_world.start("alice", "screen")
    cookie = own_world.sign_in("alice")

    def get(name: str) -> str:
        answer = own_world.ask("GET", f"/sessions/{session.id}/connect/{name}", cookie=cookie)
        assert answer.status_code == 200
        assert answer.headers["content-disposition"] == f'attachment; filename="{name}"'
        assert answer.headers["x-content-type-options"] == "nosniff"
        return answer.text

    told = own_world.ask("GET", "/api/v1/ssh", cookie=cookie).json()
    assert get("portico_config") == told["config"]
    assert get("portico_known_hosts") == told["known_hosts"]
    port = re.search(r"localhost::(\d+)", list_commands(show(own_world))["viewer"])
    assert port, "the page of another session says another port"
    assert re.search(r"^ServerName=localhost::59\d\d$", get("desktop.tigervnc"), re.MULTILINE)
    assert "host=localhost" in get("desktop.vnc")
    for name in ("desktop.tigervnc", "desktop.vnc"):
        assert "password" not in get(name).lower()
        assert "alice" not in get(name)


def test_the_api_tells_what_the_files_are_made_of(own_world: World) -> None:
    told = own_world.ask("GET", "/api/v1/ssh", bearer=own_world.make_token("alice")).json()
    way = Way(
        host=told["host"], port=told["port"], user_name=told["user"], connect=told["connect"],
        host_keys=tuple(told["host_keys"]), host_ca=told["host_ca"],
    )  # fmt: skip
    assert (way.host, way.port, way.user_name) == ("localhost", 2222, "alice")
    assert way.connect == f"{own_world.config.run_dir}/ssh/connect"
    assert (told["config"], told["known_hosts"]) == (render_ssh_config(way), render_known_hosts(way))


def test_ssh_host_is_what_clients_are_told(tmp_path: Path) -> None:
    world = World(tmp_path, ssh_host="login.example.org", ssh_port=2200)
    told = world.ask("GET", "/api/v1/ssh", cookie=world.sign_in("alice")).json()
    assert "HostName login.example.org\n    Port 2200\n" in told["config"]
    world.close()


def test_root_is_told_that_it_does_not_come_in(own_world: World) -> None:
    assert own_world.ask("GET", "/api/v1/ssh", peer_uid=0).status_code == 403


def test_a_sessions_page_leads_there_once_it_is_ready(own_world: World) -> None:
    cookie = own_world.sign_in("alice")
    session = own_world.start("alice", "shell")
    assert (
        f'href="/sessions/{session.id}/connect"' in own_world.ask("GET", f"/sessions/{session.id}", cookie=cookie).text
    )


def test_vnc_passwords_are_shown_once_and_in_no_address(own_world: World) -> None:
    add_key(own_world, "alice")
    session, cookie = own_world.start("alice", "screen"), own_world.sign_in("alice")
    path = f"/sessions/{session.id}/connect"
    page = own_world.ask("GET", path, cookie=cookie).text
    assert "Make VNC passwords" in page and "Remove them" not in page
    answer = own_world.ask("POST", f"{path}/passwords", cookie=cookie)
    assert answer.status_code == 200 and "no-store" in answer.headers["cache-control"]
    commands = list_commands(answer.text)
    made = [commands["full"], commands["view_only"]]
    assert own_world.machine.passwords[session.id] == made
    assert all(re.fullmatch("[a-zA-Z2-9]{8}", one) for one in made) and made[0] != made[1]
    assert '<details id="viewer" open>' in answer.text
    page = own_world.ask("GET", path, cookie=cookie).text
    assert not any(one in page for one in made)
    assert "can't be shown again" in page and "Make new VNC passwords" in page
    again = list_commands(own_world.ask("POST", f"{path}/passwords", cookie=cookie).text)
    assert again["full"] not in made
    page = own_world.ask("POST", f"{path}/passwords/remove", cookie=cookie).text
    assert "Make VNC passwords" in page and own_world.machine.passwords[session.id] == []
    with own_world.store.read() as tx:
        rows = [(one.action, one.detail) for one in tx.list_audit(10) if one.target == session.id]
    assert rows[:3] == [("session:vnc-passwords", word) for word in ("removed", "made", "made")]


def test_only_a_desktop_that_runs_has_vnc_passwords(own_world: World) -> None:
    cookie = own_world.sign_in("alice")
    for app, state in (("shell", SessionState.READY), ("screen", SessionState.QUEUED), ("screen", SessionState.ENDED)):
        session = own_world.start("alice", app, state)
        for method in ("GET", "POST", "DELETE"):
            answer = own_world.ask(method, f"/api/v1/sessions/{session.id}/vnc-passwords", cookie=cookie)
            assert answer.status_code == 409, (app, state, method)
        page = own_world.ask("POST", f"/sessions/{session.id}/connect/passwords", cookie=cookie)
        assert page.status_code == 409
        assert session.id not in own_world.machine.passwords


def test_passwords_that_can_not_be_taken_down_are_not_good(own_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    session, cookie = own_world.start("alice", "screen"), own_world.sign_in("alice")

    def refuse(*args: object) -> None:
        raise Unavailable("The database is locked.")

    monkeypatch.setattr("portico.store.transaction.Transaction.add_audit", refuse)
    answer = own_world.ask("POST", f"/api/v1/sessions/{session.id}/vnc-passwords", cookie=cookie)
    assert answer.status_code == 503
    assert own_world.machine.passwords[session.id] == []


def test_the_first_time_begins_with_a_key_where_keys_are_taken(own_world: World, tmp_path: Path) -> None:
    page = show(own_world)
    assert list_commands(page)["key"].splitlines()[0] == "ssh-keygen -t ed25519"
    assert "PuTTYgen" in page
    (tmp_path / "other").mkdir()
    world = World(tmp_path / "other", ssh_keys=False)
    assert "key" not in list_commands(show(world))
    world.close()
