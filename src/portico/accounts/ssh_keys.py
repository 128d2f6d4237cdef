"""The public keys with which users come in by SSH. Each is its user's own: nobody else adds, sees or removes one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from portico.accounts.posix import PosixAccounts
from portico.config import Config
from portico.errors import Conflict, Forbidden, Invalid, NotFound, TooMany
from portico.model import Identity, SshKey, UserState, Via, now
from portico.ssh.keys import KIND_NAMES, check_with_openssh, parse_public_key, parse_sources
from portico.store import Store, Transaction

KEYS_MAX: Final = 50
DAYS_MAX: Final = 3650
LABEL_MAX: Final = 100


class SshKeys:
    """Adds, lists and removes keys; sshd asks for them elsewhere.

    Args:
        posix: The POSIX accounts behind the users; a login by SSH needs one.
        on_cut: Called after the commit with tags such as ``key:3``, whose connections must end.
        clock: Returns the time, aware, in UTC.
    """

    def __init__(
        self,
        store: Store,
        config: Config,
        posix: PosixAccounts,
        on_cut: Callable[[list[str]], None] = lambda tags: None,
        clock: Callable[[], datetime] = now,
    ) -> None:
        self._store = store
        self._config = config
        self._posix = posix
        self.on_cut = on_cut
        self._clock = clock

    async def add(
        self, who: Identity, text: str, label: str = "", sources: Sequence[str] = (), days: int = 0
    ) -> SshKey:
        """Add a key of one's own; it is good at once.

        Args:
            who: Whose it is. Not with an API token: who has one for a while would have a way in for good.
            text: As a .pub file or PuTTYgen has it.
            label: What its owner calls it; empty: the comment in the key.
            sources: Networks or addresses, any number in each text; none: everywhere.
            days: After how many it ends; 0: never.

        Raises:
            Invalid: The key, the label, the sources or the days are no good.
            Conflict: Its user has it already.
            TooMany: Its user has as many as one may have.
        """
        if who.via is Via.TOKEN or not who.user_id:
            raise Forbidden(
                "A key is added by its owner in person.",
                why="An API token is not enough, and root is nobody's account here.",
                hint="Sign in in a browser, or use portico keys add on this machine.",
            )
        key = await self._read(who, text, label, sources, days)
        if self._config.multi_user:
            await self._posix.make(who.user_name)
        with self._store.begin() as tx:
            self._check(tx, who, key)
            key = replace(key, id=tx.add_ssh_key(key))
            where, until = ", ".join(key.sources) or "everywhere", f"{days} days" if days else "no end"
            tx.add_audit(who.user_name, "ssh-key:add", key.fingerprint, f"from {where}, {until}", who.address)
        return key

    async def _read(self, who: Identity, text: str, label: str, sources: Sequence[str], days: int) -> SshKey:
        public, label = parse_public_key(text), label.strip()
        if len(label) > LABEL_MAX or not label.isprintable():
            raise Invalid(f"A label is one line of {LABEL_MAX} characters at most.", field="label")
        networks = parse_sources(" ".join(sources))
        if sources and not networks:
            raise Invalid("From which networks?", hint="Write at least one, or choose everywhere.", field="sources")
        if not 0 <= days <= DAYS_MAX:
            raise Invalid(f"A key lives from 1 to {DAYS_MAX} days, or without an end.", field="days")
        bits, fingerprint = await asyncio.to_thread(check_with_openssh, public.kind, public.body)
        at = self._clock()
        return SshKey(
            id=0,
            user_name=who.user_name,
            label=label or public.comment[:LABEL_MAX] or f"{KIND_NAMES[public.kind]} key",
            kind=public.kind,
            body=public.body,
            fingerprint=fingerprint,
            bits=bits,
            sources=networks,
            created=at,
            expires=at + timedelta(days=days) if days else None,
        )

    @staticmethod
    def _check(tx: Transaction, who: Identity, key: SshKey) -> None:
        # While the key was looked at, its user may have been locked, or removed and another one added by that name.
        user = tx.find_user(who.user_name)
        if user is None or user.id != who.user_id or user.state is UserState.LOCKED:
            raise Forbidden("This account is locked.", hint="Ask your administrator.")
        if known := tx.find_ssh_key(who.user_name, key.fingerprint):
            raise Conflict(
                f"You have this key already: {known.label}.",
                hint="To change from where or until when it is good, remove it and add it again.",
                field="key",
            )
        if len(tx.list_ssh_keys(who.user_name)) >= KEYS_MAX:
            raise TooMany(f"You have {KEYS_MAX} keys, as many as one may have.", hint="Remove one that you don't use.")

    def list_keys(self, who: Identity) -> list[SshKey]:
        """Return one's own keys, the oldest first, those that have ended too."""
        with self._store.read() as tx:
            return tx.list_ssh_keys(who.user_name)

    def remove(self, who: Identity, key_id: int) -> None:
        """Remove one of one's own keys; connections that came in with it end.

        Raises:
            NotFound: There is none.
        """
        with self._store.begin() as tx:
            key = tx.delete_ssh_key(who.user_name, key_id)
            if key is None:
                raise NotFound("There is no such key.")
            tx.add_audit(who.user_name, "ssh-key:remove", key.fingerprint, key.label, who.address)
        self.on_cut([f"key:{key_id}"])
