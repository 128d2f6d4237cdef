"""The errors of Portico: one tree, which is also the wire format between its processes.

Every error says what happened (``message``), why (``why``) and what to do next (``hint``); each class has
one ``code``, the same in Python, on the wire, in the REST API and in the docs.

    PorticoError            unexpected: a defect of ours
    ├── Invalid             the request itself is wrong; ``field`` names the form field
    ├── NotSignedIn         nobody is signed in, or the sign-in has ended
    ├── Forbidden           somebody is signed in, and may not do this
    ├── NotFound            there is no such thing, or not for this user
    ├── Conflict            the thing is in a state in which this can't be done
    ├── TooMany             a limit was reached; ``retry_after_s`` says when to come back
    ├── Refused             a process of ours broke a rule of another (broker, agent, gateway)
    └── Unavailable         something needed is not there now: a process, a disk, a program
"""

from __future__ import annotations

from typing import Any, ClassVar

WireError = dict[str, Any]


class PorticoError(Exception):
    """What happened, why, and what to do next.

    Args:
        message: One sentence that a person understands.
        why: The cause, where it is known and not obvious from the message.
        hint: What the reader can do next.
        field: Name of the form field that is at fault.
        retry_after_s: Seconds after which another try makes sense.

    """

    code: ClassVar[str] = "internal"

    def __init__(
        self,
        message: str,
        *,
        why: str = "",
        hint: str = "",
        field: str = "",
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.why = why
        self.hint = hint
        self.field = field
        self.retry_after_s = retry_after_s

    def to_wire(self) -> WireError:
        """Return the JSON object that :func:`from_wire` turns back into this error; empty values are left out."""
        wire: WireError = {"code": self.code, "message": self.message}
        for name in ("why", "hint", "field", "retry_after_s"):
            if value := getattr(self, name):
                wire[name] = value
        return wire


class Invalid(PorticoError):
    """The request itself is wrong; the same request will never succeed."""

    code = "invalid"


class NotSignedIn(PorticoError):
    """Nobody is signed in, or the sign-in has ended."""

    code = "not-signed-in"


class Forbidden(PorticoError):
    """Somebody is signed in, and may not do this."""

    code = "forbidden"


class NotFound(PorticoError):
    """There is no such thing, or not for this user: the two are not told apart."""

    code = "not-found"


class Conflict(PorticoError):
    """The thing is in a state in which this can't be done."""

    code = "conflict"


class TooMany(PorticoError):
    """A limit was reached."""

    code = "too-many"


class Refused(PorticoError):
    """A process of ours refused what another asked; seen by users only when something is broken or under attack."""

    code = "refused"


class Unavailable(PorticoError):
    """Something needed is not there now: a process, a disk, a program. A later try may succeed."""

    code = "unavailable"


BY_CODE: dict[str, type[PorticoError]] = {
    cls.code: cls
    for cls in (PorticoError, Invalid, NotSignedIn, Forbidden, NotFound, Conflict, TooMany, Refused, Unavailable)
}


def from_wire(wire: WireError) -> PorticoError:
    """Return the error that ``wire`` describes; an unknown code becomes the base class."""
    cls = BY_CODE.get(str(wire.get("code")), PorticoError)
    retry = wire.get("retry_after_s")
    return cls(
        str(wire.get("message", "An error without a message.")),
        why=str(wire.get("why", "")),
        hint=str(wire.get("hint", "")),
        field=str(wire.get("field", "")),
        retry_after_s=float(retry) if isinstance(retry, (int, float)) else None,
    )
