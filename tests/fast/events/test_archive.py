"""The organiser's archive: all homes in one stream, a seat that fails is named and the rest goes on, and who was told."""

from __future__ import annotations

import asyncio
import io
import os
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from event_rig import SETTINGS, EventWorld

from portico.errors import Conflict, NotFound, PorticoError, TooMany
from portico.model import Identity, SeatState, UserState, now


@pytest.fixture
def homes(world: EventWorld) -> dict[str, Path]:
    """An event with three seats, two of them taken; each has a file of its own."""
    world.make_event(seats=3)
    world.claim(answers={"name": "=cmd|' /C calc'!A0", "level": "low"})
    world.claim()
    found = {f"ev1-{number:02}": world.machine.homes / f"ev1-{number:02}" for number in (1, 2, 3)}
    for name, home in found.items():
        home.mkdir(parents=True, exist_ok=True)
        (home / "who").write_text(name)
    return found


async def collect(world: EventWorld, who: Identity, *names: str) -> bytes:
    return b"".join([piece async for piece in await world.events.archives.open(who, "school", names)])


def fetch(world: EventWorld, *names: str, who: Identity | None = None) -> zipfile.ZipFile:
    data = world.run(collect(world, who or world.olga, *names))
    archive = zipfile.ZipFile(io.BytesIO(data))
    assert archive.testzip() is None
    return archive


def list_files(archive: zipfile.ZipFile, name: str) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(archive.read(f"{name}.tar.gz")), mode="r:gz") as tar:
        return tar.getnames()


