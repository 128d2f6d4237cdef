"""session.json: what a session's own folder keeps of it, so that it is found again without the database.

Its owner can write the file, so nothing that is read from it is believed to be well formed, or to be true.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from portico.model import SESSION_ID, Reach, Session

TITLE_LIMIT = 100


def render_record(session: Session) -> dict[str, Any]:
    """Return what session.json keeps."""
    return {
        "id": session.id,
        "user_name": session.user_name,
        "app_id": session.app_id,
        "title": session.title,
        "cluster": session.cluster,
        "reach": session.reach.value,
        "cores": session.cores,
        "memory_bytes": session.memory_bytes,
        "hours": session.hours,
        "values": session.values,
        "placement": session.placement,
        "created": session.created.isoformat(),
    }


def parse_record(record: Mapping[str, Any], session_id: str, user_name: str) -> Session:
    """Return the session that a session.json in this user's folder of that id speaks of.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: It speaks of none, or of another.
    """
    if record["user_name"] != user_name or record["id"] != session_id or not SESSION_ID.match(session_id):
        raise ValueError("another one's")
    cores, memory_bytes, hours = float(record["cores"]), int(record["memory_bytes"]), float(record["hours"])
    if not (0 < cores <= 4096 and 1 << 20 <= memory_bytes < 1 << 50 and 0 < hours <= 24 * 365):
        raise ValueError("out of bounds")
    created = datetime.fromisoformat(record["created"])
    if created.tzinfo is None:
        raise ValueError("a time without its zone")
    return Session(
        id=session_id,
        user_name=user_name,
        app_id=clean_text(str(record["app_id"]), 64),
        title=clean_text(str(record["title"]), TITLE_LIMIT),
        cluster=clean_text(str(record["cluster"]), 32),
        reach=Reach(record["reach"]),
        cores=cores,
        memory_bytes=memory_bytes,
        hours=hours,
        values={clean_text(str(k), 40): clean_text(str(v), 200) for k, v in dict(record["values"]).items()},
        created=created,
        placement={
            clean_text(str(k), 40): clean_text(str(v), 100) for k, v in dict(record.get("placement", {})).items()
        },
    )


def clean_text(text: str, limit: int) -> str:
    """Return a text of somebody else's, cut, and with nothing in it that does not print."""
    return "".join(character if character.isprintable() else "?" for character in text[:limit])
