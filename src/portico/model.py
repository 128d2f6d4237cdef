"""The nouns of Portico as values: frozen, without I/O, the same in every process. ../DESIGN.md fixes the words."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Final

USER_NAME: Final = re.compile(r"[a-z_][a-z0-9_-]{0,31}\Z")
"""A user's name, which is the POSIX account's too: what shadow's useradd(8) takes, 32 bytes (utmp's limit)."""

SESSION_ID: Final = re.compile(r"[a-z][a-z0-9]{11}\Z")
"""A session's id: 12 characters, fit for a DNS label, a cgroup, a path and a URL; about 60 random bits."""


def now() -> datetime:
    """Return the time, aware, in UTC."""
    return datetime.now(UTC)


class Role(enum.StrEnum):
    """What a user may do is decided by this alone; accounts/permissions.py has the table."""

    USER = "user"
    PARTICIPANT = "participant"  # sits on a seat of an event; less than a user (portal/participants.py)
    ORGANISER = "organiser"
    MONITOR = "monitor"
    ADMIN = "admin"


class UserState(enum.StrEnum):
    """A user without a password is ``invited``; a ``locked`` one can't sign in and has no live stream."""

    INVITED = "invited"
    ACTIVE = "active"
    LOCKED = "locked"


@dataclass(frozen=True)
class User:
    """A person's portal account. ``name`` is the name of the POSIX account too, which is made on demand."""

    id: int
    name: str
    role: Role
    state: UserState
    created: datetime


class Via(enum.StrEnum):
    """How a request proved who it comes from."""

    COOKIE = "cookie"  # a browser that signed in
    TOKEN = "token"  # an API token
    SOCKET = "socket"  # a process on this machine, by its uid (SO_PEERCRED)


@dataclass(frozen=True)
class Identity:
    """Who is asking. ``role`` is what this request may use, which can be less than the user's own.

    ``user_id`` is 0 for root on this machine, who is an admin and nobody's account.
    ``sign_in_id`` is 0 unless ``via`` is COOKIE, ``token_id`` unless it is TOKEN.
    """

    user_id: int
    user_name: str
    role: Role
    via: Via
    sign_in_id: int = 0
    address: str = ""
    token_id: int = 0


@dataclass(frozen=True)
class SignIn:
    """A browser that is signed in. ``address`` and ``browser`` are as last seen and only for people to read."""

    id: int
    user_name: str
    created: datetime
    last_seen: datetime
    expires: datetime
    address: str
    browser: str


class Reach(enum.StrEnum):
    """What an app speaks on its Unix socket."""

    HTTP = "http"
    RFB = "rfb"
    PTY = "pty"


@dataclass(frozen=True)
class Range:
    """What a form offers for a number: its default and inclusive bounds."""

    default: float
    minimum: float
    maximum: float


class FieldKind(enum.StrEnum):
    """The kinds of form field a catalog file may declare."""

    CHOICE = "choice"
    TEXT = "text"
    NUMBER = "number"
    CHECKBOX = "checkbox"


@dataclass(frozen=True)
class Field:
    """A form field of an app. Its value reaches the job as the variable PORTICO_FORM_<NAME>, never as shell text.

    A text's ``choices`` are only proposed.
    """

    name: str
    label: str
    kind: FieldKind
    default: str = ""
    choices: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    pattern: str = ""
    help: str = ""
    required: bool = False


@dataclass(frozen=True)
class Container:
    """How an app uses a container image (docs/apps.md).

    ``inside``: its whole job script runs in the image; else only what the script starts by $PORTICO_CONTAINER.
    ``images`` are those it may run; none named: any below the setting image_dirs. ``binds`` are SOURCE or
    SOURCE:TARGET, ``runtime`` is ``auto`` or a program's name. ``required``: it does not run without an image.
    """

    inside: bool
    images: tuple[str, ...] = ()
    binds: tuple[str, ...] = ()
    runtime: str = "auto"
    required: bool = True


@dataclass(frozen=True)
class App:
    """A catalog entry. ``missing`` says why it can't be started here; empty where it can.

    ``ready_path`` (reach http only) is appended to the session's base path and must answer with a status below 400.
    """

    id: str
    name: str
    summary: str
    reach: Reach
    script: str
    icon: str = ""
    order: int = 100
    cores: Range = Range(1, 1, 1)
    memory_gb: Range = Range(1, 1, 1)
    hours: Range = Range(8, 1, 24)
    fields: tuple[Field, ...] = ()
    ready_path: str = ""
    ready_timeout_s: float = 60
    missing: str = ""
    install_hint: str = ""
    hidden: bool = False  # from users, while ``missing`` (an app that the site may or may not have)
    container: Container | None = None


