"""Reservations of a real Slurm: offered to whom they are for, for jobs, sessions and the seats of an event."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from guest import Guest
from running import wait_until
from slurm_site import Site

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]
JOBS = "/api/v1/clusters/demo/jobs"
SCRIPT = "#!/bin/sh\nsleep 60\n"


@pytest.fixture
def course(site: Site) -> Iterator[str]:
    """Return a node that is kept for alice, under the name of course."""
    node = site.slurm.nodes[0]
    # A job of another test may still be ending on that node.
    site.slurm.run(
        "scontrol", "create", "reservation", "ReservationName=course", "StartTime=now", "Duration=60",
        f"Users={site.house.get_name('alice')}", f"Nodes={node}", "Flags=IGNORE_JOBS",
    )  # fmt: skip
    yield node
    site.cancel_jobs()
    wait_until(lambda: not site.slurm.run("squeue", "-h", "-R", "course").strip(), 60, "the end of its jobs")
    site.slurm.run("scontrol", "delete", "ReservationName=course")


def find_reservation(site: Site, job_id: str) -> str:
    return site.slurm.run("squeue", "-a", "-h", "-j", job_id, "-o", "%v|%N").strip()


def offers(site: Site, name: str) -> set[str]:
    who = {"alice": site.alice, "bob": site.bob}[name]
    found = who.http.get("/api/v1/clusters/demo/offers").json()
    return {one for offer in found for one in offer["reservations"]}


def test_a_job_runs_where_it_is_reserved(site: Site, course: str, tmp_path: Path) -> None:
    wait_until(lambda: offers(site, "alice") == {"course"}, 30, "the offer")
    assert offers(site, "bob") == set()
    assert '<option data-partitions="batch' in site.alice.http.get("/jobs/new?cluster=demo").text
    body = {"script": SCRIPT, "memory_gb": 0.1, "reservation": "course"}
    job_id = str(site.alice.http.post(JOBS, json=body).json()["id"])
    wait_until(lambda: find_reservation(site, job_id) == f"course|{course}", 60, "the job there")
    script = tmp_path / "job.sh"
    script.write_text(SCRIPT)
    tmp_path.chmod(0o755)
    more = ("job", "submit", "-", "--cluster", "demo", "--reservation", "course", "--memory-gb", "0.1")
    done = site.house.cli(*more, user=site.house.get_name("alice"), stdin=None, input=SCRIPT)
    assert find_reservation(site, done.stdout.strip()).startswith("course|")


def test_others_are_told_what_stands_against_it(site: Site, course: str) -> None:
    for who, name in ((site.bob, "course"), (site.alice, "nope"), (site.alice, "a\nb")):
        answer = who.http.post(JOBS, json={"script": SCRIPT, "memory_gb": 0.1, "reservation": name})
        error = answer.json()["error"]
        assert answer.status_code == 422 and error["field"] == "reservation" and "reservation" in error["message"]
    answer = site.bob.http.post(
        "/api/v1/sessions", json={"app_id": "terminal", "cluster": "demo", "placement": {"reservation": "course"}}
    )
    assert answer.status_code == 422 and answer.json()["error"]["field"] == "reservation"


def test_a_session_runs_where_it_is_reserved(site: Site, course: str) -> None:
    wait_until(lambda: offers(site, "alice") == {"course"}, 30, "the offer")
    assert "Reservation" in site.alice.http.get("/apps/terminal?cluster=demo").text
    session = site.start_ready("terminal", placement={"reservation": "course"})
    assert session["node_name"] == course and session["placement"] == {"reservation": "course"}
    (job_id,) = site.list_jobs(session["id"])
    assert find_reservation(site, job_id) == f"course|{course}"


def test_the_seats_of_an_event_run_where_it_is_reserved(site: Site, course: str, tmp_path: Path) -> None:
    house, seat = site.house, f"{site.house.prefix}r1"
    settings = tmp_path / "school.toml"
    at = datetime.now(UTC)

    def create(reservation: str) -> int:
        settings.write_text(
            f'cluster = "demo"\nplacement = {{reservation = "{reservation}"}}\n'
            '[[apps]]\napp_id = "terminal"\nmemory_gb = 0.25\nhours = 0.5\n[[texts]]\nname = "T"\ntext = "x"\n'
            '[[fields]]\nname = "name"\nlabel = "Name"\n'
        )
        done = house.cli(
            "event", "create", "school", "--begins", (at - timedelta(hours=1)).isoformat(), "--ends",
            (at + timedelta(hours=3)).isoformat(), "--settings", str(settings), check=False,
        )  # fmt: skip
        assert done.returncode == 0 or "no reservation" in done.stderr
        return done.returncode

    assert create("nope") == 1
    wait_until(lambda: create("course") == 0, 30, "that it is known")
    form = house.admin().http.get("/events/school/edit").text
    assert '<option value="course" selected>' in form and "1 node<" in form
    house.cli("event", "import", "school", "-", stdin=None, input=f"account,password\n{seat},long enough")

    def is_free() -> bool:
        return bool(json.loads(house.cli("event", "seats", "school", "--json").stdout)[0]["state"] == "free")

    wait_until(is_free, 60, "the seat")
    site.slurm.add_user(seat)
    site.slurm.run("scontrol", "update", "ReservationName=course", f"Users+={seat}")
    time.sleep(5.5)  # who has no account is asked for again after so long
    house.cli("event", "open", "school")
    guest = Guest(house)
    try:
        assert guest.register() == seat

        def started() -> str:
            answer = guest.http.post("/e/school/apps/terminal")
            return str(answer.headers.get("location", ""))

        page = wait_until(started, 40, "a start: reservations are asked for every 15 s")
        wait_until(lambda: "data-stream" in guest.http.get(page).text, 90, "a ready terminal")
        (job_id,) = site.list_jobs(page.rpartition("/")[2])
        assert find_reservation(site, job_id) == f"course|{course}"
    finally:
        guest.http.close()
        house.cli("event", "end", "school", "--yes")
        house.cli("event", "remove", "school", "--yes", "--early")
        wait_until(lambda: not json.loads(house.cli("event", "seats", "school", "--json").stdout), 90, "its end")
