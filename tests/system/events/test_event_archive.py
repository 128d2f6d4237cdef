"""The organiser's archive on a real machine, and a real full disk while seats are made, files come up and all goes down."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pwd
import secrets
import signal
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from guest import Guest
from running import RunningPortico, find_reason_to_skip, wait_until

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

SEATS = 3
CODE = "k7fm-w2qp-plant"
SETTINGS = f"""
start_command = "mkdir course && id -un > course/who"
entry_code = "{CODE}"
[[fields]]
name = "name"
label = "Name"
[[texts]]
name = "Terms"
text = "Be kind."
"""


class Disk:
    """A small file system that is the homes' alone, and that can be full."""

    def __init__(self) -> None:
        self.path = Path(f"/var/tmp/pt-homes-{secrets.token_hex(4)}")
        self.path.mkdir()
        self._filler = self.path / "filler"
        try:
            self._mount("size=160m,mode=755")
        except BaseException:
            self.path.rmdir()
            raise

    def _mount(self, options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.path)], check=True)

    def close(self) -> None:
        subprocess.run(["umount", "-l", str(self.path)], check=True)
        self.path.rmdir()

    @contextlib.contextmanager
    def full(self) -> Iterator[None]:
        """Let nothing be written any more: not one byte."""
        try:
            with contextlib.suppress(OSError), self._filler.open("wb", buffering=0) as file:
                while file.write(bytes(1 << 12)):
                    pass
            assert os.statvfs(self.path).f_bavail == 0
            yield
        finally:
            self._filler.unlink()

    @contextlib.contextmanager
    def without_inodes(self) -> Iterator[None]:
        """Let no file or folder be made any more."""
        stat = os.statvfs(self.path)
        self._mount(f"remount,nr_inodes={stat.f_files - stat.f_ffree}")
        try:
            assert os.statvfs(self.path).f_ffree == 0
            yield
        finally:
            self._mount("remount,nr_inodes=100000")


@pytest.fixture(scope="module")
def disk() -> Iterator[Disk]:
    if reason := find_reason_to_skip():
        pytest.skip(reason)
    disk = Disk()
    yield disk
    disk.close()


@pytest.fixture(scope="module")
def portico(disk: Disk) -> Iterator[RunningPortico]:
    running = RunningPortico({"home_base": str(disk.path)})
    running.start()
    yield running
    running.destroy()


@pytest.fixture(scope="module")
def names(portico: RunningPortico) -> list[str]:
    return [f"{portico.prefix}a{number}" for number in range(1, SEATS + 1)]


def list_seats(portico: RunningPortico) -> dict[str, dict[str, Any]]:
    return {seat["name"]: seat for seat in json.loads(portico.cli("event", "seats", "school", "--json").stdout)}


def add(portico: RunningPortico, *names: str) -> None:
    lines = ["account,password", *(f"{name},password of {name}" for name in names)]
    portico.cli("event", "import", "school", "-", stdin=None, input="\n".join(lines))


def wait_for_trouble(portico: RunningPortico, name: str) -> str:
    def look() -> str:
        seat = list_seats(portico)[name]
        assert seat["state"] == "making", "a seat that is not whole is nobody's"
        return str(seat["trouble"])

    return str(wait_until(look, 60, "trouble"))


def wait_until_free(portico: RunningPortico, *names: str) -> None:
    def all_free() -> bool:
        seats = list_seats(portico)
        return all(seats[name]["state"] == "free" and not seats[name]["trouble"] for name in names)

    wait_until(all_free, 90, "seats")
    skeleton = {path.name: path.read_bytes() for path in Path("/etc/skel").iterdir() if path.is_file()}
    for name in names:
        entry = pwd.getpwnam(name)
        home = Path(entry.pw_dir)
        assert (home / "course/who").read_text().strip() == name
        assert home.stat().st_mode & 0o777 == 0o700 and home.stat().st_uid == entry.pw_uid
        for file, content in skeleton.items():
            assert (home / file).read_bytes() == content and (home / file).stat().st_uid == entry.pw_uid
        assert not list(home.glob(".portico*"))


