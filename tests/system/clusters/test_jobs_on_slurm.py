"""Batch jobs on a real Slurm through pages, API and command line, and what bob tries with alice's."""

from __future__ import annotations

import os
import pwd
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from person import Person
from running import wait_until
from slurm_site import Site

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]
JOBS = "/api/v1/clusters/demo/jobs"
COUNT = "#!/bin/bash\nfor i in $(seq 1 1000); do echo line $i; sleep 0.1; done\n"


def submit(who: Person, script: str = COUNT, **wanted: Any) -> str:
    """Submit a job; return its id."""
    answer = who.http.post(JOBS, json={"script": script, "memory_gb": 0.1, **wanted})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def wait(who: Person, job_id: str, state: str, timeout_s: float = 60) -> dict[str, Any]:
    """Wait until a job is in a state."""

    def look() -> dict[str, Any] | None:
        answer = who.http.get(f"{JOBS}/{job_id}")
        job: dict[str, Any] = answer.json()
        return job if answer.status_code == 200 and job["state"] == state else None

    found: dict[str, Any] = wait_until(look, timeout_s, f"job {job_id} {state}")
    return found


def test_a_job_from_its_submission_to_its_end(site: Site) -> None:
    alice = site.alice
    job_id = submit(alice, name="counting", cores=1, hours=0.5)
    job = wait(alice, job_id, "running")
    assert job["name"] == "counting" and job["node_names"] and job["core_hours_at_limit"] == 0.5
    text = wait_until(lambda: alice.http.get(f"{JOBS}/{job_id}/output?lines=5").json().get("text"), 20, "output")
    assert "line" in text
    page = alice.http.get(f"/jobs/demo/{job_id}").text
    assert "counting" in page and "core-hours" in page and "line 1" in page
    assert "counting" in alice.http.get("/jobs?text=count").text
    assert alice.http.get(f"{JOBS}/{job_id}/script").json()["text"] == COUNT
    again = alice.http.get(f"/jobs/new?like={job_id}").text
    assert "seq 1 1000" in again and 'value="0.5"' in again
    assert alice.http.post(f"{JOBS}/{job_id}/cancel").status_code == 204
    assert wait(alice, job_id, "ended")["reason"] == "cancelled"
    answer = alice.http.post(f"{JOBS}/{job_id}/cancel")
    assert answer.status_code == 409 and "ended already" in answer.text
    wait_until(
        lambda: job_id in {one["id"] for one in alice.http.get("/api/v1/clusters/demo/history").json()}, 60, "it"
    )
    assert "counting" in alice.http.get("/jobs/history").text


def test_hold_release_limit_and_dependency(site: Site) -> None:
    alice = site.alice
    held = submit(alice, "#!/bin/sh\ntrue\n", held=True, hours=1)
    wait(alice, held, "queued")
    wait_until(lambda: alice.http.get(f"{JOBS}/{held}").json()["held"], 20, "that it is held")
    assert alice.http.patch(f"{JOBS}/{held}", json={"hours": 0.5}).status_code == 204
    wait_until(lambda: alice.http.get(f"{JOBS}/{held}").json()["limit_s"] == 1800, 20, "the new limit")
    later = submit(alice, "#!/bin/sh\ntrue\n", dependency=f"afterok:{held}")
    wait(alice, later, "queued")
    wait_until(lambda: "depends" in alice.http.get(f"{JOBS}/{later}").json()["waiting_for"], 20, "what it waits for")
    assert alice.http.post(f"{JOBS}/{held}/release").status_code == 204
    wait(alice, held, "ended")
    assert wait(alice, later, "ended")["reason"] == "finished"


def test_an_array_and_a_job_on_an_elastic_node(site: Site) -> None:
    alice = site.alice
    submit(alice, "#!/bin/sh\nsleep 2; echo task $SLURM_ARRAY_TASK_ID\n", name="many", array="1-6%3")
    elastic = submit(alice, "#!/bin/sh\nhostname\n", name="far", partition="elastic")
    wait_until(lambda: len(alice.http.get(JOBS, params={"text": "many"}).json()["jobs"]) > 1, 30, "tasks")
    done = wait(alice, elastic, "ended", 120)  # Slurm takes up to half a minute to start the first job on a new node
    assert done["reason"] == "finished" and done["node_names"][0] in site.slurm.elastic


def test_a_file_of_ones_own_and_of_others(site: Site) -> None:
    account = pwd.getpwnam(site.house.get_name("alice"))
    script = Path(account.pw_dir) / "my job.sh"
    script.write_text("#!/bin/sh\nid -un\n")
    os.chown(script, account.pw_uid, account.pw_gid)
    script.chmod(0o600)
    job_id = submit(site.alice, "", path=str(script))
    assert wait(site.alice, job_id, "ended")["reason"] == "finished"
    assert site.house.get_name("alice") in site.alice.http.get(f"{JOBS}/{job_id}/output").json()["text"]
    for path in (str(script), "/etc/shadow", f"{site.house.state_dir}/portico.db"):
        answer = site.bob.http.post(JOBS, json={"path": path})
        assert answer.status_code == 404 and "ermission" in answer.text, answer.text


