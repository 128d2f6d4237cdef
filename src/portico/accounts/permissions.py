"""Who may what: one table. A permission is ``noun:verb``, the same word as in the audit log."""

from __future__ import annotations

import enum
from typing import Final

from portico.errors import Forbidden
from portico.model import Identity, Role


class Permission(enum.StrEnum):
    """What one can be allowed to do to things that are not one's own."""

    USER_LIST = "user:list"
    USER_ADD = "user:add"
    USER_LINK = "user:link"
    USER_ROLE = "user:role"
    USER_LOCK = "user:lock"
    USER_REMOVE = "user:remove"
    SIGN_IN_LIST = "sign-in:list"
    SIGN_IN_REVOKE = "sign-in:revoke"
    SESSION_LIST = "session:list"
    SESSION_STOP = "session:stop"
    JOB_LIST = "job:list"
    JOB_CANCEL = "job:cancel"
    APP_DIAGNOSE = "app:diagnose"
    AUDIT_READ = "audit:read"
    METRICS_READ = "metrics:read"
    EVENT_CREATE = "event:create"
    EVENT_MANAGE = "event:manage"


ROLE_PERMISSIONS: Final[dict[Role, frozenset[Permission]]] = {
    Role.USER: frozenset(),
    Role.PARTICIPANT: frozenset(),
    Role.ORGANISER: frozenset({Permission.EVENT_CREATE}),
    Role.MONITOR: frozenset({Permission.METRICS_READ}),
    Role.ADMIN: frozenset(Permission),
}


def may(who: Identity, permission: Permission) -> bool:
    """Return whether this request may do that."""
    return permission in ROLE_PERMISSIONS[who.role]


def require(who: Identity, permission: Permission) -> None:
    """Do nothing if this request may do that.

    Raises:
        Forbidden: It may not.
    """
    if not may(who, permission):
        raise Forbidden("This is for administrators.", why=f"It needs the permission {permission}.")
