"""A cluster: a name for people and URLs, and the scheduler behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from portico.schedulers.protocol import Scheduler

LOCAL: Final = "local"


@dataclass(frozen=True)
class Cluster:
    """A place that runs work. ``kind`` is the adapter's: ``local`` or ``slurm``."""

    name: str
    title: str
    kind: str
    scheduler: Scheduler
