"""What goes wrong for real, and what people read then: a full disk, a locked or broken database, a malformed app."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from person import Person, TerminalClient
from running import PASSWORD, RunningPortico, find_free_ports, wait_until

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def apps_dir() -> Iterator[Path]:
    """Return a folder for apps of this test, which others can read; pytest's own are 0700."""
    with tempfile.TemporaryDirectory(prefix="pt-apps-", dir="/run") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture(scope="module")
def house(portico_factory: Callable[..., RunningPortico], apps_dir: Path) -> RunningPortico:
    """Return a Portico with two cores and a folder of apps of its own."""
    return portico_factory(settings={"cores": 2, "memory_gb": 4, "catalog_dirs": [str(apps_dir)]})


@pytest.fixture(scope="module")
def alice(house: RunningPortico) -> Person:
    """Return alice."""
    return house.user("alice")


def add_app(folder: Path, name: str, toml: str, script: str) -> None:
    """Put an app into the catalog; it is read at the next look."""
    (folder / name).mkdir(exist_ok=True)
    (folder / name / "job.sh").write_text(script)
    (folder / name / "app.toml").write_text(toml)
    (folder / name).chmod(0o755)


def ask(person: Person, **body: object) -> tuple[int, dict[str, str]]:
    """Ask for a session; return the status and the error."""
    answer = person.http.post("/api/v1/sessions", json=body)
    return answer.status_code, answer.json().get("error", {})


@pytest.mark.parametrize(
    ("body", "status", "field", "says"),
    [
        ({"app_id": "nonesuch"}, 404, "", "no app 'nonesuch'"),
        ({"app_id": "terminal", "hours": 1000}, 422, "hours", "Hours: from"),
        ({"app_id": "terminal", "hours": 0}, 422, "hours", "Hours: from"),
        ({"app_id": "terminal", "cores": 3}, 422, "cores", "offers 2 cores in all"),
        ({"app_id": "terminal", "memory_gb": 100}, 422, "memory_gb", "offers 4.0 GB"),
        ({"app_id": "desktop-xfce", "values": {"geometry": "1x1"}}, 422, "geometry", "one of"),
        ({"app_id": "jupyter", "values": {"folder": "a\nb"}}, 422, "folder", "no line breaks"),
        ({"app_id": "jupyter", "values": {"nope": "1"}}, 422, "nope", "has no field"),
        ({"app_id": "terminal", "title": "a\nb"}, 422, "title", "one line"),
        ({"app_id": "terminal", "coresss": 1}, 422, "", "coresss"),
    ],
)
def test_bad_input_is_told_at_its_field(
    alice: Person, body: dict[str, object], status: int, field: str, says: str
) -> None:
    found, error = ask(alice, **body)
    assert found == status
    assert says in error["message"] + error.get("why", "")
    assert not field or error["field"] == field


def test_the_form_says_it_too(house: RunningPortico, alice: Person) -> None:
    page = alice.http.post("/apps/terminal", data={"hours": "1000", "cores": "1", "memory_gb": "1"})
    assert page.status_code == 422
    assert "Hours: from" in page.text and 'role="alert"' in page.text


def test_a_malformed_app_is_told_to_admins_and_harms_no_other(
    house: RunningPortico, alice: Person, apps_dir: Path
) -> None:
    add_app(apps_dir, "broken", 'name = "Broken"\nreach = "carrier pigeon"\n', "#!/bin/sh\n")
    try:
        errors = house.admin().http.get("/api/v1/catalog/errors").json()
        assert "reach must be one of" in errors[0]["message"] and errors[0]["path"].endswith("broken/app.toml")
        assert "reach must be one of" in house.admin().http.get("/").text
        assert "carrier" not in alice.http.get("/").text
        assert {app["id"] for app in alice.http.get("/api/v1/apps").json()} >= {"terminal", "jupyter"}
    finally:
        (apps_dir / "broken/app.toml").unlink()
    assert house.admin().http.get("/api/v1/catalog/errors").json() == []


def test_a_missing_program_is_told_to_admins_and_hidden_from_users(
    house: RunningPortico, alice: Person, apps_dir: Path
) -> None:
    add_app(
        apps_dir, "ghost",
        'name = "Ghost"\nreach = "http"\ninstall = "apt-get install ghost"\n[needs]\nprograms = ["no-such-program"]\n',
        "#!/bin/sh\n",
    )  # fmt: skip
    status, error = ask(alice, app_id="ghost")
    assert (status, "no-such-program" in error["why"]) == (503, True)
    assert "Ghost" not in alice.http.get("/").text
    page = house.admin().http.get("/").text
    assert "no-such-program" in page and "apt-get install ghost" in page
    (apps_dir / "ghost/app.toml").unlink()


def test_a_failing_program_shows_its_last_words(house: RunningPortico, alice: Person, apps_dir: Path) -> None:
    add_app(apps_dir, "fails", 'name = "Fails"\nreach = "http"\n', "#!/bin/sh\necho last words >&2\nexit 7\n")
    session = alice.start("fails")
    ended = alice.wait(session["id"], "ended")
    assert (ended["reason"], ended["detail"]) == ("failed", "exit status 7")
    page = alice.http.get(f"/sessions/{session['id']}").text
    assert "exit status 7" in page and "last words" in page
    assert "last words" in alice.http.get("/").text


