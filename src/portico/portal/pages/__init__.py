"""The pages: server-rendered, usable without scripts but for terminal and desktop, which are scripts by nature."""

from portico.portal.pages import (
    entrance,
    event_door,
    events,
    people,
    people_certificates,
    people_ssh,
    work,
    work_connect,
    work_control,
    work_jobs,
)
from portico.portal.pages.routers import find_safe_path, public, router

__all__ = [
    "entrance", "event_door", "events", "find_safe_path", "people", "people_certificates", "people_ssh", "public",
    "router", "work", "work_connect", "work_control", "work_jobs",
]  # fmt: skip
