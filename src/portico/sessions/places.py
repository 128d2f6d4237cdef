"""Places: how sessions run on a cluster of one kind, and how their apps are reached there.

A scheduler knows jobs; a place knows what a session's job is made of, whether its app answers, and what to do with
sessions that its scheduler has lost. The keeper and the doors ask it, whichever kind it is.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping
from typing import Final, Protocol

from portico.model import App, Range, Reach, Reason, Session
from portico.schedulers.clusters import Cluster
from portico.schedulers.protocol import JobRequest, JobStatus
from portico.sessions.placement import Choice


class Place(Protocol):
    """A cluster, for sessions. Every method raises PorticoError."""

    cluster: Cluster

    def watch(self, call: Callable[[], None]) -> None:
        """Have something called whenever something became of a job after the query that began it."""

    async def find_choices(self, user_name: str) -> list[Choice]:
        """Return where on it a user may run sessions, the default first; empty where there is nothing to choose."""

    async def get_limits(self, user_name: str, app: App) -> tuple[Range, Range, Range]:
        """Return the cores, memory (GB) and hours that a form of this app offers a user."""

    async def check(self, session: Session) -> None:
        """Refuse what can never run here, or not for this user."""

    async def refuse_impossible(self, cores: float, memory_bytes: int) -> None:
        """Refuse more than the whole cluster has, in words that say so."""

    async def prepare(self, session: Session, app: App) -> None:
        """Write what the job needs into the session's folder."""

    async def make_request(self, session: Session) -> JobRequest:
        """Return a session's job."""

    async def query(self) -> dict[str, JobStatus]:
        """Return what the scheduler knows of its jobs, by session id."""

    async def probe(self, session: Session, path: str) -> tuple[bool, str]:
        """Return whether the app answers, and what is waited for where it does not."""

    async def connect(self, session: Session) -> int:
        """Return a descriptor that is connected to the app; the caller owns it."""

    async def connect_ssh(self, session: Session, files: Mapping[str, str]) -> int:
        """Return a descriptor that is connected to a new sshd inside the session; the caller owns it."""

    async def let_go(self, session: Session) -> None:
        """Let go of where a session ran before it was put back into its queue."""

    async def recover(self, session: Session) -> tuple[Reason, str] | None:
        """Take up a live session that the scheduler does not know; return why it has ended, if it has."""

    def search(self, user_names: Collection[str]) -> AsyncIterator[Session]:
        """Yield what runs and the scheduler does not know, as sessions that are starting.

        Nothing that it says is believed but whose it is; where the store does not know it either, it is adopted.
        """

    async def adopt(self, session: Session) -> None:
        """Take up what ``search`` found."""


VNC_PASSWORDS: Final = "vnc-passwords"
"""The file of a desktop's passwords in its session's folder, which the agent writes; without any it is not there."""


def clip(offered: Range, most: float) -> Range:
    """Return a form's range with no more than ``most`` in it."""
    maximum = min(offered.maximum, most)
    minimum = min(offered.minimum, maximum)
    return Range(min(max(offered.default, minimum), maximum), minimum, maximum)


def render_env(session: Session, folder: str) -> dict[str, str]:
    """Return the variables that every session's job has (docs/protocol.md); none of them is a secret."""
    return {
        "PORTICO_SESSION": session.id,
        "PORTICO_SESSION_DIR": folder,
        "PORTICO_BASE_PATH": session.base_path,
        "PORTICO_CORES": f"{session.cores:g}",
        "PORTICO_MEMORY_BYTES": str(session.memory_bytes),
        **({"PORTICO_VNC_PASSWORDS": f"{folder}/{VNC_PASSWORDS}"} if session.reach is Reach.RFB else {}),
        **{f"PORTICO_FORM_{name.upper()}": value for name, value in session.values.items()},
    }
