"""The seat sheet: one card a seat, eight on a page of A4, each with a QR code. For people who want paper."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

import segno

from portico.events.seats import SeatSecret
from portico.model import Event

COLUMNS: Final = 2
ROWS: Final = 4
MARGIN_MM: Final = 10.0
FONTS: Final = (
    "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf",
    "/usr/share/fonts/truetype/liberation/LiberationSans-Regular.ttf",
)
"""For titles beyond Western Europe; without one of these, letters that PDF's own fonts lack become question marks."""


def render_link(origin: str, event: Event, name: str, secret: str) -> str:
    """Return the link of a card: name and secret stand in the fragment, which browsers send to nobody."""
    return f"{origin}/e/{event.slug}/sign-in#{name}.{secret}" if secret else f"{origin}/e/{event.slug}/sign-in#{name}"


def render_invitation(origin: str, event: Event) -> str:
    """Return the link to an event; its entry code, if any, stands in the fragment."""
    code = event.settings.entry_code
    return f"{origin}/e/{event.slug}{f'#{quote(code)}' if code else ''}"


def render_qr(text: str) -> str:
    """Return a QR code (ISO/IEC 18004) as an SVG element: dark on white, whatever the page's colours are."""
    code = segno.make(text, error="m", micro=False)
    return str(code.svg_inline(border=3, light="#fff", dark="#000", omitsize=True, svgclass="qr", lineclass=None))


def render_sheet(origin: str, event: Event, cards: Sequence[SeatSecret]) -> bytes:
    """Return the sheet as PDF.

    Args:
        origin: Of the portal.
        event: Whose seats.
        cards: Names and secrets.
    """
    from fpdf import FPDF  # here: it takes a third of a second, and few portals ever print

    pdf = FPDF(format="A4")
    pdf.set_auto_page_break(False)
    pdf.set_title(event.title)
    font = next((path for path in FONTS if Path(path).exists()), "")
    if font:
        pdf.add_font("sheet", fname=font)
    family = "sheet" if font else "helvetica"
    width, height = (210 - 2 * MARGIN_MM) / COLUMNS, (297 - 2 * MARGIN_MM) / ROWS

    def write(x: float, y: float, text: str, size: float, room_mm: float) -> None:
        text = text if font else text.encode("latin-1", errors="replace").decode("latin-1")
        pdf.set_font(family, size=size)
        while pdf.get_string_width(text) > room_mm and len(text) > 4:
            text = text[:-2].rstrip("…") + ("…" if font else ".")
        pdf.text(x, y, text)

    for number, card in enumerate(cards):
        place = number % (COLUMNS * ROWS)
        if place == 0:
            pdf.add_page()
        x, y = MARGIN_MM + place % COLUMNS * width, MARGIN_MM + place // COLUMNS * height
        pdf.set_draw_color(170)
        pdf.set_dash_pattern(dash=1.5, gap=1.5)
        pdf.rect(x, y, width, height)
        pdf.set_dash_pattern()
        write(x + 6, y + 11, event.title, 12, width - 12)
        room = width - 46
        for at, label, text in ((21, "Name", card.name), (35, "Secret", card.secret)):
            write(x + 6, y + at, label, 8, room)
            pdf.set_font("courier", style="B", size=12)
            pdf.text(x + 6, y + at + 6, text)
        write(x + 6, y + 52, "Sign in at", 8, room)
        write(x + 6, y + 57.5, f"{origin.partition('://')[2]}/e/{event.slug}", 9, width - 12)
        code = io.BytesIO()
        segno.make(render_link(origin, event, card.name, card.secret), error="m", micro=False).save(
            code, kind="png", scale=6, border=3
        )
        pdf.image(code, x + width - 40, y + 15, w=34)
    if not cards:
        pdf.add_page()
        write(MARGIN_MM, 30, "There is no seat that nobody has taken.", 12, 190)
    return bytes(pdf.output())
