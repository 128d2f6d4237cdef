"""Rows of shares, and of what is asked about them. A part of Transaction."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import Connection, delete, insert, select, update

from portico.model import Ask, Share
from portico.store import tables as t


class ShareRows:
    """See Transaction."""

    _db: Connection

    # shares

    def add_share(
        self, session_id: str, owner_name: str, viewer_name: str, created: datetime, *, brief: bool = False
    ) -> Share:
        """Add a share."""
        values = {"session_id": session_id, "owner_name": owner_name, "viewer_name": viewer_name, "created": created}
        result = self._db.execute(insert(t.shares).values(**values, brief=brief))
        return Share(int(result.lastrowid), session_id, owner_name, viewer_name, created, brief=brief)

    def find_share(self, session_id: str, viewer_name: str) -> Share | None:
        """Return the share that lets ``viewer_name`` look at the session."""
        s = t.shares.c
        row = self._db.execute(select(t.shares).where(s.session_id == session_id, s.viewer_name == viewer_name)).first()
        return Share(**row._mapping) if row else None

    def list_shares(self, session_id: str) -> list[Share]:
        """Return a session's shares."""
        rows = self._db.execute(select(t.shares).where(t.shares.c.session_id == session_id).order_by(t.shares.c.id))
        return [Share(**row._mapping) for row in rows]

    def list_shares_for(self, viewer_name: str) -> list[Share]:
        """Return what a user may look at."""
        rows = self._db.execute(select(t.shares).where(t.shares.c.viewer_name == viewer_name).order_by(t.shares.c.id))
        return [Share(**row._mapping) for row in rows]

    def list_share_ids(self) -> set[int]:
        """Return the ids of all shares."""
        return set(self._db.execute(select(t.shares.c.id)).scalars())

    def delete_share(self, share_id: int) -> None:
        """Delete a share."""
        self._db.execute(delete(t.shares).where(t.shares.c.id == share_id))

    def delete_shares(self, session_id: str) -> list[Share]:
        """Delete a session's shares, and what is asked about it; return the shares."""
        found = self.list_shares(session_id)
        self._db.execute(delete(t.shares).where(t.shares.c.session_id == session_id))
        self._db.execute(delete(t.asks).where(t.asks.c.session_id == session_id))
        return found

    def delete_shares_for(self, viewer_name: str) -> None:
        """Delete what a user may look at, and has asked for."""
        self._db.execute(delete(t.shares).where(t.shares.c.viewer_name == viewer_name))
        self._db.execute(delete(t.asks).where(t.asks.c.viewer_name == viewer_name))

    # control

    def set_control(self, share_id: int, until: datetime | None) -> None:
        """Let the viewer of a share type and point, or no more."""
        self._db.execute(update(t.shares).where(t.shares.c.id == share_id).values(control_until=until))

    def list_controlled(self, owner_name: str | None = None) -> list[Share]:
        """Return shares whose viewer was let control, the time over or not: a user's, or all."""
        query = select(t.shares).where(t.shares.c.control_until.is_not(None))
        if owner_name is not None:
            query = query.where(t.shares.c.owner_name == owner_name)
        return [Share(**row._mapping) for row in self._db.execute(query.order_by(t.shares.c.id))]

    def list_controlled_ids(self, at: datetime) -> set[int]:
        """Return the ids of shares whose viewer may control now."""
        return set(self._db.execute(select(t.shares.c.id).where(t.shares.c.control_until > at)).scalars())

    # asks

    def add_ask(self, session_id: str, owner_name: str, viewer_name: str, at: datetime, *, brief: bool) -> Ask:
        """Add a question; of one viewer about one session there is one at most."""
        values = {"session_id": session_id, "owner_name": owner_name, "viewer_name": viewer_name, "at": at}
        result = self._db.execute(insert(t.asks).values(**values, brief=brief))
        return Ask(int(result.lastrowid), session_id, owner_name, viewer_name, at, brief)

    def find_ask(self, session_id: str, *, viewer_name: str = "", ask_id: int = 0) -> Ask | None:
        """Return a question about a session, by who asks or by its number."""
        which = t.asks.c.id == ask_id if ask_id else t.asks.c.viewer_name == viewer_name
        row = self._db.execute(select(t.asks).where(t.asks.c.session_id == session_id, which)).first()
        return Ask(**row._mapping) if row else None

    def list_asks(self, owner_name: str | None = None) -> list[Ask]:
        """Return what a user is asked, or everybody."""
        query = select(t.asks)
        if owner_name is not None:
            query = query.where(t.asks.c.owner_name == owner_name)
        return [Ask(**row._mapping) for row in self._db.execute(query.order_by(t.asks.c.id))]

    def delete_ask(self, ask_id: int) -> None:
        """Delete a question: it was answered, or is not asked any more."""
        self._db.execute(delete(t.asks).where(t.asks.c.id == ask_id))