@pytest.fixture(scope="module")
def seats(portico: RunningPortico, disk: Disk, names: list[str], tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Seats that were begun while the disk was full, and then while it had no place for a folder."""
    settings = tmp_path_factory.mktemp("event") / "settings.toml"
    settings.write_text(SETTINGS)
    at = datetime.now(UTC)
    portico.cli(
        "event", "create", "school", "--begins", (at - timedelta(hours=1)).isoformat(), "--ends",
        (at + timedelta(hours=3)).isoformat(), "--settings", str(settings),
    )  # fmt: skip
    with disk.full():
        add(portico, names[0])
        assert "No space left" in wait_for_trouble(portico, names[0])
    wait_until_free(portico, names[0])
    with disk.without_inodes():
        add(portico, names[1])
        assert "cannot create directory" in wait_for_trouble(portico, names[1])
    add(portico, names[2])
    wait_until_free(portico, names[1], names[2])
    portico.cli("event", "open", "school")
    return names


@pytest.fixture(scope="module")
def guest(portico: RunningPortico, seats: list[str]) -> Iterator[Guest]:
    """Whoever sits on the first seat, with the entry code that they typed at the second try."""
    guest = Guest(portico)
    assert "The code is wrong" in guest.register(code="wrong code")
    assert guest.register(code=CODE) == seats[0]
    yield guest
    guest.http.close()


def test_files_up_onto_a_full_disk(disk: Disk, guest: Guest) -> None:
    uploads = Path(pwd.getpwnam(guest.name).pw_dir) / "Uploads"

    def send(content: bytes) -> str:
        return guest.http.post("/e/school/files", files=[("file", ("data.bin", content))]).text

    assert "Kept: Uploads/data.bin" in send(b"first")
    with disk.full():
        text = send(b"x" * 5_000_000)
        assert "data.bin could not be kept" in text and "No space left" in text
        assert os.listdir(uploads) == ["data.bin"] and (uploads / "data.bin").read_bytes() == b"first"
        query = "?name=big.bin&upload=u1&offset=0&last=false"
        answer = guest.http.post(f"/e/school/files{query}", content=b"x" * 4_000_000)
        assert answer.status_code == 503 and "No space left" in answer.text
        assert os.listdir(uploads) == ["data.bin"]
    assert "Kept: Uploads/data.bin" in send(b"second")
    assert (uploads / "data.bin").read_bytes() == b"second"


def read_names(archive: zipfile.ZipFile, name: str) -> set[str]:
    with tarfile.open(fileobj=io.BytesIO(archive.read(f"{name}.tar.gz")), mode="r:gz") as tar:
        return set(tar.getnames())


def test_all_of_a_full_disk_comes_down(
    portico: RunningPortico, disk: Disk, guest: Guest, seats: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "all.zip"
    with disk.full():
        done = portico.cli("event", "archive", "school", str(path))
        own = guest.http.get("/e/school/archive")
        assert own.content[:2] == b"\x1f\x8b"
    assert "all.zip" in done.stderr and path.stat().st_mode & 0o777 == 0o600
    assert not list(tmp_path.glob("*.part"))
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        for name in seats:
            assert "home/course/who" in read_names(archive, name)
        assert "home/Uploads/data.bin" in read_names(archive, seats[0])
        assert f"{seats[0]},taken" in archive.read("participants.csv").decode()
        assert b"<polyline" in archive.read("summary.html")
        assert f"{SEATS} of {SEATS} seats are whole" in archive.read("CONTENTS.txt").decode()
    again = portico.cli("event", "archive", "school", str(path), check=False)
    assert again.returncode == 1 and "there already" in again.stderr


def test_a_file_that_can_not_be_written_leaves_nothing(portico: RunningPortico, disk: Disk, seats: list[str]) -> None:
    with disk.full():
        done = portico.cli("event", "archive", "school", str(disk.path / "all.zip"), check=False)
        assert done.returncode == 1 and "can't be written" in done.stderr and "No space left" in done.stderr
        assert not list(disk.path.glob("all.zip*"))


def find_tar(name: str) -> int:
    """Return the pid of the tar that a user runs, or 0."""
    uid = pwd.getpwnam(name).pw_uid
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError, ValueError):
            pid = int(process.name)
            if process.stat().st_uid == uid and (process / "comm").read_text().strip() == "tar":
                return pid
    return 0


@pytest.fixture
def large(seats: list[str]) -> Iterator[str]:
    """The second seat, with more than any buffer between it and a browser holds."""
    path = Path(pwd.getpwnam(seats[1]).pw_dir) / "large.bin"
    with path.open("wb") as file:
        for _ in range(80):
            file.write(os.urandom(1 << 20))
    os.chown(path, pwd.getpwnam(seats[1]).pw_uid, -1)
    yield seats[1]
    path.unlink()


def test_a_seat_whose_tar_dies_is_named_and_the_rest_is_whole(
    portico: RunningPortico, seats: list[str], large: str, tmp_path: Path
) -> None:
    admin = portico.admin()
    data = io.BytesIO()
    with admin.http.stream("GET", "/events/school/archive") as answer:
        assert answer.headers["content-type"] == "application/zip"
        pieces = answer.iter_raw(1 << 12)
        data.write(next(pieces))
        pid = wait_until(lambda: find_tar(large), 30, "tar")
        shown = admin.http.get("/events/school").text
        assert f"{large}, seat 2 of {SEATS}" in shown
        assert admin.http.get("/events/school/archive").status_code == 429
        os.kill(pid, signal.SIGKILL)
        for piece in pieces:
            data.write(piece)
    with zipfile.ZipFile(data) as archive:
        problems = archive.read("PROBLEMS.txt").decode()
        assert problems.startswith(f"{large}: broken off after") and len(problems.splitlines()) == 1
        assert "home/course/who" in read_names(archive, seats[2])
        with pytest.raises((EOFError, tarfile.ReadError)):  # whichever part of it was cut
            read_names(archive, large)
    done = portico.cli("event", "archive", "school", str(tmp_path / "again.zip"), "--seat", large)
    with zipfile.ZipFile(tmp_path / "again.zip") as archive:
        assert "home/large.bin" in read_names(archive, large) and f"{seats[0]}.tar.gz" not in archive.namelist(), done


def test_the_command_line_names_what_is_not_whole(
    portico: RunningPortico, seats: list[str], large: str, tmp_path: Path
) -> None:
    path = tmp_path / "all.zip"
    running = subprocess.Popen(
        [*portico.get_command(), "--run-dir", str(portico.run_dir), "event", "archive", "school", str(path)],
        env=portico.get_env(), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        os.kill(wait_until(lambda: find_tar(large), 60, "tar"), signal.SIGKILL)
        _, said = running.communicate(timeout=60)
    finally:
        running.kill()
        running.wait()
    assert running.returncode == 1 and "1 of its seats are not whole" in said
    assert f"portico event archive school again.zip --seat {large}" in said.replace("\n", "")
    with zipfile.ZipFile(path) as archive:
        assert "home/course/who" in read_names(archive, seats[2])


def test_who_goes_away_ends_it(portico: RunningPortico, large: str, tmp_path: Path) -> None:
    admin = portico.admin()
    with admin.http.stream("GET", "/events/school/archive") as answer:
        pieces = answer.iter_raw(1 << 12)  # kept: without it the answer is closed
        assert answer.status_code == 200 and next(pieces)
        wait_until(lambda: find_tar(large), 30, "tar")
    wait_until(lambda: not find_tar(large), 30, "the end of tar")
    archiving = lambda: json.loads(portico.cli("event", "show", "school", "--json").stdout)["archiving"]  # noqa: E731
    wait_until(lambda: archiving() is None, 30, "the end of it")
    running = subprocess.Popen(
        [*portico.get_command(), "--run-dir", str(portico.run_dir), "event", "archive", "school", "all.zip"],
        env=portico.get_env(), stderr=subprocess.DEVNULL, cwd=tmp_path,
    )  # fmt: skip
    try:
        wait_until(lambda: list(tmp_path.iterdir()), 60, "a file")
        running.send_signal(signal.SIGINT)
        assert running.wait(30) != 0
    finally:
        running.kill()
        running.wait()
    assert list(tmp_path.iterdir()) == [], "Ctrl-C leaves nothing"


def test_others_get_none(portico: RunningPortico, guest: Guest, seats: list[str]) -> None:
    alice = portico.user("alice")
    for path in ("/events/school/archive", "/api/v1/events/school/archive", "/api/v1/events/school/summary"):
        assert alice.http.get(path).status_code == 404
        assert guest.http.get(path).status_code == 403


def test_the_page_says_so_and_the_summary_is_drawn(portico: RunningPortico, guest: Guest) -> None:
    for path in ("/e/school", "/e/school/home"):
        assert "copy of" in guest.http.get(path).text
    page = portico.admin().http.get("/events/school").text
    assert "<polyline" in page and CODE in page
    shown = json.loads(portico.cli("event", "summary", "school", "--json").stdout)
    assert shown["numbers"]["registrations"] == 1 and shown["plots"]
    assert portico.cli("event", "summary", "school").stdout.split("\n")[0].split() == ["Seats", str(SEATS)]


def test_the_code_and_the_answers_stand_in_no_log(portico: RunningPortico, guest: Guest) -> None:
    for path in portico.state_dir.rglob("*"):
        if path.is_file() and ".db" not in path.name:
            assert CODE.encode() not in path.read_bytes(), path
    assert not any(CODE in line or "wrong code" in line for line in portico.output)


def test_after_the_end_it_is_there_until_the_removal(
    portico: RunningPortico, guest: Guest, seats: list[str], tmp_path: Path
) -> None:
    portico.cli("event", "end", "school", "--yes")
    portico.cli("event", "archive", "school", str(tmp_path / "end.zip"))
    with zipfile.ZipFile(tmp_path / "end.zip") as archive:
        assert f"{SEATS} of {SEATS} seats are whole" in archive.read("CONTENTS.txt").decode()
    portico.cli("event", "remove", "school", "--yes", "--early")
    wait_until(lambda: list_seats(portico) == {}, 120, "the end of all seats")
    done = portico.cli("event", "archive", "school", str(tmp_path / "late.zip"), check=False)
    assert done.returncode == 1 and "files of this event are gone" in done.stderr
    page = portico.admin().http.get("/events/school").text
    assert "<polyline" in page and guest.name not in page