def break_one(monkeypatch: pytest.MonkeyPatch, name: str, script: str) -> None:
    """Have another program run in one seat in tar's place."""
    from portico.events import homes

    run = homes.run

    async def run_other(machine: object, user: str, argv: list[str], *rest: object, **more: object) -> str:
        return await run(machine, user, ["/bin/sh", "-c", script] if user == name else argv, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(homes, "run", run_other)


def test_all_seats_come_as_one_archive(world: EventWorld, homes: dict[str, Path]) -> None:
    with fetch(world) as archive:
        assert archive.namelist() == [
            "participants.csv", "summary.html", "ev1-01.tar.gz", "ev1-02.tar.gz", "ev1-03.tar.gz", "CONTENTS.txt",
        ]  # fmt: skip
        for name in homes:
            assert "home/who" in list_files(archive, name)
        people = archive.read("participants.csv").decode()
        assert "ev1-01,taken" in people and "'=cmd" in people and ",=cmd" not in people
        page = archive.read("summary.html").decode()
        assert "<polyline" in page and "seats taken" in page and "Ada" not in page and "<script" not in page
        assert "3 of 3 seats are whole" in archive.read("CONTENTS.txt").decode()
    assert ("olga", "event:archive", "school") in world.audit()


def test_some_seats_only(world: EventWorld, homes: dict[str, Path]) -> None:
    with fetch(world, "ev1-02") as archive:
        assert [name for name in archive.namelist() if name.endswith("gz")] == ["ev1-02.tar.gz"]
    with pytest.raises(NotFound):
        fetch(world, "alice")


@pytest.mark.parametrize(("script", "said"), [("exit 2", "not here"), ("echo half; echo 'tar: disk' >&2; exit 2", "broken off")])  # fmt: skip
def test_a_seat_that_fails_is_named_and_the_rest_goes_on(
    world: EventWorld, homes: dict[str, Path], monkeypatch: pytest.MonkeyPatch, script: str, said: str
) -> None:
    break_one(monkeypatch, "ev1-02", script)
    with fetch(world) as archive:
        problems = archive.read("PROBLEMS.txt").decode()
        assert problems.startswith("ev1-02: ") and said in problems and len(problems.splitlines()) == 1
        assert "2 of 3 seats are whole" in archive.read("CONTENTS.txt").decode()
        assert "home/who" in list_files(archive, "ev1-03")
        assert ("ev1-02.tar.gz" in archive.namelist()) == (said == "broken off")


def test_a_seat_that_says_nothing_is_given_up(
    world: EventWorld, homes: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_one(monkeypatch, "ev1-01", "sleep 3")
    monkeypatch.setattr("portico.events.homes.SILENT_S", 0.3)
    with fetch(world) as archive:
        assert "ev1-01: not here: It took too long" in archive.read("PROBLEMS.txt").decode()
        assert "home/who" in list_files(archive, "ev1-02")


def test_what_could_not_be_read_on_a_seat_is_told(world: EventWorld, homes: dict[str, Path]) -> None:
    (homes["ev1-01"] / "locked").touch(0o000)
    with fetch(world) as archive:
        contents = archive.read("CONTENTS.txt").decode()
        assert ("locked" in contents) == (os.getuid() != 0), "root reads all"
        assert "PROBLEMS.txt" not in archive.namelist()


def test_it_is_streamed_one_at_a_time_with_progress_and_ends_with_its_reader(
    world: EventWorld, homes: dict[str, Path]
) -> None:
    (homes["ev1-02"] / "big.bin").write_bytes(os.urandom(8_000_000))
    event = world.run(world.events.get_event(world.olga, "school"))

    async def part() -> tuple[int, str]:
        stream = await world.events.archives.open(world.olga, "school")
        most = 0
        async for piece in stream:
            most = max(most, len(piece))
            progress = world.events.archives.find_progress(event)
            assert progress
            if progress.number == 2 and progress.size_bytes > 1_000_000:
                break
        with pytest.raises(TooMany):
            await world.events.archives.open(world.olga, "school")
        await stream.aclose()  # type: ignore[attr-defined]
        return most, progress.seat_name

    most, name = world.run(part())
    assert most < 1 << 18 and name == "ev1-02", "little is in memory"
    assert world.events.archives.find_progress(event) is None
    with fetch(world) as archive:
        assert len(archive.read("ev1-02.tar.gz")) > 8_000_000


def test_a_participant_may_fetch_theirs_meanwhile(world: EventWorld, homes: dict[str, Path]) -> None:
    async def both() -> tuple[bytes, bytes]:
        async def own() -> bytes:
            return b"".join([x async for x in await world.events.desk.archive(world.seat("ev1-01"), "school")])

        return await asyncio.gather(collect(world, world.olga), own())

    whole, own = world.run(both())
    assert whole[:2] == b"PK" and own[:2] == b"\x1f\x8b"


def test_only_its_organiser_and_admins(world: EventWorld, homes: dict[str, Path]) -> None:
    for name in ("otto", "alice", "ev1-01"):
        with pytest.raises(NotFound):
            fetch(world, who=world.identify(name))
    assert "ev1-01.tar.gz" in fetch(world, who=world.identify("root-of-all")).namelist()


def change(world: EventWorld, **more: object) -> None:
    at = now()
    settings = replace(SETTINGS, **more)  # type: ignore[arg-type]
    world.run(world.events.change(world.olga, "school", "S", at, at + timedelta(hours=5), settings))


def test_it_is_there_only_where_participants_were_told(world: EventWorld, homes: dict[str, Path]) -> None:
    change(world, archive=False)
    with pytest.raises(Conflict) as caught:
        fetch(world)
    assert "told" in caught.value.why
    change(world, archive=True)
    notices = world.run(world.sessions.notices.list_notices(world.seat("ev1-01")))
    assert any("copy of all files" in notice.text for notice in notices), "those who sit there are told"
    assert len(fetch(world).namelist()) == 6


def test_an_event_of_before_has_none(world: EventWorld) -> None:
    from portico.store.event_rows import parse_settings

    assert parse_settings({"wall": True}).archive is False


def test_it_is_there_after_the_end_until_the_removal(world: EventWorld, homes: dict[str, Path]) -> None:
    world.run(world.events.end(world.olga, "school"))
    assert "home/who" in list_files(fetch(world), "ev1-01")
    world.run(world.events.remove(world.olga, "school", early=True))
    with pytest.raises(Conflict):
        fetch(world)


def stop_in_the_middle(world: EventWorld, meanwhile: Callable[[], None]) -> type[BaseException]:
    async def part() -> None:
        async for _ in await world.events.archives.open(world.olga, "school"):
            await asyncio.to_thread(meanwhile)

    with pytest.raises(PorticoError) as caught:
        world.run(part())
    return caught.type


def test_what_is_taken_away_meanwhile_breaks_it_off(world: EventWorld, homes: dict[str, Path]) -> None:
    def lock() -> None:
        with world.store.begin() as tx:
            user = tx.find_user("olga")
            assert user
            tx.set_user(user.id, state=UserState.LOCKED)

    assert stop_in_the_middle(world, lock) is NotFound


def test_a_seat_that_is_removed_meanwhile_is_named(
    world: EventWorld, homes: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    world.run(world.events.seats.remove(world.olga, "school", "ev1-02"))
    with world.store.read() as tx:
        seat = tx.find_seat("ev1-02")
        assert seat and seat.state is SeatState.REMOVING
    assert "ev1-02.tar.gz" not in fetch(world).namelist()


def test_a_name_in_tar_s_words_can_not_write_lines(
    world: EventWorld, homes: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_one(monkeypatch, "ev1-01", "printf 'a\\033[31m\\fev1-02: whole' >&2; exit 2")
    with fetch(world) as archive:
        text = archive.read("PROBLEMS.txt").decode()
        assert len(text.splitlines()) == 1 and "\033" not in text


def test_a_home_with_endless_holes_is_packed_at_once(world: EventWorld, homes: dict[str, Path]) -> None:
    with (homes["ev1-01"] / "endless").open("wb") as file:
        try:
            file.truncate(1 << 42)
        except OSError:
            pytest.skip("this file system has no file so large")
    with fetch(world) as archive:
        assert len(archive.read("ev1-01.tar.gz")) < 100_000
        assert "PROBLEMS.txt" not in archive.namelist()
