"""What a participant does on their own seat: apps with the event's limits, files in, everything out."""

from __future__ import annotations

import asyncio
import io
import os
import tarfile
from datetime import timedelta
from pathlib import Path

import pytest
from event_rig import SETTINGS, EventWorld

from portico.errors import Conflict, Invalid, NotFound, TooMany, Unavailable
from portico.events.markdown import render_markdown
from portico.events.settings import parse_fields, render_fields
from portico.model import EventField, FieldKind, now


@pytest.fixture
def home(world: EventWorld) -> Path:
    """The home of the one who sits on ev1-01."""
    world.make_event(seats=2)
    assert world.claim().seat_name == "ev1-01"
    (world.machine.homes / "ev1-01").mkdir(parents=True, exist_ok=True)
    return world.machine.homes / "ev1-01"


def put(world: EventWorld, name: str, content: bytes, **more: object) -> str:
    given = {"upload": "u1", "offset": 0, "last": True} | more
    return world.run(world.events.desk.put(world.seat("ev1-01"), "school", name, content, **given))  # type: ignore[arg-type]


def test_one_click_is_one_session_with_the_events_limits(world: EventWorld, home: Path) -> None:
    who = world.seat("ev1-01")

    async def two_clicks() -> list[str]:
        start = world.events.desk.start
        return [s.id for s in await asyncio.gather(start(who, "school", "shell"), start(who, "school", "shell"))]

    first, second = world.run(two_clicks())
    assert first == second
    again = world.run(world.events.desk.start(world.seat("ev1-01"), "school", "shell"))
    assert again.id == first, "another device goes on where the first one was"
    assert again.hours == 2
    view = world.run(world.events.desk.view(who, "school"))
    assert [(offer.app.id, offer.session is not None) for offer in view.offers] == [("shell", True), ("screen", False)]


def test_what_the_event_does_not_offer_can_not_be_started(world: EventWorld, home: Path) -> None:
    with pytest.raises(NotFound):
        world.run(world.events.desk.start(world.seat("ev1-01"), "school", "book"))
    with pytest.raises(NotFound):
        world.run(world.events.desk.start(world.identify("alice"), "school", "shell"))


def test_apps_start_between_the_dates_only(world: EventWorld, home: Path) -> None:
    at = now()
    for begins, ends in ((1, 2), (-3, 0)):
        world.run(
            world.events.change(
                world.olga, "school", "S", at + timedelta(hours=begins), at + timedelta(hours=ends), SETTINGS
            )
        )
        with pytest.raises(Conflict) as caught:
            world.run(world.events.desk.start(world.seat("ev1-01"), "school", "shell"))
        assert ("begins" if begins > 0 else "ended") in caught.value.message


def test_a_file_comes_in_parts_and_is_never_half_there(world: EventWorld, home: Path) -> None:
    put(world, "data.bin", b"a" * 1000, last=False)
    assert not (home / "Uploads/data.bin").exists()
    assert put(world, "data.bin", b"b" * 500, offset=1000) == "Uploads/data.bin"
    assert (home / "Uploads/data.bin").read_bytes() == b"a" * 1000 + b"b" * 500
    put(world, "data.bin", b"new")
    assert (home / "Uploads/data.bin").read_bytes() == b"new"
    assert os.listdir(home / "Uploads") == ["data.bin"]
    big = os.urandom(5_000_000)
    put(world, "big file (1).bin", big)
    assert (home / "Uploads/big file (1).bin").read_bytes() == big


