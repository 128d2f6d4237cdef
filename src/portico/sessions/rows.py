"""The store, for asyncio: each transaction in a thread of its own, so that a slow disk holds up no page."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from portico.model import Session
from portico.sessions.changes import Changes
from portico.store import Store, Transaction

T = TypeVar("T")


class Rows:
    """Reads and changes; whoever may see a changed session is told."""

    def __init__(self, store: Store, changes: Changes) -> None:
        self._store = store
        self._changes = changes

    async def read(self, function: Callable[[Transaction], T]) -> T:
        """Return what ``function`` reads.

        Raises:
            Unavailable: The database does not answer.
        """

        def run() -> T:
            with self._store.read() as tx:
                return function(tx)

        return await asyncio.to_thread(run)

    async def write(self, function: Callable[[Transaction], T]) -> T:
        """Return what ``function`` returns, after its changes were committed.

        Raises:
            Unavailable: The database can't be written; nothing was changed.
        """

        def run() -> T:
            with self._store.begin() as tx:
                return function(tx)

        return await asyncio.to_thread(run)

    async def update(
        self,
        session_id: str,
        change: Callable[[Session], Session | None],
        audit: Callable[[Transaction], None] | None = None,
    ) -> Session | None:
        """Change a session in one transaction; return it as it is afterwards, None where there is none.

        Args:
            session_id: Whose.
            change: Sees it as it is then, and returns None for no change.
            audit: Writes the audit row, where a person caused the change.
        """

        def write(tx: Transaction) -> tuple[Session | None, set[str]]:
            found = tx.find_session(session_id)
            changed = change(found) if found else None
            if changed:
                tx.save_session(changed)
            if audit:
                audit(tx)
            told = {changed.user_name, *(s.viewer_name for s in tx.list_shares(session_id))} if changed else set()
            return changed or found, told

        session, told = await self.write(write)
        self._changes.tell(*told)
        return session