class SessionState(enum.StrEnum):
    """The life of a session; it only ever moves forward."""

    QUEUED = "queued"
    STARTING = "starting"
    READY = "ready"
    ENDED = "ended"


class Reason(enum.StrEnum):
    """Why a session ended; each has a sentence for people in sessions/reasons.py."""

    STOPPED = "stopped"  # by its user
    STOPPED_BY_ADMIN = "stopped-by-admin"
    FINISHED = "finished"  # the program ended by itself, exit status 0
    FAILED = "failed"  # the program ended with another status or by a signal
    NEVER_READY = "never-ready"  # it ran, and did not answer in time
    TIME_LIMIT = "time-limit"
    OUT_OF_MEMORY = "out-of-memory"
    NODE_FAILED = "node-failed"
    PREEMPTED = "preempted"  # its nodes were needed for something of higher priority
    CANCELLED = "cancelled"  # by somebody, not through Portico
    NOT_STARTED = "not-started"  # Portico could not start it; ``detail`` says why
    LOST = "lost"  # the machine was restarted, or somebody removed its folder


@dataclass(frozen=True)
class Session:
    """A running app of a user, or one that ran.

    ``placement`` is what was chosen of the cluster: of ``partition``, ``account``, ``qos``
    and ``reservation`` those that were.
    ``node_name`` is where it runs, on a cluster that has several; ``position`` counts from 1, 0 is not known.

    ``ends`` is None until it has started. ``detail`` completes ``reason`` for people, e.g. the exit status.
    ``waiting_for`` says what a queued or starting session waits for.

    ``restarts`` counts how often its cluster has put it back into the queue and begun it again; ``put_back`` says why
    it did so last, as the rest of "It was put back into the queue: …".
    """

    id: str
    user_name: str
    app_id: str
    title: str
    cluster: str
    reach: Reach
    cores: float
    memory_bytes: int
    hours: float
    values: dict[str, str] = field(default_factory=dict)
    state: SessionState = SessionState.QUEUED
    waiting_for: str = ""
    reason: Reason | None = None
    detail: str = ""
    created: datetime = field(default_factory=now)
    started: datetime | None = None
    ready: datetime | None = None
    ends: datetime | None = None
    ended: datetime | None = None
    placement: dict[str, str] = field(default_factory=dict)
    node_name: str = ""
    position: int = 0
    expected_start: datetime | None = None
    restarts: int = 0
    put_back: str = ""

    @property
    def base_path(self) -> str:
        """The path below which an app of reach http is served on its own origin."""
        return f"/s/{self.id}/"

    def get_time_left(self, at: datetime) -> timedelta | None:
        """Return how long it may still run, never below zero; None before it started and after it ended."""
        if self.ends is None or self.state is SessionState.ENDED:
            return None
        return max(self.ends - at, timedelta())


@dataclass(frozen=True)
class Share:
    """A session's desktop or terminal that a colleague may look at, until taken back.

    ``control_until`` is until when they may type and point there as well. A share that is ``brief`` was made for that
    alone, and goes with it.
    """

    id: int
    session_id: str
    owner_name: str
    viewer_name: str
    created: datetime
    control_until: datetime | None = None
    brief: bool = False

    def is_controlled(self, at: datetime) -> bool:
        """Return whether the viewer may type and point."""
        return self.control_until is not None and at < self.control_until


@dataclass(frozen=True)
class Ask:
    """Somebody asks to control a session, and its owner has not answered. ``brief`` is what the share would be."""

    id: int
    session_id: str
    owner_name: str
    viewer_name: str
    at: datetime
    brief: bool = False


class NoticeKind(enum.StrEnum):
    """What a notice is about."""

    READY = "ready"
    ENDING = "ending"
    AGAIN = "again"  # it was put back into the queue
    ENDED = "ended"  # with trouble
    DONE = "done"
    MESSAGE = "message"  # from the organiser of an event


@dataclass(frozen=True)
class Notice:
    """What a user is told of a session or job, until they remove it. ``path`` is the page that tells more."""

    id: int
    user_name: str
    at: datetime
    kind: NoticeKind
    path: str
    text: str
    hint: str


@dataclass(frozen=True)
class SshKey:
    """A public key of a user's (RFC 4253, section 6.6). ``body`` is its base64, ``fingerprint`` is ``SHA256:…``.

    ``sources`` are networks in CIDR notation from which alone it is good; empty: from everywhere.
    """

    id: int
    user_name: str
    label: str
    kind: str
    body: str
    fingerprint: str
    bits: int
    sources: tuple[str, ...]
    created: datetime
    expires: datetime | None = None
    last_used: datetime | None = None
    last_address: str = ""


