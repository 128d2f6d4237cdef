"""Events: workshops with seats made ahead. What an organiser decides and a participant gets; knows no HTTP."""

from portico.events.service import Events, Removal

__all__ = ["Events", "Removal"]
