"""A small event on a real machine: accounts, claims, files as their user, the end, and nothing that is left."""

from __future__ import annotations

import io
import json
import pwd
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from guest import Guest
from running import RunningPortico, wait_until

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

SEATS = 6
SETTINGS = """
welcome = "# Hello"
start_command = "mkdir course && id -un > course/who"
[[apps]]
app_id = "terminal"
memory_gb = 0.25
hours = 1
[[fields]]
name = "name"
label = "Name"
required = true
[[texts]]
name = "Terms"
text = "Be kind."
"""


@pytest.fixture(scope="module")
def portico(portico_factory: Any) -> RunningPortico:
    return portico_factory()


@pytest.fixture(scope="module")
def names(portico: RunningPortico) -> list[str]:
    """Names with this Portico's prefix: others of this machine have a first event too."""
    return [f"{portico.prefix}s{number}" for number in range(1, SEATS + 1)]


@pytest.fixture(scope="module")
def event(portico: RunningPortico, names: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    settings = tmp_path_factory.mktemp("event") / "settings.toml"
    settings.write_text(SETTINGS)
    at = datetime.now(UTC)
    portico.cli(
        "event", "create", "school", "--title", "The School", "--begins", (at - timedelta(hours=1)).isoformat(),
        "--ends", (at + timedelta(hours=3)).isoformat(), "--settings", str(settings),
    )  # fmt: skip
    lines = ["account,host,path,port,vncport,password", *(f"{name},h,p,443,5900,password of {name}" for name in names)]
    portico.cli("event", "import", "school", "-", stdin=None, input="\n".join(lines))
    portico.cli("event", "open", "school")
    yield "school"


def list_seats(portico: RunningPortico) -> dict[str, dict[str, Any]]:
    return {seat["name"]: seat for seat in json.loads(portico.cli("event", "seats", "school", "--json").stdout)}


@pytest.fixture(scope="module")
def guests(portico: RunningPortico, event: str) -> Iterator[list[Guest]]:
    """All of them at once, one more than there are seats; Portico is killed while accounts are being made."""
    wait_until(lambda: any(seat["state"] == "free" for seat in list_seats(portico).values()), 60, "a first seat")
    portico.kill()
    portico.start()
    wait_until(lambda: all(seat["state"] == "free" for seat in list_seats(portico).values()), 60, "all seats")
    guests = [Guest(portico) for _ in range(SEATS + 1)]
    with ThreadPoolExecutor(len(guests)) as pool:
        found = list(pool.map(Guest.register, guests))
    assert sum("waiting list" in text for text in found) == 1
    yield sorted((guest for guest in guests if guest.name), key=lambda guest: guest.name)
    for guest in guests:
        guest.http.close()


def test_each_has_a_seat_with_an_account_of_its_own(guests: list[Guest], names: list[str]) -> None:
    assert [guest.name for guest in guests] == names
    for guest in guests:
        home = Path(pwd.getpwnam(guest.name).pw_dir)
        assert home.stat().st_mode & 0o777 == 0o700
        assert (home / "course/who").read_text().strip() == guest.name


def test_one_click_files_up_and_everything_down(guests: list[Guest]) -> None:
    one = guests[0]
    page = one.http.post("/e/school/apps/terminal").headers["location"]
    wait_until(lambda: "data-stream" in one.http.get(page).text, 60, "a ready terminal")
    answer = one.http.post("/e/school/files", files=[("file", ("data.bin", b"x" * 5_000_000))])
    assert "Uploads/data.bin" in answer.text
    entry = pwd.getpwnam(one.name)
    stat = (Path(entry.pw_dir) / "Uploads/data.bin").stat()
    assert (stat.st_uid, stat.st_size, stat.st_mode & 0o777) == (entry.pw_uid, 5_000_000, 0o600)
    with (
        one.http.stream("GET", "/e/school/archive") as answer,
        tarfile.open(fileobj=io.BytesIO(b"".join(answer.iter_bytes())), mode="r:gz") as tar,
    ):
        assert {"home/course/who", "home/Uploads/data.bin"} <= set(tar.getnames())
    other = guests[1]
    for path in (page, f"{page}/log"):
        assert other.http.get(path).status_code == 404
    assert other.http.post(f"{page}/stop").status_code == 404
    assert other.http.get("/admin/users").status_code == 403
    assert other.http.post("/apps/terminal").status_code == 403
    assert other.http.post("/api/v1/sessions", json={"app_id": "terminal"}).status_code == 403


def test_an_archive_larger_than_what_a_command_may_say_is_streamed(guests: list[Guest]) -> None:
    one = guests[2]
    home = Path(pwd.getpwnam(one.name).pw_dir)
    with (home / "big.bin").open("wb") as file, Path("/dev/urandom").open("rb") as noise:
        for _ in range(50):
            file.write(noise.read(1 << 20))
    total = 0
    with one.http.stream("GET", "/e/school/archive") as answer:
        for piece in answer.iter_raw():
            total += len(piece)
    assert total > 50 << 20
    with one.http.stream("GET", "/e/school/archive") as answer:
        next(answer.iter_raw(1000))  # and goes away in the middle
    assert "Uploads" in one.http.get("/e/school/home").text
    wait_until(lambda: one.http.get("/e/school/archive").status_code == 200, 30, "that it can be fetched again")


def test_the_card_leads_to_the_same_seat_from_elsewhere(portico: RunningPortico, guests: list[Guest]) -> None:
    with httpx.Client(base_url=portico.url, headers={"Origin": portico.url}) as phone:
        form = {"name": guests[0].name, "secret": guests[0].secret}
        assert phone.post("/e/school/sign-in", data=form).headers["location"] == "/e/school/home"
        assert "Go on" in phone.get("/e/school/home").text


def test_a_seat_that_is_removed_is_gone_with_all_it_had(portico: RunningPortico, guests: list[Guest]) -> None:
    name = guests[1].name
    home = Path(pwd.getpwnam(name).pw_dir)
    page = guests[1].http.post("/e/school/apps/terminal").headers["location"]
    wait_until(lambda: "data-stream" in guests[1].http.get(page).text, 60, "a ready terminal")
    portico.cli("event", "seats", "school", "--remove", name, "--yes")
    wait_until(lambda: name not in list_seats(portico), 60, "the seat's end")
    with pytest.raises(KeyError):
        pwd.getpwnam(name)
    assert not home.exists()
    assert guests[1].http.get("/e/school/home").headers["location"] == "/e/school/sign-in"


def test_no_secret_is_in_a_log_or_the_store(portico: RunningPortico, guests: list[Guest]) -> None:
    for path in portico.state_dir.rglob("*"):
        if path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            for guest in guests:
                assert guest.secret.encode() not in data, path
            assert b"password of" not in data, path


def test_the_end_and_the_removal(portico: RunningPortico, guests: list[Guest], names: list[str]) -> None:
    one = guests[0]
    portico.cli("event", "end", "school", "--yes")

    def list_states() -> set[str]:
        return {session["state"] for session in one.http.get("/api/v1/sessions").json()}

    wait_until(lambda: list_states() == {"ended"}, 60, "the end of what runs")
    assert one.http.post("/e/school/apps/terminal").status_code == 409
    assert one.http.get("/e/school/archive").content[:2] == b"\x1f\x8b"
    removal = json.loads(portico.cli("event", "remove", "school", "--dry-run", "--json").stdout)
    assert set(removal["accounts"]) == set(names) - {guests[1].name} and removal["too_early"]
    assert portico.cli("event", "remove", "school", "--yes", check=False).returncode == 1
    portico.cli("event", "remove", "school", "--yes", "--early")
    wait_until(lambda: list_seats(portico) == {}, 120, "the end of all seats")
    for name in names:
        with pytest.raises(KeyError):
            pwd.getpwnam(name)
    shown = json.loads(portico.cli("event", "show", "school", "--json").stdout)
    assert shown["state"] == "removed" and shown["summary"]["seats taken"] == SEATS - 1
    assert "Ada" not in json.dumps(shown)
