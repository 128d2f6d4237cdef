"""Where on a cluster a session shall run: what a user may choose, and the choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from portico.errors import Invalid

PLACEMENT_FIELDS = ("partition", "account", "qos", "reservation")
"""The names of a choice's parts, in forms and in ``Session.placement``."""
NAME_LIMIT = 80


@dataclass(frozen=True)
class Choice:
    """A partition that a user may use, with accounts, QOS and reservations to choose from there; the defaults first.

    ``closed`` says why nothing starts there now.
    """

    partition: str
    accounts: tuple[str, ...] = ()
    qos: tuple[str, ...] = ()
    reservations: tuple[str, ...] = ()
    closed: str = ""


def check_names(wanted: Mapping[str, str]) -> None:
    """Do nothing if these may be parts of a choice.

    Raises:
        Invalid: One is no part, or its value no name.
    """
    for name, value in wanted.items():
        if name not in PLACEMENT_FIELDS:
            raise Invalid(f"There is nothing to choose by the name {name[:40]!r}.", field="placement")
        if len(value) > NAME_LIMIT or not value.isprintable():
            raise Invalid(f"This can't be the name of a {name}.", field=name)


def choose(choices: Sequence[Choice], wanted: Mapping[str, str]) -> dict[str, str]:
    """Return a choice's parts, those not wanted left out: then the cluster's own default counts.

    Raises:
        Invalid: There is no such choice; ``field`` names the part.
    """
    wanted = {name: value for name, value in wanted.items() if value}
    check_names(wanted)
    if not wanted:
        return {}
    partition = wanted.get("partition") or (choices[0].partition if choices else "")
    choice = next((one for one in choices if one.partition == partition), None)
    if choice is None:
        raise Invalid(
            f"You can't use the partition {partition[:40]!r}.",
            hint=f"You may use {', '.join(one.partition for one in choices) or 'none'}.",
            field="partition",
        )
    for name, offered in (
        ("account", choice.accounts),
        ("qos", choice.qos),
        ("reservation", choice.reservations),
    ):
        if wanted.get(name) and wanted[name] not in offered:
            raise Invalid(
                f"You can't use the {name} {wanted[name][:40]!r} in {partition}.",
                hint=f"You may use {', '.join(offered) or 'none'}.",
                field=name,
            )
    return wanted
