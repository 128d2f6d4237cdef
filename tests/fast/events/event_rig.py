"""The portal of the tests of this folder: that of the portal's tests, with short words for events."""

from __future__ import annotations

import secrets
from datetime import timedelta
from pathlib import Path
from typing import Any

from portal_rig import World

from portico.events.claims import Claim
from portico.model import Event, EventApp, EventField, EventSettings, FieldKind, Identity, now

SETTINGS = EventSettings(
    apps=(EventApp("shell", hours=2), EventApp("screen")),
    fields=(
        EventField("name", "Name", required=True),
        EventField("level", "Level", FieldKind.CHOICE, choices=("low", "high")),
    ),
    texts=(("Terms", "Be *kind*."),),
)
ANSWERS = {"name": "Ada", "level": "low"}


class EventWorld(World):
    """A portal with events; Olga organises, Otto does so elsewhere."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        super().__init__(folder, **settings)
        self.add_user("otto", self.accounts.get_user("olga").role)
        self.olga = self.identify("olga")

    def make_event(
        self, slug: str = "school", seats: int = 3, settings: EventSettings = SETTINGS, opened: bool = True
    ) -> Event:
        """Return an event that goes on, with seats that are made."""
        at = now()
        made = self.run(
            self.events.create(
                self.olga, slug, "The School", at - timedelta(hours=1), at + timedelta(hours=5), settings, seats
            )
        )
        self.turn()
        return self.run(self.events.open(self.olga, slug)) if opened else made

    def turn(self) -> None:
        """Have the keeper do what is due."""
        self.run(self.events.keeper.turn())

    def claim(self, slug: str = "school", token: str = "", who: Identity | None = None, **more: Any) -> Claim:
        """Send a registration."""
        given = {"answers": ANSWERS, "accepted": ["Terms"]} | more
        token = token or make_form_token()
        return self.run(
            self.events.claims.register(slug, token, address="192.0.2.9", browser="Firefox/1", who=who, **given)
        )

    def seat(self, name: str) -> Identity:
        """Return a participant as their browser's request would be known."""
        return self.identify(name)

    def audit(self) -> list[tuple[str, str, str]]:
        """Return who did what to whom, the oldest first."""
        with self.store.read() as tx:
            return [(entry.actor, entry.action, entry.target) for entry in tx.list_audit(1000)][::-1]


def make_form_token() -> str:
    """Return what a registration page carries."""
    return secrets.token_urlsafe(32)