def test_a_program_that_never_answers_ends_with_a_reason(house: RunningPortico, alice: Person, apps_dir: Path) -> None:
    toml = 'name = "Mute"\nreach = "http"\n[ready]\ntimeout_s = 1\n'
    add_app(apps_dir, "mute", toml, "#!/bin/sh\necho I say nothing\nexec sleep 300\n")
    ended = alice.wait(alice.start("mute")["id"], "ended")
    assert ended["reason"] == "never-ready"


def test_first_come_first_served_and_cancel(house: RunningPortico, alice: Person, apps_dir: Path) -> None:
    add_app(
        apps_dir, "hold", 'name = "Hold"\nreach = "pty"\n[resources]\ncores = {default=1, minimum=1, maximum=2}\n',
        "#!/bin/sh\nexec sleep 300\n",
    )  # fmt: skip
    bob = house.user("bob")
    first = alice.start("terminal", cores=1)["id"]
    alice.wait(first)
    large = bob.start("terminal", cores=2)["id"]
    small = alice.start("terminal", cores=1)["id"]
    try:
        told = wait_until(lambda: "core" in bob.get(large)["waiting_for"] and bob.get(large), 10)
        assert told["state"] == "queued" and "1 more core" in told["waiting_for"]
        assert (
            "number 2"
            in wait_until(lambda: "number" in alice.get(small)["waiting_for"] and alice.get(small), 10)["waiting_for"]
        )
        assert alice.get(small)["state"] == "queued", "nobody overtakes, though one core is free"
        bob.http.post(f"/api/v1/sessions/{large}/stop").raise_for_status()
        assert bob.wait(large, "ended")["reason"] == "stopped"
        alice.wait(small)
    finally:
        for person, session_id in ((alice, first), (alice, small), (bob, large)):
            person.http.post(f"/api/v1/sessions/{session_id}/stop")
            person.wait(session_id, "ended")


def test_a_full_home_is_told_and_no_session_is_lost(house: RunningPortico, alice: Person) -> None:
    running = alice.start("terminal")["id"]
    alice.wait(running)
    dora = house.user("dora")
    dora.wait(dora.start("terminal")["id"])  # makes the account
    for session in dora.http.get("/api/v1/sessions").json():
        dora.http.post(f"/api/v1/sessions/{session['id']}/stop")
        dora.wait(session["id"], "ended")
    account = pwd.getpwnam(house.get_name("dora"))
    sessions = Path(account.pw_dir, ".local/share/portico/sessions")
    mounted = ["-t", "tmpfs", "-o", f"size=64k,uid={account.pw_uid},mode=700", "tmpfs", str(sessions)]
    subprocess.run(["mount", *mounted], check=True)
    try:
        filler = sessions / "filler"
        with contextlib.suppress(OSError), filler.open("wb") as file:
            file.write(b"x" * 65536)
        status, error = ask(dora, app_id="terminal")
        assert status == 503
        assert "home folder is full" in error["message"] and "Remove files" in error["hint"]
        assert [s for s in dora.http.get("/api/v1/sessions").json() if s["state"] != "ended"] == []
        filler.unlink()
        session_id = dora.start("terminal")["id"]
        dora.wait(session_id)
        dora.http.post(f"/api/v1/sessions/{session_id}/stop")
        dora.wait(session_id, "ended")
    finally:
        subprocess.run(["umount", "-l", str(sessions)], check=True)
    assert alice.get(running)["state"] == "ready"
    alice.http.post(f"/api/v1/sessions/{running}/stop")
    alice.wait(running, "ended")


@pytest.fixture
def terminal(alice: Person) -> Iterator[str]:
    """Return a running terminal of alice's."""
    session_id = alice.start("terminal")["id"]
    alice.wait(session_id)
    yield session_id
    alice.http.post(f"/api/v1/sessions/{session_id}/stop")
    alice.wait(session_id, "ended")


