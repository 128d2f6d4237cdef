"""Batch jobs on a machine without Slurm: a whole Portico, real users, and what is left of a job when all is killed."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from person import Person
from running import RunningPortico, wait_until

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]
JOBS = "/api/v1/clusters/local/jobs"
FOREVER = "#!/bin/sh\necho begun >> starts; echo $$; sleep 1000\n"


@pytest.fixture(scope="module")
def house(portico_factory: Callable[..., RunningPortico]) -> RunningPortico:
    """Return a Portico with two cores, on which a job may run for an hour."""
    return portico_factory(settings={"cores": 2, "memory_gb": 4, "max_hours": 1})


@pytest.fixture(scope="module")
def alice(house: RunningPortico) -> Person:
    """Return alice."""
    return house.user("alice")


@pytest.fixture(scope="module")
def bob(house: RunningPortico) -> Person:
    """Return bob."""
    return house.user("bob")


@pytest.fixture(autouse=True)
def nothing_is_left(house: RunningPortico, alice: Person) -> Any:
    """Cancel what a test has left in the queue."""
    yield
    for person in (alice, house.user("bob")):
        for job in person.http.get(JOBS).json()["jobs"]:
            if job["state"] != "ended":
                person.http.post(f"{JOBS}/{job['id']}/cancel")
        wait_until(lambda p=person: all(j["state"] == "ended" for j in p.http.get(JOBS).json()["jobs"]), 30, "the end")


def submit(who: Person, script: str = FOREVER, **wanted: Any) -> str:
    """Submit a small job; return its id."""
    answer = who.http.post(JOBS, json={"script": script, "memory_gb": 0.1, **wanted})
    assert answer.status_code == 201, answer.text
    assert answer.json()["id"]
    return str(answer.json()["id"])


def look(who: Person, job_id: str) -> dict[str, Any]:
    """Return a job as the API tells it."""
    answer = who.http.get(f"{JOBS}/{job_id}")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def wait(who: Person, job_id: str, state: str, timeout_s: float = 30) -> dict[str, Any]:
    """Wait until a job is in a state."""
    wait_until(lambda: look(who, job_id)["state"] == state, timeout_s, f"job {job_id} {state}: {look(who, job_id)}")
    return look(who, job_id)


def find_home(house: RunningPortico, name: str) -> Path:
    """Return a user's home."""
    return Path(pwd.getpwnam(house.get_name(name)).pw_dir)


def test_a_job_writes_as_its_user_and_is_in_the_history(house: RunningPortico, alice: Person) -> None:
    script = '#!/bin/bash\nid -un; pwd; echo "$PORTICO_JOB_ID $PORTICO_CORES"; echo oops >&2; kill -0 $$; sleep 1.5\n'
    job_id = submit(alice, script, name="first one", cores=2)
    job = wait(alice, job_id, "ended")
    assert (job["reason"], job["name"], job["cores"], job["limit_s"]) == ("finished", "first one", 2, 3600)
    output = find_home(house, "alice") / f"portico-{job_id}.out"
    name, home = house.get_name("alice"), find_home(house, "alice")
    assert output.read_text() == f"{name}\n{home}\n{job_id} 2\noops\n"
    status = output.stat()
    assert status.st_uid == pwd.getpwnam(name).pw_uid and status.st_mode & 0o777 == 0o600
    assert job["details"]["output"] == job["details"]["error"] == str(output)
    assert job["details"]["folder"] == str(home)
    if list(house.iter_cell_folders()):
        assert job["details"]["memory_used_bytes"] > 0 and job["details"]["cpu_used_s"] >= 0
    assert "oops" in alice.http.get(f"{JOBS}/{job_id}/output").json()["text"]
    assert alice.http.get(f"{JOBS}/{job_id}/script").json()["text"] == script
    assert job_id in {one["id"] for one in alice.http.get("/api/v1/clusters/local/history").json()}
    assert "first one" in alice.http.get("/jobs/history").text
    page = alice.http.get(f"/jobs/local/{job_id}").text
    assert "oops" in page and "core-hours" in page and "Submit again" in page
    folder = home / ".local/share/portico/sessions" / job_id
    wait_until(lambda: not folder.exists(), 10, "that its folder is gone")


