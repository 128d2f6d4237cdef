"""One transaction: narrow, named methods, each one statement or two. Made by Store.begin() and Store.read()."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Row, and_, delete, func, insert, or_, select, update

from portico.model import (
    AuditEntry,
    Notice,
    NoticeKind,
    Reach,
    Reason,
    Role,
    Session,
    SessionState,
    SignIn,
    User,
    UserState,
    now,
)
from portico.store import tables as t
from portico.store.event_rows import EventRows
from portico.store.share_rows import ShareRows
from portico.store.ssh_rows import SshRows

LIVE = (SessionState.QUEUED, SessionState.STARTING, SessionState.READY)


class Transaction(EventRows, ShareRows, SshRows):
    """What can be read and changed at once. Nothing here decides who may."""

    def __init__(self, connection: Connection) -> None:
        self._db = connection

    # users

    def add_user(self, name: str, role: Role, state: UserState, created: datetime) -> User:
        """Add a user without a password."""
        values = {"name": name, "role": role.value, "state": state.value, "created": created}
        result = self._db.execute(insert(t.users).values(values))
        return User(int(result.lastrowid), name, role, state, created)

    def find_user(self, name: str) -> User | None:
        """Return a user by name."""
        row = self._db.execute(select(t.users).where(t.users.c.name == name)).first()
        return _to_user(row) if row else None

    def list_users(self) -> list[User]:
        """Return all users by name."""
        return [_to_user(row) for row in self._db.execute(select(t.users).order_by(t.users.c.name))]

    def count_admins(self) -> int:
        """Return how many active admins there are."""
        active = and_(t.users.c.role == Role.ADMIN.value, t.users.c.state == UserState.ACTIVE.value)
        return int(self._db.execute(select(func.count()).select_from(t.users).where(active)).scalar_one())

    def find_password(self, user_id: int) -> str | None:
        """Return the password's argon2 hash."""
        return self._db.execute(select(t.users.c.password).where(t.users.c.id == user_id)).scalar()

    def set_password(self, user_id: int, password_hash: str) -> None:
        """Set the password's hash."""
        self._db.execute(update(t.users).where(t.users.c.id == user_id).values(password=password_hash))

    def set_user(self, user_id: int, *, role: Role | None = None, state: UserState | None = None) -> None:
        """Set the role or state."""
        values = {k: v.value for k, v in (("role", role), ("state", state)) if v is not None}
        self._db.execute(update(t.users).where(t.users.c.id == user_id).values(values))

    def delete_user(self, user: User) -> None:
        """Delete a user with all that hangs on it; the audit log stays."""
        self._db.execute(delete(t.sessions).where(t.sessions.c.user_name == user.name))
        self._db.execute(delete(t.notices).where(t.notices.c.user_name == user.name))
        self.delete_shares_for(user.name)
        self.delete_ssh(user.name)
        self._db.execute(delete(t.users).where(t.users.c.id == user.id))

    # one-time codes

    def set_code(self, user_id: int, code_hash: str, expires: datetime) -> None:
        """Make this the user's only valid code."""
        self._db.execute(delete(t.codes).where(t.codes.c.user_id == user_id))
        self._db.execute(insert(t.codes).values(hash=code_hash, user_id=user_id, expires=expires))

    def find_code(self, code_hash: str, at: datetime) -> User | None:
        """Return whose code it is, if it is still good."""
        joined = select(t.users).join(t.codes).where(t.codes.c.hash == code_hash, t.codes.c.expires > at)
        row = self._db.execute(joined).first()
        return _to_user(row) if row else None

    def delete_codes(self, user_id: int) -> None:
        """Delete the user's codes."""
        self._db.execute(delete(t.codes).where(t.codes.c.user_id == user_id))

    # sign-ins and tokens

    def add_sign_in(
        self, user_id: int, token_hash: str, created: datetime, expires: datetime, address: str, browser: str
    ) -> int:
        """Add a sign-in; return its id."""
        values = {
            "hash": token_hash,
            "user_id": user_id,
            "created": created,
            "last_seen": created,
            "expires": expires,
            "address": address[:64],
            "browser": browser[:200],
        }
        return int(self._db.execute(insert(t.sign_ins).values(values)).lastrowid)

    def find_sign_in(self, token_hash: str) -> tuple[User, SignIn] | None:
        """Return a sign-in and its user by the token's hash, expired ones too."""
        return self._find_sign_in(t.sign_ins.c.hash == token_hash)

    def find_sign_in_by_id(self, sign_in_id: int) -> tuple[User, SignIn] | None:
        """Return a sign-in and its user, expired ones too."""
        return self._find_sign_in(t.sign_ins.c.id == sign_in_id)

    def _find_sign_in(self, where: Any) -> tuple[User, SignIn] | None:
        columns = select(t.users, *_sign_in_columns())
        row = self._db.execute(columns.join_from(t.sign_ins, t.users).where(where)).first()
        return (_to_user(row), _to_sign_in(row)) if row else None

    def list_sign_ins(self, at: datetime, user_id: int | None = None, limit: int = 500) -> list[SignIn]:
        """Return live sign-ins, the last used first."""
        query = select(t.users, *_sign_in_columns()).join_from(t.sign_ins, t.users).where(t.sign_ins.c.expires > at)
        if user_id is not None:
            query = query.where(t.users.c.id == user_id)
        rows = self._db.execute(query.order_by(t.sign_ins.c.last_seen.desc()).limit(limit))
        return [_to_sign_in(row) for row in rows]

    def count_sign_ins(self, at: datetime, idle_since: datetime) -> int:
        """Return how many sign-ins hold."""
        holds = and_(t.sign_ins.c.expires > at, t.sign_ins.c.last_seen > idle_since)
        return int(self._db.execute(select(func.count()).select_from(t.sign_ins).where(holds)).scalar_one())

    def touch_sign_in(self, sign_in_id: int, at: datetime, address: str) -> None:
        """Record that a sign-in was used."""
        values = {"last_seen": at, "address": address[:64]}
        self._db.execute(update(t.sign_ins).where(t.sign_ins.c.id == sign_in_id).values(values))

    def delete_sign_in(self, sign_in_id: int) -> None:
        """Delete a sign-in, with its tickets and grants."""
        self._db.execute(delete(t.sign_ins).where(t.sign_ins.c.id == sign_in_id))

    def delete_sign_ins(self, user_id: int, but: int = 0) -> None:
        """Delete a user's sign-ins, one left out."""
        self._db.execute(delete(t.sign_ins).where(t.sign_ins.c.user_id == user_id, t.sign_ins.c.id != but))

    def delete_expired(self, at: datetime, idle_since: datetime) -> None:
        """Delete what has expired: sign-ins, tokens, codes, tickets, grants."""
        self._db.execute(
            delete(t.sign_ins).where(or_(t.sign_ins.c.expires <= at, t.sign_ins.c.last_seen <= idle_since))
        )
        for table in (t.api_tokens, t.codes, t.tickets, t.grants):
            self._db.execute(delete(table).where(table.c.expires <= at))

    def add_api_token(self, user_id: int, token_hash: str, label: str, created: datetime, expires: datetime) -> int:
        """Add an API token; return its id."""
        values = {"user_id": user_id, "hash": token_hash, "label": label, "created": created, "expires": expires}
        return int(self._db.execute(insert(t.api_tokens).values(values)).lastrowid)

    def find_api_token(self, token_hash: str, at: datetime) -> tuple[User, int] | None:
        """Return whose live token it is, and its id."""
        query = select(t.users, t.api_tokens.c.id.label("token_id")).join_from(t.api_tokens, t.users)
        row = self._db.execute(query.where(t.api_tokens.c.hash == token_hash, t.api_tokens.c.expires > at)).first()
        return (_to_user(row), int(row.token_id)) if row else None

    def touch_api_token(self, token_id: int, at: datetime) -> None:
        """Record that a token was used."""
        self._db.execute(update(t.api_tokens).where(t.api_tokens.c.id == token_id).values(last_used=at))

    def list_api_tokens(self, user_id: int) -> list[dict[str, Any]]:
        """Return a user's tokens: id, label, created, last_used, expires."""
        c = t.api_tokens.c
        query = select(c.id, c.label, c.created, c.last_used, c.expires).where(c.user_id == user_id).order_by(c.id)
        return [dict(row._mapping) for row in self._db.execute(query)]

    def delete_api_token(self, user_id: int, token_id: int) -> bool:
        """Delete one of a user's tokens; return whether there was one."""
        mine = and_(t.api_tokens.c.user_id == user_id, t.api_tokens.c.id == token_id)
        return bool(self._db.execute(delete(t.api_tokens).where(mine)).rowcount)

    def delete_api_tokens(self, user_id: int) -> None:
        """Delete all of a user's tokens."""
        self._db.execute(delete(t.api_tokens).where(t.api_tokens.c.user_id == user_id))

    # failed sign-ins

    def add_failure(self, name: str, address: str, at: datetime) -> None:
        """Record a failed sign-in."""
        self._db.execute(insert(t.failures).values(name=name[:32], address=address[:64], at=at))

    def count_failures(self, since: datetime, *, name: str | None = None, address: str | None = None) -> int:
        """Return how many there were."""
        query = select(func.count()).select_from(t.failures).where(t.failures.c.at > since)
        if name is not None:
            query = query.where(t.failures.c.name == name[:32])
        if address is not None:
            query = query.where(t.failures.c.address == address[:64])
        return int(self._db.execute(query).scalar_one())

    def clear_failures(self, name: str, address: str) -> None:
        """Forget the failures of one account from one address."""
        f = t.failures.c
        self._db.execute(delete(t.failures).where(f.name == name[:32], f.address == address[:64]))

    def delete_failures(self, before: datetime) -> None:
        """Forget old failures."""
        self._db.execute(delete(t.failures).where(t.failures.c.at <= before))

    # sessions

    def add_session(self, session: Session) -> None:
        """Add a session."""
        self._db.execute(insert(t.sessions).values(_from_session(session)))

    def save_session(self, session: Session) -> None:
        """Write a session's present state."""
        self._db.execute(update(t.sessions).where(t.sessions.c.id == session.id).values(_from_session(session)))

    def find_session(self, session_id: str) -> Session | None:
        """Return a session by id."""
        row = self._db.execute(select(t.sessions).where(t.sessions.c.id == session_id)).first()
        return _to_session(row) if row else None

    def list_sessions(
        self, user_name: str | None = None, states: Collection[SessionState] = (), limit: int = 1000
    ) -> list[Session]:
        """Return sessions, the newest first."""
        query = select(t.sessions)
        if user_name is not None:
            query = query.where(t.sessions.c.user_name == user_name)
        if states:
            query = query.where(t.sessions.c.state.in_([state.value for state in states]))
        rows = self._db.execute(query.order_by(t.sessions.c.created.desc()).limit(limit))
        return [_to_session(row) for row in rows]

    def list_event_sessions(self, event_id: int) -> list[Session]:
        """Return the sessions of an event's seats, those that ended too, the oldest first."""
        names = select(t.seats.c.name).where(t.seats.c.event_id == event_id)
        rows = self._db.execute(
            select(t.sessions).where(t.sessions.c.user_name.in_(names)).order_by(t.sessions.c.created)
        )
        return [_to_session(row) for row in rows]

    def list_live_sessions(self) -> list[Session]:
        """Return all sessions that have not ended, the oldest first."""
        return self.list_sessions(states=LIVE, limit=100_000)[::-1]

    def count_live(self, user_name: str) -> int:
        """Return how many of a user's sessions have not ended."""
        s = t.sessions.c
        mine = and_(s.user_name == user_name, s.state.in_([state.value for state in LIVE]))
        return int(self._db.execute(select(func.count()).select_from(t.sessions).where(mine)).scalar_one())

    def count_sessions(self) -> dict[tuple[str, str], int]:
        """Return how many sessions there are, by state and app."""
        s = t.sessions.c
        rows = self._db.execute(select(s.state, s.app_id, func.count()).group_by(s.state, s.app_id))
        return {(str(state), str(app_id)): int(count) for state, app_id, count in rows}

    def delete_session(self, session_id: str) -> None:
        """Delete a session, with its shares, tickets and grants."""
        self._db.execute(delete(t.sessions).where(t.sessions.c.id == session_id))

    # tickets and grants

    def add_ticket(self, ticket_hash: str, session_id: str, sign_in_id: int, user_name: str, expires: datetime) -> None:
        """Add a one-time ticket."""
        self._add_pass(t.tickets, ticket_hash, session_id, sign_in_id, user_name, expires)

    def take_ticket(self, ticket_hash: str, at: datetime) -> tuple[str, int, str] | None:
        """Delete a ticket and return its (session_id, sign_in_id, user_name); None where there is none, or no more."""
        c = t.tickets.c
        row = self._db.execute(
            delete(t.tickets).where(c.hash == ticket_hash).returning(c.session_id, c.sign_in_id, c.user_name, c.expires)
        ).first()
        return (row.session_id, row.sign_in_id, row.user_name) if row and row.expires > at else None

    def add_grant(self, grant_hash: str, session_id: str, sign_in_id: int, user_name: str, expires: datetime) -> None:
        """Add the grant that a ticket became."""
        self._add_pass(t.grants, grant_hash, session_id, sign_in_id, user_name, expires)

    def find_grant(self, grant_hash: str, at: datetime) -> tuple[str, int, str] | None:
        """Return a live grant's (session_id, sign_in_id, user_name)."""
        c = t.grants.c
        query = select(c.session_id, c.sign_in_id, c.user_name).where(c.hash == grant_hash, c.expires > at)
        row = self._db.execute(query).first()
        return (row.session_id, row.sign_in_id, row.user_name) if row else None

    def delete_grants(self, session_id: str) -> None:
        """Delete a session's tickets and grants."""
        for table in (t.tickets, t.grants):
            self._db.execute(delete(table).where(table.c.session_id == session_id))

    def _add_pass(
        self, table: Any, pass_hash: str, session_id: str, sign_in_id: int, user_name: str, expires: datetime
    ) -> None:
        values = {
            "hash": pass_hash,
            "session_id": session_id,
            "sign_in_id": sign_in_id,
            "user_name": user_name,
            "expires": expires,
        }
        self._db.execute(insert(table).values(values))

    # notices

    def add_notice(self, user_name: str, at: datetime, kind: NoticeKind, path: str, text: str, hint: str) -> None:
        """Add a notice."""
        values = {"user_name": user_name, "at": at, "kind": kind.value, "path": path}
        self._db.execute(insert(t.notices).values(**values, text=text[:1000], hint=hint[:1000]))

    def list_notices(self, user_name: str, limit: int) -> list[Notice]:
        """Return a user's notices, the newest first."""
        query = select(t.notices).where(t.notices.c.user_name == user_name).order_by(t.notices.c.id.desc())
        return [
            Notice(**{**row._mapping, "kind": NoticeKind(row.kind)}) for row in self._db.execute(query.limit(limit))
        ]

    def delete_notice(self, user_name: str, notice_id: int) -> bool:
        """Delete a user's notice; return whether there was one."""
        c = t.notices.c
        return self._db.execute(delete(t.notices).where(c.id == notice_id, c.user_name == user_name)).rowcount > 0

    def delete_notices(self, before: datetime) -> None:
        """Delete all that are older."""
        self._db.execute(delete(t.notices).where(t.notices.c.at < before))

    # audit

    def add_audit(self, actor: str, action: str, target: str, detail: str = "", address: str = "") -> None:
        """Record who did what to whom; ``action`` is ``noun:verb``."""
        values = {
            "at": now(),
            "actor": actor[:32],
            "action": action[:40],
            "target": target[:100],
            "detail": detail[:1000],
            "address": address[:64],
        }
        self._db.execute(insert(t.audit).values(values))

    def list_audit(self, limit: int, before_id: int | None = None, actor: str = "") -> list[AuditEntry]:
        """Return audit rows, the newest first."""
        query = select(t.audit)
        if before_id is not None:
            query = query.where(t.audit.c.id < before_id)
        if actor:
            query = query.where(t.audit.c.actor == actor)
        rows = self._db.execute(query.order_by(t.audit.c.id.desc()).limit(limit))
        return [AuditEntry(**row._mapping) for row in rows]


def _sign_in_columns() -> list[Any]:
    c = t.sign_ins.c
    return [
        c.id.label("sign_in_id"),
        c.created.label("sign_in_created"),
        c.last_seen,
        c.expires,
        c.address,
        c.browser,
    ]


def _to_user(row: Row[Any]) -> User:
    return User(row.id, row.name, Role(row.role), UserState(row.state), row.created)


def _to_sign_in(row: Row[Any]) -> SignIn:
    return SignIn(row.sign_in_id, row.name, row.sign_in_created, row.last_seen, row.expires, row.address, row.browser)


def _from_session(session: Session) -> dict[str, Any]:
    values = asdict(session)
    values["state"], values["reach"] = session.state.value, session.reach.value
    values["reason"] = session.reason.value if session.reason else None
    return values


def _to_session(row: Row[Any]) -> Session:
    values = dict(row._mapping)
    values["state"], values["reach"] = SessionState(values["state"]), Reach(values["reach"])
    values["reason"] = Reason(values["reason"]) if values["reason"] else None
    return Session(**values)