def test_a_locked_database_is_told_and_streams_go_on(house: RunningPortico, alice: Person, terminal: str) -> None:
    stream = TerminalClient(alice.open_stream(f"/sessions/{terminal}/stream"))
    stream.wait(lambda text: "$" in text)
    other = sqlite3.connect(house.state_dir / "portico.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        status, error = ask(alice, app_id="terminal")
        assert status == 503 and "database is busy" in error["message"]
        stream.type("echo still-$((1+1))\n")
        stream.wait(lambda text: "still-2" in text)
        assert alice.get(terminal)["state"] == "ready", "reading goes on"
    finally:
        other.execute("ROLLBACK")
        other.close()
    live = [s for s in alice.http.get("/api/v1/sessions").json() if s["state"] != "ended"]
    assert [s["id"] for s in live] == [terminal], "nothing half-made is left"


def give_to_portico(path: Path, data: bytes) -> None:
    """Write a file as the service account would have."""
    account = pwd.getpwnam("portico")
    path.write_bytes(data)
    os.chown(path, account.pw_uid, account.pw_gid)


def test_a_lost_database_loses_no_session(house: RunningPortico, alice: Person, terminal: str) -> None:
    stream = TerminalClient(alice.open_stream(f"/sessions/{terminal}/stream"))
    stream.wait(lambda text: "$" in text)
    stream.type("kept=yes\n")
    house.stop()
    database = house.state_dir / "portico.db"
    kept = {path: path.read_bytes() for path in house.state_dir.glob("portico.db*")}
    for path in kept:
        path.unlink()
    spool = list((house.state_dir / "local").glob("*.json"))
    for path in spool:
        path.unlink()
    try:
        # Broken: it says so, and touches nothing.
        give_to_portico(database, b"this is no database at all" * 100)
        with pytest.raises(RuntimeError) as refused:
            house.start()
        assert "is damaged" in str(refused.value) and "backup" in str(refused.value)
        database.unlink()
        # Gone: a new one; alice is added again, and her session is there.
        house.start()
        link = json.loads(house.cli("user", "add", house.get_name("alice"), "--json").stdout)["link"]
        again = Person(house.url)
        again.enrol(link.partition("#")[2], PASSWORD)
        again.sign_in(house.get_name("alice"), PASSWORD)
        wait_until(lambda: [s["id"] for s in again.http.get("/api/v1/sessions").json()] == [terminal], 60)
        again.wait(terminal)
        found = TerminalClient(again.open_stream(f"/sessions/{terminal}/stream"))
        found.type("echo kept-$kept\n")
        found.wait(lambda text: "kept-yes" in text)
        again.close()
    finally:
        house.stop()
        for path in house.state_dir.glob("portico.db*"):
            path.unlink()
        for path, data in kept.items():
            give_to_portico(path, data)
        house.start()
    alice.wait(terminal)


@pytest.mark.parametrize("victims", [["gateway"], ["portal"], ["broker"], ["supervisor"]])
def test_each_process_may_die(house: RunningPortico, alice: Person, terminal: str, victims: list[str]) -> None:
    stream = TerminalClient(alice.open_stream(f"/sessions/{terminal}/stream"))
    stream.wait(lambda text: "$" in text)
    pids = house.pids
    for name in victims:
        os.kill(pids[name], signal.SIGKILL)
    if victims == ["supervisor"]:
        house._reap()
        wait_until(lambda: not any(Path(f"/proc/{pid}/cwd").exists() for pid in pids.values()), 10, "all ended with it")
        house.start()
    else:
        wait_until(lambda: house.pids.get(victims[0]) not in (None, pids[victims[0]]), 10, "a new one")
    if victims in (["portal"], ["broker"]):
        stream.type("echo open-$((40+2))\n")
        stream.wait(lambda text: "open-42" in text)

    def is_back() -> bool:
        try:
            return bool(alice.get(terminal)["state"] == "ready")
        except Exception:  # refused, cut or 503: it is on its way
            return False

    wait_until(is_back, 20, "the portal")
    again = TerminalClient(alice.open_stream(f"/sessions/{terminal}/stream"))
    again.type("echo back-$((40+2))\n")
    again.wait(lambda text: "back-42" in text)
    # And what needs the broker works again.
    new = alice.start("terminal")["id"]
    alice.wait(new)
    alice.http.post(f"/api/v1/sessions/{new}/stop").raise_for_status()
    alice.wait(new, "ended")


def test_a_taken_port_is_told_by_its_holder(house: RunningPortico) -> None:
    port = find_free_ports()[0]
    done = subprocess.run(
        [*house.get_command(), "up", "--no-install", "--port", str(house.port), "--apps-port", str(port),
         "--state-dir", f"/run/{house.instance}x/s", "--run-dir", f"/run/{house.instance}x/r"],
        env=house.get_env(), capture_output=True, text=True, timeout=60, check=False, cwd="/",
    )  # fmt: skip
    subprocess.run(["rm", "-rf", f"/run/{house.instance}x"], check=True)
    assert done.returncode == 1
    assert str(house.port) in done.stderr and "python" in done.stderr


def test_memory_and_time_have_limits(house: RunningPortico, alice: Person, apps_dir: Path) -> None:
    script = '#!/bin/sh\nexec "$PORTICO_PYTHON" -c "x = bytearray(3 * 10**9); import time; time.sleep(60)"\n'
    add_app(apps_dir, "hungry", 'name = "Hungry"\nreach = "http"\n', script)
    ended = alice.wait(alice.start("hungry", memory_gb=1)["id"], "ended")
    assert ended["reason"] == "out-of-memory"
    toml = 'name = "Long"\nreach = "pty"\n[resources]\nhours = {default=0.001, minimum=0.0001, maximum=1}\n'
    add_app(apps_dir, "long", toml, "#!/bin/sh\nexec sleep 300\n")
    ended = alice.wait(alice.start("long")["id"], "ended")
    assert ended["reason"] == "time-limit"