@dataclass(frozen=True)
class SshCertificate:
    """A certificate that was signed for a user's key (OpenSSH, PROTOCOL.certkeys); ``body`` is that of the key."""

    serial: int
    user_name: str
    kind: str
    body: str
    fingerprint: str
    sources: tuple[str, ...]
    created: datetime
    expires: datetime
    revoked: datetime | None = None
    last_used: datetime | None = None
    last_address: str = ""


@dataclass(frozen=True)
class SshConnection:
    """An sshd process that let somebody in with a key (``key:3``) or a certificate (``certificate:4``)."""

    pid: int
    start_ticks: int
    boot_id: str
    credential: str
    user_name: str


class EventState(enum.StrEnum):
    """The life of an event; OPEN and CLOSED alternate, the rest only moves forward."""

    DRAFT = "draft"  # nobody but its organisers sees it
    OPEN = "open"  # the landing page takes registrations
    CLOSED = "closed"  # it takes none; participants go on
    ENDED = "ended"  # nothing runs; participants fetch their folder
    REMOVED = "removed"  # accounts, homes and answers are gone


class SeatState(enum.StrEnum):
    """The life of a seat; then its row is gone, and its name is never given again."""

    MAKING = "making"
    FREE = "free"
    TAKEN = "taken"
    REMOVING = "removing"


@dataclass(frozen=True)
class EventApp:
    """An app that an event offers, and what a session of it gets; None, or no ``image``, is what the app says."""

    app_id: str
    cores: float | None = None
    memory_gb: float | None = None
    hours: float | None = None
    image: str = ""


@dataclass(frozen=True)
class EventField:
    """What the registration asks; of kind TEXT, CHOICE or CHECKBOX."""

    name: str
    label: str
    kind: FieldKind = FieldKind.TEXT
    required: bool = False
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class EventSettings:
    """What an organiser decides of an event. Texts are Markdown; ``colour`` and ``second_colour`` are ``#rrggbb``.

    ``wall``: the organiser sees participants' desktops, view only, and they are told so. ``archive``: the organiser may
    fetch a copy of all seats' homes, and they are told so. ``entry_code``: what a registration asks for, if any.
    ``texts`` are what participants must accept: name and text. ``cluster`` and ``placement`` are as a session's.
    """

    welcome: str = ""
    colour: str = "#2059bd"
    second_colour: str = "#17693a"
    registration: bool = True
    apps: tuple[EventApp, ...] = ()
    cluster: str = ""
    placement: dict[str, str] = field(default_factory=dict)
    fields: tuple[EventField, ...] = ()
    texts: tuple[tuple[str, str], ...] = ()
    start_command: str = ""
    fetch_hours: float = 72
    wall: bool = False
    archive: bool = True
    entry_code: str = ""


@dataclass(frozen=True)
class Line:
    """A number over time, at moments that are equally far apart, the first and the last being the plot's."""

    name: str
    values: tuple[int, ...]


@dataclass(frozen=True)
class Plot:
    """Lines over the same time."""

    title: str
    begins: datetime
    ends: datetime
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Event:
    """A workshop or school. ``summary`` and ``history`` are what stays of it, from its end on: numbers, no names."""

    id: int
    slug: str
    title: str
    organiser_name: str
    state: EventState
    created: datetime
    begins: datetime
    ends: datetime
    settings: EventSettings = field(default_factory=EventSettings)
    ended: datetime | None = None
    summary: dict[str, int] = field(default_factory=dict)
    history: tuple[Plot, ...] = ()

    @property
    def fetch_until(self) -> datetime | None:
        """Until when participants may fetch their folder; None before the end."""
        return self.ended + timedelta(hours=self.settings.fetch_hours) if self.ended else None


@dataclass(frozen=True)
class Seat:
    """A seat of an event: a user and a POSIX account. ``trouble`` is for the organiser to read."""

    id: int
    event_id: int
    name: str
    state: SeatState
    has_secret: bool = False
    trouble: str = ""
    taken: datetime | None = None


@dataclass(frozen=True)
class Registration:
    """What somebody filled in and accepted; without ``seat_name`` they wait for a seat."""

    id: int
    event_id: int
    answers: dict[str, str]
    accepted: dict[str, str]
    at: datetime
    address: str
    seat_name: str = ""


@dataclass(frozen=True)
class EventFile:
    """A file of an event: its logo, or a hand-out."""

    name: str
    kind: str
    media_type: str
    size_bytes: int


@dataclass(frozen=True)
class AuditEntry:
    """A change of state: who did what to whom. ``action`` is ``noun:verb``, as in the permission table."""

    id: int
    at: datetime
    actor: str
    action: str
    target: str
    detail: str
    address: str
