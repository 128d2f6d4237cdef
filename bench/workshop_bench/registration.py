"""An event with so many seats, and people who register for it within one second, through its pages."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from workshop_bench.desktops import MEMORY_GB, Seat

SLUG: Final = "workshop"
WITHIN_S: Final = 1.0
"""In which all of them press the button."""
SEATS_S: Final = 180.0
SETTINGS: Final = {
    "welcome": "# Welcome\n\nA desktop for everybody.",
    "fields": [
        {"name": "name", "label": "Name", "required": True},
        {"name": "level", "label": "Level", "kind": "choice", "choices": ["beginner", "advanced"]},
    ],
    "texts": [{"name": "Terms of use", "text": "Be kind."}],
}


@dataclass
class Registration:
    """What came of it.

    Args:
        seats_s: From adding the seats until all were made.
        sent_s: From the first form sent until the last one.
        took_s: What each answer took.
        seated: How many got a seat.
        different: How many seats these are.
        waiting: How many wait for one.
        failures: What went otherwise.
    """

    seats_s: float = 0.0
    sent_s: float = 0.0
    took_s: list[float] = field(default_factory=list)
    seated: int = 0
    different: int = 0
    waiting: int = 0
    failures: list[str] = field(default_factory=list)


def make_event(portico: Any, seats: int, app: str, folder: Path) -> float:
    """Make an event with seats whose names are this Portico's own, and open it; return how long making them took."""
    settings = folder / "event.json"
    settings.write_text(json.dumps({**SETTINGS, "apps": [{"app_id": app, "cores": 1, "memory_gb": MEMORY_GB}]}))
    at = datetime.now(UTC)
    times = ["--begins", (at - timedelta(hours=1)).isoformat(), "--ends", (at + timedelta(hours=8)).isoformat()]
    portico.admin()
    portico.cli(
        "event", "create", SLUG, *times, "--settings", str(settings), "--organiser", portico.admin_name,
        "--title", "The workshop",
    )  # fmt: skip
    names = [portico.get_name(f"s{number:02}") for number in range(1, seats + 1)]
    text = "account,password\n" + "".join(f"{name},a password of {name}\n" for name in names)
    begin = time.monotonic()
    portico.cli("event", "import", SLUG, "-", stdin=None, input=text)
    portico.cli("event", "open", SLUG)
    while True:
        made = json.loads(portico.cli("event", "seats", SLUG, "--json").stdout)
        if sum(seat["state"] == "free" for seat in made) == seats:
            return time.monotonic() - begin
        if time.monotonic() - begin > SEATS_S:
            raise TimeoutError(f"not all seats were made: {made}")
        time.sleep(0.5)


def register_all(portico: Any, seats: int, make_person: Callable[[str], Any]) -> tuple[list[Seat], Registration]:
    """Have one more than there are seats register at once; return those who got one, in order, and what came of it.

    They have the form on their screens, as people have who were asked to wait for the word. Everybody presses the
    button once, at a moment of their own within one second.
    """
    found, people = Registration(), [make_person(portico.url) for _ in range(seats + 1)]
    with ThreadPoolExecutor(len(people)) as pool:
        tokens = list(pool.map(_open_form, people))
        begin = time.monotonic() + 0.5
        answers = list(
            pool.map(
                lambda number: _send(people[number], tokens[number], begin + WITHIN_S * number / len(people)),
                range(len(people)),
            )
        )
    found.sent_s = max(sent for sent, _, _ in answers) - min(sent for sent, _, _ in answers)
    found.took_s = [took for _, took, _ in answers]
    seated: list[Seat] = []
    for person, (_, _, answer) in zip(people, answers, strict=True):
        if answer.status_code == 303 and answer.headers["location"] == f"/e/{SLUG}/card":
            name = str(person.http.get("/api/v1/me").raise_for_status().json()["name"])
            seated.append(Seat(len(seated), person, name))
            continue
        if answer.status_code == 200 and "waiting" in answer.text:
            found.waiting += 1
        else:
            found.failures.append(f"{answer.status_code} {answer.headers.get('location', '')}")
        person.close()
    found.seated, found.different = len(seated), len({seat.name for seat in seated})
    return seated, found


def _open_form(person: Any) -> str:
    """Go from the landing page to the form; return its token."""
    landing = person.http.get(f"/e/{SLUG}").raise_for_status().text
    if f"/e/{SLUG}/register" not in landing:
        raise RuntimeError("the landing page has no way to the form")
    form = person.http.get(f"/e/{SLUG}/register").raise_for_status().text
    match = re.search(r'name="token" value="([^"]+)"', form)
    if match is None:
        raise RuntimeError("the form has no token")
    return match[1]


def _send(person: Any, token: str, at_s: float) -> tuple[float, float, Any]:
    """Press the button at that time; return when that was, what the answer took, and the answer."""
    time.sleep(max(0.0, at_s - time.monotonic()))
    begin = time.monotonic()
    form = {"token": token, "field-name": "A guest", "field-level": "beginner", "accept-0": "1"}
    answer = person.http.post(f"/e/{SLUG}/register", data=form)
    return begin, time.monotonic() - begin, answer
