"""The store keeps users, sign-ins, sessions, shares and the audit log. It knows no rules and no processes."""

from portico.store.store import Store
from portico.store.transaction import Transaction

__all__ = ["Store", "Transaction"]
