"""Sessions: the catalog of apps, the life of what runs, and the doors through which the gateway reaches it."""

from portico.schedulers.clusters import LOCAL
from portico.schedulers.protocol import Reservation
from portico.sessions.catalog import Catalog
from portico.sessions.doors import Doors
from portico.sessions.machine import BrokerMachine
from portico.sessions.placement import PLACEMENT_FIELDS, Choice
from portico.sessions.relays import Relays
from portico.sessions.service import Sessions

__all__ = [
    "LOCAL",
    "PLACEMENT_FIELDS",
    "BrokerMachine",
    "Catalog",
    "Choice",
    "Doors",
    "Relays",
    "Reservation",
    "Sessions",
]