def test_files_of_its_own_choice(house: RunningPortico, alice: Person) -> None:
    home = find_home(house, "alice")
    subprocess.run(["install", "-d", "-o", house.get_name("alice"), home / "work"], check=True)
    where = {"folder": f"{home}/work", "output": "out-%j", "error": "err-%j"}
    job_id = submit(alice, "#!/bin/sh\npwd; echo bad >&2\n", **where)
    assert wait(alice, job_id, "ended")["reason"] == "finished"
    assert (home / f"work/out-{job_id}").read_text() == f"{home}/work\n"
    assert alice.http.get(f"{JOBS}/{job_id}/output?error=true").json()["text"] == "bad"
    for changes, says in (
        ({"folder": "/root"}, "can't work in /root"),
        ({"output": "/etc/portico-out"}, "can't be written"),
        ({"output": "no/such/folder"}, "can't be written"),
        ({"script": "#!/no/such/program\n"}, "names a program that is not here"),
    ):
        job = wait(alice, submit(alice, **({"script": "#!/bin/sh\n"} | changes)), "ended")
        assert job["reason"] == "not-started" and says in job["detail"], job
    assert not Path("/etc/portico-out").exists()


def test_a_job_is_cancelled_with_all_that_it_started(house: RunningPortico, alice: Person) -> None:
    job_id = submit(alice, "#!/bin/sh\necho $$\nsetsid sleep 4321 &\nsleep 4321\n")
    wait(alice, job_id, "running")
    assert alice.http.post(f"{JOBS}/{job_id}/cancel").status_code == 204
    job = wait(alice, job_id, "ended")
    assert job["reason"] == "stopped" and job["actions"] == []
    answer = alice.http.post(f"{JOBS}/{job_id}/cancel")
    assert answer.status_code == 409 and "ended already" in answer.text
    wait_until(lambda: count_processes(house, "alice", b"4321") == 0, 10, "the end of its children")


def count_processes(house: RunningPortico, name: str, word: bytes) -> int:
    """Return how many of a user's processes have a word in their command."""
    uid, found = pwd.getpwnam(house.get_name(name)).pw_uid, 0
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            found += path.stat().st_uid == uid and word in (path / "cmdline").read_bytes().split(b"\0")
    return found


def test_limits_of_time_and_memory(house: RunningPortico, alice: Person) -> None:
    late = submit(alice, "#!/bin/sh\ntrap '' TERM\nsleep 1000 & wait; wait\n", hours=2 / 3600)
    greedy = submit(alice, "#!/bin/sh\nexec python3 -c 'x = bytearray(300_000_000); import time; time.sleep(30)'\n")
    assert wait(alice, greedy, "ended")["reason"] == "out-of-memory"
    assert wait(alice, late, "ended")["reason"] == "time-limit"


def test_hold_release_and_another_limit(alice: Person) -> None:
    job_id = submit(alice, held=True)
    job = look(alice, job_id)
    assert (job["state"], job["held"], job["actions"]) == ("queued", True, ["cancel", "release"])
    assert "release" in job["waiting_for"]
    assert alice.http.patch(f"{JOBS}/{job_id}", json={"hours": 0.5}).status_code == 204
    assert look(alice, job_id)["limit_s"] == 1800
    answer = alice.http.patch(f"{JOBS}/{job_id}", json={"hours": 2})
    assert answer.status_code == 422 and "1 hours at most" in answer.text
    assert alice.http.post(f"{JOBS}/{job_id}/release").status_code == 204
    ends = wait(alice, job_id, "running")["ends"]
    assert alice.http.patch(f"{JOBS}/{job_id}", json={"hours": 0.75}).status_code == 204
    assert look(alice, job_id)["limit_s"] == 2700 and look(alice, job_id)["ends"] > ends
    for action in ("hold", "suspend", "requeue"):
        assert alice.http.post(f"{JOBS}/{job_id}/{action}").status_code == 409


def test_everything_is_killed_while_a_job_runs(house: RunningPortico, alice: Person) -> None:
    home = find_home(house, "alice")
    (home / "starts").unlink(missing_ok=True)
    running = submit(alice, "#!/bin/sh\necho begun >> starts; until test -e go; do sleep 0.1; done; exit 3\n", cores=2)
    wait(alice, running, "running")
    waiting = submit(alice, "#!/bin/sh\necho begun >> starts\n", cores=2)
    wait_until(lambda: (home / "starts").exists(), 10, "its first line")
    before = look(alice, running)
    house.kill()
    house.start()
    again = wait(alice, running, "running")
    assert again["started"] == before["started"] and look(alice, waiting)["state"] == "queued"
    house.kill()
    (home / "go").touch()  # it ends while nobody looks
    time.sleep(1)
    house.start()
    job = wait(alice, running, "ended")
    assert (job["reason"], job["detail"]) == ("failed", "exit status 3")
    assert wait(alice, waiting, "ended")["reason"] == "finished"
    assert (home / "starts").read_text() == "begun\nbegun\n"
    (home / "go").unlink()
    house.kill()
    house.start()
    assert {running, waiting} <= {one["id"] for one in alice.http.get("/api/v1/clusters/local/history").json()}


