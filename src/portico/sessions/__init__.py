"""Sessions: the catalog of apps, the life of what runs, and the doors through which the gateway reaches it."""

from portico.sessions.catalog import Catalog
from portico.sessions.doors import Doors
from portico.sessions.machine import BrokerMachine
from portico.sessions.service import Sessions

__all__ = ["BrokerMachine", "Catalog", "Doors", "Sessions"]
