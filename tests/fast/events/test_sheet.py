"""The seat sheet: a card a seat, whatever the title's letters."""

from __future__ import annotations

import re

import pytest

from portico.events import sheet
from portico.events.seats import SeatSecret
from portico.model import Event, EventState, now

EVENT = Event(1, "school", "Übung 日本 (1) \\ end", "olga", EventState.OPEN, now(), now(), now())


def count_pages(pdf: bytes) -> int:
    return len(re.findall(rb"/Type /Page\b(?!s)", pdf))


@pytest.mark.parametrize(("seats", "pages"), [(0, 1), (1, 1), (8, 1), (9, 2), (60, 8)])
def test_eight_cards_are_a_page(seats: int, pages: int) -> None:
    cards = [SeatSecret(f"ev1-{number:02}", "abcd-efgh-jkmn-pqrs") for number in range(seats)]
    pdf = sheet.render_sheet("https://hpc.example.org", EVENT, cards)
    assert pdf.startswith(b"%PDF-") and count_pages(pdf) == pages


def test_a_machine_without_fonts_prints_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sheet, "FONTS", ())
    assert count_pages(sheet.render_sheet("http://h", EVENT, [SeatSecret("ev1-01", "a")])) == 1


def test_the_secret_of_a_link_stands_behind_its_fragment() -> None:
    link = sheet.render_link("https://h", EVENT, "ev1-01", "abcd")
    assert link == "https://h/e/school/sign-in#ev1-01.abcd"
    assert sheet.render_link("https://h", EVENT, "ev1-01", "").endswith("#ev1-01")
    svg = sheet.render_qr(link)
    assert svg.startswith("<svg ") and "style" not in svg and "script" not in svg