def test_a_lost_spool_loses_no_running_job(house: RunningPortico, alice: Person) -> None:
    job_id = submit(alice, name="kept", hours=0.5)
    wait(alice, job_id, "running")
    before = [one["id"] for one in alice.http.get("/api/v1/sessions").json()]
    house.kill()
    for path in (house.state_dir / "local").glob("*.json"):
        path.unlink()
    house.start()
    wait_until(lambda: alice.http.get(f"{JOBS}/{job_id}").status_code == 200, 40, "that it is found again")
    job = look(alice, job_id)
    assert (job["state"], job["name"], job["limit_s"]) == ("running", "kept", 1800)
    assert [one["id"] for one in alice.http.get("/api/v1/sessions").json()] == before, "it is no session"
    assert alice.http.get(f"{JOBS}/{job_id}/script").status_code == 404
    alice.http.post(f"{JOBS}/{job_id}/cancel")
    assert wait(alice, job_id, "ended")["reason"] == "stopped"


def test_bob_reaches_no_job_of_alices_and_an_admin_cancels(house: RunningPortico, alice: Person, bob: Person) -> None:
    bobs = submit(bob, "#!/bin/sh\ntrue\n")
    wait(bob, bobs, "ended")
    job_id = submit(alice)
    wait(alice, job_id, "running")
    for method, path, body in (
        ("GET", "", None), ("GET", "/script", None), ("GET", "/output", None), ("POST", "/cancel", None),
        ("POST", "/hold", None), ("PATCH", "", {"hours": 1}),
    ):  # fmt: skip
        assert bob.http.request(method, f"{JOBS}/{job_id}{path}", json=body).status_code == 404, (method, path)
    assert bob.http.get(f"/jobs/local/{job_id}").status_code == 404
    assert job_id not in bob.http.get(JOBS).text and job_id not in bob.http.get("/api/v1/clusters/local/history").text
    answer = bob.http.post(JOBS, json={"script": "#!/bin/sh\n", "dependency": f"afterany:{job_id}"})
    assert answer.status_code == 422 and answer.json()["error"]["field"] == "dependency"
    admin = house.admin()
    assert admin.http.get(f"{JOBS}/{job_id}").json()["actions"] == ["cancel"]
    assert admin.http.get(f"{JOBS}/{job_id}/script").status_code == 403
    assert admin.http.post(f"{JOBS}/{job_id}/cancel").status_code == 204
    wait(alice, job_id, "ended")


@pytest.mark.parametrize(
    ("field", "value"),
    [(name, "a\nb") for name in ("name", "partition", "array", "dependency", "output", "error", "gres")]
    + [("folder", "/a\nb"), ("partition", "batch"), ("nodes", 2), ("gres", "gpu:1"), ("account", "a"), ("qos", "q")]
    + [("exclusive", True), ("requeue", True), ("cores", 3), ("memory_gb", 5), ("hours", 2), ("array", "1-100000")]
    + [("script", "echo hello\n"), ("script", "\ufeff#!/bin/sh\ntrue\n"), ("folder", "relative")],
)
def test_what_makes_no_sense_here_is_refused_at_its_field(alice: Person, field: str, value: Any) -> None:
    answer = alice.http.post(JOBS, json={"script": "#!/bin/sh\n", field: value})
    error = answer.json()["error"]
    assert answer.status_code == 422 and error["field"] == field and error["message"], answer.text
    if field not in ("cores", "memory_gb"):
        assert error.get("hint"), error


def test_an_array_and_what_waits_for_it(house: RunningPortico, alice: Person) -> None:
    array = submit(alice, "#!/bin/sh\necho $SLURM_ARRAY_TASK_ID $PORTICO_ARRAY_TASK_ID; sleep 0.5\n", array="3-5%1")
    after = submit(alice, "#!/bin/sh\ntrue\n", dependency=f"afterok:{array}")
    shown = {job["shown_id"]: job for job in alice.http.get(JOBS).json()["jobs"]}
    assert {f"{array}_3", f"{array}_4", f"{array}_5"} <= shown.keys()
    assert sum(job["state"] == "running" for job in shown.values()) <= 1
    done = wait(alice, after, "ended")
    tasks = [look(alice, f"{array}_{number}") for number in (3, 4, 5)]
    assert [task["reason"] for task in tasks] == ["finished"] * 3
    assert max(task["ends"] for task in tasks) <= done["started"]
    texts = [(find_home(house, "alice") / f"portico-{task['id']}.out").read_text() for task in tasks]
    assert texts == ["3 3\n", "4 4\n", "5 5\n"]
    bad = submit(alice, "#!/bin/sh\nsleep 0.5; exit 1\n")
    never = wait(alice, submit(alice, "#!/bin/sh\n", dependency=f"afterok:{bad}"), "ended")
    assert never["reason"] == "not-started" and "did not succeed" in never["detail"]