def test_bob_reaches_no_job_of_alices(site: Site) -> None:
    job_id = submit(site.alice)
    wait(site.alice, job_id, "running")
    bob = site.bob
    for method, path, body in (
        ("GET", "", None), ("GET", "/script", None), ("GET", "/output", None), ("POST", "/cancel", None),
        ("POST", "/hold", None), ("POST", "/requeue", None), ("PATCH", "", {"hours": 1}),
    ):  # fmt: skip
        assert bob.http.request(method, f"{JOBS}/{job_id}{path}", json=body).status_code == 404, (method, path)
    assert bob.http.get(f"/jobs/demo/{job_id}").status_code == 404
    assert bob.http.post(f"/jobs/demo/{job_id}/do/cancel").status_code == 404
    assert bob.http.get(JOBS, params={"user": site.house.get_name("alice")}).json()["total"] == 0
    assert bob.http.get(JOBS, params={"everyone": "true"}).status_code == 403
    done = site.house.cli("job", "cancel", job_id, user=site.house.get_name("bob"), check=False)
    assert done.returncode == 1 and "no such job" in done.stderr
    assert site.alice.http.get(f"{JOBS}/{job_id}").json()["state"] == "running"


def test_output_that_leads_elsewhere_harms_nobody(site: Site) -> None:
    account = pwd.getpwnam(site.house.get_name("alice"))
    home = Path(account.pw_dir)
    for name, make in (
        ("link", lambda path: path.symlink_to("/etc/shadow")),
        ("pipe", lambda path: os.mkfifo(path)),
        ("zero", lambda path: path.symlink_to("/dev/zero")),
    ):
        path = home / f"{name}.out"
        submitted = submit(site.alice, "#!/bin/sh\nsleep 60\n", output=str(path))
        wait(site.alice, submitted, "running")
        path.unlink(missing_ok=True)
        make(path)
        os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)
        began = time.monotonic()
        answer = site.alice.http.get(f"{JOBS}/{submitted}/output")
        assert "root:" not in answer.text and time.monotonic() - began < 20
        assert site.alice.http.get("/api/v1/me").status_code == 200
        site.alice.http.post(f"{JOBS}/{submitted}/cancel")


@pytest.mark.parametrize("field", ["name", "partition", "account", "qos", "array", "dependency", "gres", "constraint",
                                   "output", "error", "folder"])  # fmt: skip
def test_no_field_becomes_a_directive(site: Site, field: str) -> None:
    for text in ("x\n#SBATCH --comment=owned", "x\r\n#SBATCH --hold", "--uid=0", "x --uid=0", "$(id)", "x;id"):
        answer = site.alice.http.post(JOBS, json={"script": "#!/bin/sh\ntrue\n", "memory_gb": 0.1, field: text})
        if answer.status_code == 201:  # a name may hold spaces and dollars: then that is the job's name
            path = f"{JOBS}/{answer.json()['id']}"
            wait(site.alice, answer.json()["id"], "ended", 60)
            assert field == "name"
            wait_until(lambda: site.alice.http.get(path).json()["name"] == text, 20, text)  # noqa: B023
        else:
            assert answer.status_code == 422 and answer.json()["error"]["field"] == field, answer.text


def test_a_strange_name_in_the_queue_breaks_no_table(site: Site) -> None:
    name = site.house.get_name("bob")
    account = pwd.getpwnam(name)
    strange = b"<script>alert(1)</script>|\xff\xfe\x1b[31m'\"&"
    done = subprocess.run(
        ["sbatch", b"--job-name=" + strange, "--mem=100", "--wrap", "sleep 30"], cwd=account.pw_dir,
        env={"PATH": "/usr/bin:/bin", "SLURM_CONF": str(site.slurm.conf), "HOME": account.pw_dir},
        user=account.pw_uid, group=account.pw_gid, extra_groups=[], capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    jobs = wait_until(lambda: site.bob.http.get(JOBS, params={"text": "alert"}).json()["jobs"], 20, "the job")
    assert jobs[0]["name"].isprintable()
    page = site.bob.http.get("/jobs?text=alert").text
    assert "<script>alert" not in page and "&lt;script&gt;alert" in page


def test_a_controller_that_is_away_is_told_and_loses_nothing(site: Site) -> None:
    site.slurm.stop_controller()
    try:
        answer = site.alice.http.post(JOBS, json={"script": "#!/bin/sh\nsleep 5\n", "name": "kept", "memory_gb": 0.1})
        assert answer.status_code == 201 and answer.json()["id"] == "", answer.text
        wait_until(lambda: site.alice.http.get(JOBS).json()["trouble"], 30, "that the table says it")
        assert "as of" in site.alice.http.get("/jobs").text
    finally:
        site.slurm.start_controller()
    jobs = wait_until(lambda: site.alice.http.get(JOBS, params={"text": "kept"}).json()["jobs"], 60, "the job")
    assert len(jobs) == 1


def test_the_cluster_is_drawn(site: Site) -> None:
    page = site.alice.http.get("/clusters/demo").text
    for node in site.slurm.nodes:
        assert node in page
    assert site.alice.http.get("/clusters/nowhere").status_code == 404