def test_a_part_that_is_missing_is_told(world: EventWorld, home: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        put(world, "data.bin", b"b" * 500, offset=1000)
    assert "missing" in caught.value.why
    assert "data.bin" not in os.listdir(home / "Uploads")


def test_a_full_disk_leaves_nothing_half_there(world: EventWorld, home: Path) -> None:
    (home / "Uploads").mkdir()
    (home / "Uploads/data.bin").mkdir()  # a name that can't be taken: the write fails at its end, as on a full disk
    with pytest.raises(Unavailable) as caught:
        put(world, "data.bin", b"x")
    assert "could not be kept" in caught.value.message and caught.value.why
    assert os.listdir(home / "Uploads") == ["data.bin"]


@pytest.mark.parametrize("name", ["../x", "a/b", ".bashrc", "", "a\0b", "..", "-" * 300, "/etc/passwd"])
def test_an_upload_has_no_path_parts(world: EventWorld, home: Path, name: str) -> None:
    with pytest.raises(Invalid):
        put(world, name, b"x")


def test_an_upload_follows_no_link(world: EventWorld, home: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (home / "Uploads").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Unavailable):
        put(world, "data.bin", b"x")
    assert os.listdir(tmp_path / "elsewhere") == []


@pytest.mark.parametrize("more", [{"upload": "../x"}, {"upload": ""}, {"offset": -1}, {"offset": 3_000_000_000}])
def test_a_part_is_checked(world: EventWorld, home: Path, more: dict[str, object]) -> None:
    with pytest.raises(Invalid):
        put(world, "data.bin", b"x", **more)


def archive(world: EventWorld) -> bytes:
    async def collect() -> bytes:
        return b"".join([chunk async for chunk in await world.events.desk.archive(world.seat("ev1-01"), "school")])

    return world.run(collect())


def test_everything_comes_down_as_one_archive(world: EventWorld, home: Path) -> None:
    (home / "work").mkdir()
    (home / "work/result.txt").write_text("42")
    (home / "work/link").symlink_to("./result.txt")
    (home / ".local/share/portico/sessions").mkdir(parents=True)
    (home / "locked").touch(0o000)
    data = archive(world)
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:gz") as tar:
        names = tar.getnames()
        found = tar.extractfile("home/work/result.txt")
        assert found and found.read() == b"42"
        assert tar.getmember("home/work/link").linkname == "./result.txt"
    assert not any("share/portico" in name for name in names) and "home/work" in names


def test_an_archive_is_streamed_one_at_a_time_and_ends_with_its_reader(world: EventWorld, home: Path) -> None:
    (home / "big.bin").write_bytes(os.urandom(8_000_000))

    async def part() -> int:
        stream = await world.events.desk.archive(world.seat("ev1-01"), "school")
        first = len(await anext(stream))
        with pytest.raises(TooMany):
            await world.events.desk.archive(world.seat("ev1-01"), "school")
        await stream.aclose()  # type: ignore[attr-defined]
        return first

    assert 0 < world.run(part()) <= 1 << 16
    assert len(archive(world)) > 8_000_000, "and it can be fetched again"


def test_an_archive_that_fails_is_not_taken_for_the_whole(
    world: EventWorld, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["/bin/sh", "-c", "echo half; echo 'tar: no space' >&2; exit 2"]
    monkeypatch.setattr("portico.events.homes.render_archive", lambda: argv)
    with pytest.raises(Unavailable) as caught:
        archive(world)
    assert "no space" in caught.value.why


EVIL = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "[x](javascript:alert(1))", "![x](https://evil/x.png)",
    "[x](data:text/html,<script>alert(1)</script>)", "<a href='javascript:1'>x</a>", "[x](//evil.example)",
    "[x](\tjavascript:alert(1))", "[x](JaVaScRiPt:alert(1))", "<https://a\"onmouseover=alert(1)>", "&lt;script&gt;",
    "```html\n<script>alert(1)</script>\n```", "[x](/\\evil.example)", "<style>*{display:none}</style>", "<!-- x -->",
]  # fmt: skip


@pytest.mark.parametrize("text", EVIL)
def test_markdown_can_do_nothing(text: str) -> None:
    html = render_markdown(text).lower()
    for bad in (
        "<script",
        "<img",
        "<style",
        "<!--",
        'href="javascript',
        'href="data',
        'href="//',
        "<a onm",
        'href="/\\',
    ):
        assert bad not in html, html


def test_markdown_is_markdown() -> None:
    html = render_markdown("# Hello\n\n*you* and [us](https://example.org)\n\n- a\n\n|x|y|\n|-|-|\n|1|2|\n")
    for part in (
        "<h1>Hello</h1>",
        "<em>you</em>",
        'href="https://example.org"',
        "noopener",
        "<li>a</li>",
        "<td>1</td>",
    ):
        assert part in html


def test_the_form_is_written_a_field_a_line() -> None:
    text = "Name*\nLevel*: low, high\n[] Vegetarian\n日本*"
    fields = parse_fields(text)
    assert fields == (
        EventField("name", "Name", FieldKind.TEXT, True),
        EventField("level", "Level", FieldKind.CHOICE, True, ("low", "high")),
        EventField("vegetarian", "Vegetarian", FieldKind.CHECKBOX),
        EventField("field_4", "日本", FieldKind.TEXT, True),
    )
    assert render_fields(fields) == text