def test_a_full_home_is_told(house: RunningPortico) -> None:
    dora = house.user("dora")
    wait(dora, submit(dora, "#!/bin/sh\ntrue\n"), "ended")
    account = pwd.getpwnam(house.get_name("dora"))
    jobs = Path(account.pw_dir, ".local/share/portico/sessions")
    mounted = ["-t", "tmpfs", "-o", f"size=64k,uid={account.pw_uid},mode=700", "tmpfs", str(jobs)]
    subprocess.run(["mount", *mounted], check=True)
    try:
        with contextlib.suppress(OSError), (jobs / "filler").open("wb") as file:
            file.write(b"x" * 65536)
        answer = dora.http.post(JOBS, json={"script": "#!/bin/sh\n"})
        assert answer.status_code == 503 and "home folder is full" in answer.json()["error"]["message"], answer.text
        page = dora.http.post("/jobs", data={"cluster": "local", "script": "#!/bin/sh\n"})
        assert "home folder is full" in page.text
        assert [job for job in dora.http.get(JOBS).json()["jobs"] if job["state"] != "ended"] == []
    finally:
        subprocess.run(["umount", "-l", str(jobs)], check=True)


def test_sessions_and_jobs_share_the_machine(alice: Person) -> None:
    job_id = submit(alice, cores=2)
    wait(alice, job_id, "running")
    next_job = submit(alice, cores=2)
    session = alice.start("terminal", cores=1)["id"]
    wait_until(lambda: "core" in alice.get(session)["waiting_for"], 10, "what it waits for")
    assert "number 2" in look(alice, next_job)["waiting_for"], "a session comes before jobs"
    alice.http.post(f"{JOBS}/{job_id}/cancel")
    alice.wait(session)
    assert look(alice, next_job)["state"] == "queued"
    listed = {job["id"]: job for job in alice.http.get(JOBS).json()["jobs"]}
    assert listed[session]["name"] == "session"
    assert alice.http.patch(f"{JOBS}/{session}", json={"hours": 0.5}).status_code == 409
    alice.http.post(f"/api/v1/sessions/{session}/stop")
    alice.wait(session, "ended")
    wait(alice, next_job, "running")
    assert session not in {one["id"] for one in alice.http.get("/api/v1/clusters/local/history").json()}


def test_pages_and_command_line(house: RunningPortico, alice: Person) -> None:
    form = alice.http.get("/jobs/new").text
    assert 'name="script"' in form and 'name="partition"' not in form and 'name="gres"' not in form
    answer = alice.http.post("/jobs", data={"cluster": "local", "script": "#!/bin/sh\nsleep 1\n", "memory_gb": "0.1"})
    assert answer.status_code == 303 and answer.headers["location"].startswith("/jobs/local/")
    script = Path(f"/run/pt-{house.suffix}-job.sh")
    script.write_text("#!/bin/sh\necho from the command line\n")
    try:
        os.chmod(script, 0o644)
        name = house.get_name("alice")
        job_id = house.cli("job", "submit", str(script), "--memory-gb", "0.1", user=name).stdout.strip()
        again = house.cli("job", "again", job_id, "--name", "twice", "--memory-gb", "0.1", user=name).stdout.strip()
        found = json.loads(house.cli("job", "show", again, "--json", user=name).stdout)
        assert again != job_id and found["name"] == "twice" and found["limit_s"] == 3600
        scripts = [house.cli("job", "script", one, user=name).stdout for one in (job_id, again)]
        assert scripts[0] == scripts[1] == script.read_text()
        wait(alice, job_id, "ended")
        assert "from the command line" in house.cli("job", "tail", job_id, user=name).stdout
        assert job_id in house.cli("job", "history", user=name).stdout
        done = house.cli("job", "cancel", job_id, user=name, check=False)
        assert done.returncode == 1 and "ended already" in done.stderr
    finally:
        script.unlink()
