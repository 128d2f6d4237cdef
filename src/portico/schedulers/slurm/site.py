"""The cluster itself: partitions, nodes, and what accounts and QOS its users have. Pure.

These are the administrators' texts, not users'; scontrol's ``-o`` lines are read by their ``Key=value`` pairs.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

from portico.errors import Invalid
from portico.schedulers.protocol import Capacity, Job, JobRequest, JobState, Node, Offer, Qos, Reservation
from portico.schedulers.slurm.command import Command, Result
from portico.schedulers.slurm.history import parse_pairs
from portico.schedulers.slurm.refusals import translate
from portico.schedulers.slurm.submit import PLACE
from portico.schedulers.slurm.text import (
    MIB,
    clean,
    decode,
    expand_nodes,
    is_nothing,
    parse_duration,
    parse_int,
    parse_time,
    render_minutes,
)

T = TypeVar("T")

_GB: Final = 1_000_000_000
_USABLE: Final = frozenset({"IDLE", "MIXED", "ALLOCATED", "COMPLETING", "CLOUD", "DYNAMIC_NORM", "PLANNED", "RESERVED",
                           "POWERED_DOWN", "POWERING_UP", "POWER_UP", "POWERED_UP", "COMP"})  # fmt: skip
"""A node is usable while each part of its state is one of these (sinfo(1), "NODE STATE CODES")."""


@dataclass(frozen=True)
class Partition:
    """A partition; None or empty: no limit of its own, everybody."""

    name: str
    default: bool
    state: str
    node_names: tuple[str, ...]
    max_time_s: float | None
    default_time_s: float | None
    max_nodes: int | None
    allow_accounts: frozenset[str] | None
    deny_accounts: frozenset[str]
    allow_groups: frozenset[str] | None
    allow_qos: frozenset[str] | None
    deny_qos: frozenset[str]
    hidden: bool
    root_only: bool


@dataclass(frozen=True)
class Association:
    """That a user may charge an account, with these QOS; ``partition`` is empty for all of them."""

    account: str
    user: str
    partition: str
    qos: tuple[str, ...]
    default_qos: str
    max_time_s: float | None


def list_partitions() -> Command[list[Partition]]:
    """Ask for the partitions, hidden ones too."""
    return _show("partition", "Asking for the partitions", _parse_partition, ("--all",))


def list_nodes() -> Command[list[Node]]:
    """Ask for the nodes."""
    return _show("node", "Asking for the nodes", _parse_node, ())


def list_reservations() -> Command[list[Reservation]]:
    """Ask for the reservations, whomever they are for; one whose name sbatch takes for several can't be had."""

    def parse(result: Result) -> list[Reservation]:
        if result.status or result.timed_out:
            raise translate(result, "Asking for the reservations")
        lines = decode(result).splitlines()
        found = [_parse_reservation(parse_pairs(line)) for line in lines if line.startswith("ReservationName=")]
        return [one for one in found if re.fullmatch(PLACE, one.name)]

    return Command(("scontrol", "--oneliner", "show", "reservation"), parse)


def list_associations(cluster_name: str) -> Command[list[Association]]:
    """Ask accounting who may charge what on a cluster; all users, one question.

    Raises:
        Invalid: This is no name of a cluster.
    """
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,40}", cluster_name):
        raise Invalid(f"Slurm's cluster can't be called {cluster_name[:40]!r}.")
    names = ("cluster", "account", "user", "partition", "qos", "defaultqos", "maxwall")

    def parse(values: list[str]) -> Association | None:
        _, account, user, partition, qos, default, wall = values
        if not user:
            return None  # an account's own line
        return Association(account, user, partition, _split(qos), default, parse_duration(wall))

    return _ask_accounting(("show", "association", f"cluster={cluster_name}"), names, parse)


def list_default_accounts() -> Command[dict[str, str]]:
    """Ask accounting for each user's default account."""

    def parse(values: list[str]) -> tuple[str, str]:
        return values[0], values[1]

    command = _ask_accounting(("show", "user"), ("user", "defaultaccount"), parse)
    return Command(command.argv, lambda result: dict(command.parse(result)), env=command.env)


def list_qos() -> Command[list[Qos]]:
    """Ask accounting for the QOS."""
    names = ("name", "maxwall", "maxjobsperuser", "maxsubmitjobsperuser", "priority")

    def parse(values: list[str]) -> Qos:
        name, wall, running, submitted, priority = values
        return Qos(name, parse_duration(wall), _parse_most(running), _parse_most(submitted), parse_int(priority))

    return _ask_accounting(("show", "qos"), names, parse)


def read_settings() -> Command[dict[str, str]]:
    """Ask the controller for its settings, such as ClusterName, MinJobAge and AccountingStorageEnforce."""

    def parse(result: Result) -> dict[str, str]:
        if result.status or result.timed_out:
            raise translate(result, "Asking for the cluster's settings")
        pairs = (line.partition("=") for line in decode(result).splitlines())
        return {name.strip(): value.strip() for name, sign, value in pairs if sign}

    return Command(("scontrol", "show", "config"), parse)


def _ask_accounting(
    what: tuple[str, ...], names: tuple[str, ...], parse: Callable[[list[str]], T | None]
) -> Command[list[T]]:
    def read(result: Result) -> list[T]:
        if result.status or result.timed_out:
            raise translate(result, "Asking accounting")
        lines = [line.split("|") for line in decode(result).splitlines()]
        found = [parse(values) for values in lines if len(values) == len(names)]
        return [value for value in found if value is not None]

    argv = ("sacctmgr", "--immediate", "--noheader", "--parsable2", "--readonly", *what)
    return Command((*argv, f"format={','.join(names)}"), read)


def _show(kind: str, doing: str, parse: Callable[[Mapping[str, str]], T], more: tuple[str, ...]) -> Command[list[T]]:
    def read(result: Result) -> list[T]:
        if result.status or result.timed_out:
            raise translate(result, doing)
        head = {"partition": "PartitionName=", "node": "NodeName="}[kind]
        return [parse(parse_pairs(line)) for line in decode(result).splitlines() if line.startswith(head)]

    return Command(("scontrol", *more, "--oneliner", "show", kind), read)


def _parse_partition(values: Mapping[str, str]) -> Partition:
    def take_set(name: str) -> frozenset[str] | None:
        text = values.get(name, "ALL")
        return None if text.upper() == "ALL" or is_nothing(text) else frozenset(text.split(","))

    nodes = values.get("MaxNodes", "UNLIMITED")
    return Partition(
        name=values["PartitionName"],
        default=values.get("Default") == "YES",
        state=values.get("State", "UP"),
        node_names=expand_nodes(values.get("Nodes", "")),
        max_time_s=parse_duration(values.get("MaxTime", "")),
        default_time_s=parse_duration(values.get("DefaultTime", "")),
        max_nodes=int(nodes) if nodes.isdecimal() else None,
        allow_accounts=take_set("AllowAccounts"),
        deny_accounts=take_set("DenyAccounts") or frozenset(),
        allow_groups=take_set("AllowGroups"),
        allow_qos=take_set("AllowQos"),
        deny_qos=take_set("DenyQos") or frozenset(),
        hidden=values.get("Hidden") == "YES",
        root_only=values.get("RootOnly") == "YES",
    )


def _parse_reservation(values: Mapping[str, str]) -> Reservation:
    def take(name: str) -> tuple[str, ...]:
        text = values.get(name, "")
        return () if is_nothing(text) else _split(clean(text))

    partition = values.get("PartitionName", "")
    return Reservation(
        name=clean(values["ReservationName"]),
        begins=parse_time(values.get("StartTime", "")),
        ends=parse_time(values.get("EndTime", "")),
        partition="" if is_nothing(partition) else partition,
        node_names=expand_nodes(values.get("Nodes", "")),
        users=take("Users"),
        groups=take("Groups"),
        accounts=take("Accounts"),
    )


def _parse_node(values: Mapping[str, str]) -> Node:
    word = values.get("State", "UNKNOWN")
    load = values.get("CPULoad", "")
    return Node(
        name=values["NodeName"],
        word=word.lower(),
        usable=_USABLE.issuperset(word.rstrip("~#^%@$+-").split("+")),
        partitions=_split(values.get("Partitions", "")),
        cores=parse_int(values.get("CPUTot", "")),
        cores_held=parse_int(values.get("CPUAlloc", "")),
        memory_bytes=parse_int(values.get("RealMemory", "")) * MIB,
        memory_held_bytes=parse_int(values.get("AllocMem", "")) * MIB,
        load=float(load) if re.fullmatch(r"\d+(\.\d+)?", load) else None,
        gres=clean(values.get("Gres", "")),
        why=clean(values.get("Reason", "")),
    )


def _parse_most(text: str) -> int | None:
    return int(text) if text.isdecimal() else None


def _split(text: str) -> tuple[str, ...]:
    return tuple(part for part in text.split(",") if part)


@dataclass(frozen=True)
class Site:
    """What is asked for rarely, together. ``enforced``: who has no account may not submit."""

    partitions: tuple[Partition, ...]
    nodes: tuple[Node, ...]
    enforced: bool = False
    qos: tuple[Qos, ...] = ()
    associations: tuple[Association, ...] = ()
    default_accounts: Mapping[str, str] = field(default_factory=dict)
    reservations: tuple[Reservation, ...] = ()

    def find_offers(self, user_name: str, groups: Collection[str]) -> list[Offer]:
        """Return what a user may ask for, the default partition first; empty for one who may ask for nothing."""
        offers = [self._offer(partition, user_name, groups) for partition in self.partitions]
        return sorted((offer for offer in offers if offer), key=lambda offer: (not offer.default, offer.partition))

    def _offer(self, partition: Partition, user_name: str, groups: Collection[str]) -> Offer | None:
        if partition.root_only or (partition.allow_groups is not None and not partition.allow_groups & set(groups)):
            return None
        mine = [
            a
            for a in self.associations
            if a.user == user_name
            and a.partition in ("", partition.name)
            and (partition.allow_accounts is None or a.account in partition.allow_accounts)
            and a.account not in partition.deny_accounts
        ]
        if self.enforced and not mine:
            return None
        first = self.default_accounts.get(user_name, "")
        longest = max((_or_endless(a.max_time_s) for a in mine), default=_or_endless(None))
        nodes = [node for node in self.nodes if partition.name in node.partitions]
        return Offer(
            partition=partition.name,
            default=partition.default,
            closed=_describe_closed(partition, nodes),
            accounts=tuple(sorted({a.account for a in mine}, key=lambda name: (name != first, name))),
            qos=self._list_qos(partition, mine),
            max_time_s=_or_none(min(longest, _or_endless(partition.max_time_s))),
            default_time_s=partition.default_time_s,
            max_nodes=min(len(nodes), partition.max_nodes if partition.max_nodes is not None else len(nodes)),
            max_cores_per_node=max((node.cores for node in nodes), default=0),
            max_memory_per_node_bytes=max((node.memory_bytes for node in nodes), default=0),
            gres=tuple(sorted({node.gres for node in nodes if node.gres})),
            reservations=tuple(
                one.name
                for one in self.reservations
                if one.partition in ("", partition.name)
                and set(one.node_names) & {node.name for node in nodes}
                and _is_for(one, user_name, groups, {a.account for a in mine})
            ),
        )

    def _list_qos(self, partition: Partition, mine: Collection[Association]) -> tuple[Qos, ...]:
        names = {name for a in mine for name in a.qos if partition.allow_qos is None or name in partition.allow_qos}
        known = {qos.name: qos for qos in self.qos}
        defaults = {a.default_qos for a in mine}
        found = [known[name] for name in names - partition.deny_qos if name in known]
        return tuple(sorted(found, key=lambda qos: (qos.name not in defaults, qos.name != "normal", qos.name)))


def _is_for(one: Reservation, user_name: str, groups: Collection[str], accounts: Collection[str]) -> bool:
    """Return whether a reservation may be for a user; who has no account at all is not judged by accounts."""
    kinds = ((one.users, {user_name}), (one.groups, set(groups)), (one.accounts, set(accounts)))
    return any(
        not own & {text.removeprefix("-") for text in wanted} if wanted[0].startswith("-") else own & set(wanted)
        for wanted, own in kinds
        if wanted
    )


def refuse_impossible(request: JobRequest, offers: Collection[Offer]) -> None:
    """Do nothing if one of the offers could run this some day.

    Raises:
        Invalid: None could; ``field`` says what stands against it.
    """
    options = request.options
    if not offers:
        raise Invalid(
            "You may not use this cluster.",
            why="You have no account in Slurm's accounting that a partition takes.",
            hint="Ask an administrator or your project's coordinator.",
        )
    wanted = options.partition.split(",") if options.partition else []
    chosen = [o for o in offers if o.partition in wanted] if wanted else [o for o in offers if o.default] or [*offers]
    if not chosen:
        names = ", ".join(offer.partition for offer in offers)
        raise Invalid(f"There is no partition {options.partition[:80]!r} for you.", hint=f"There are: {names}.",
                      field="partition")  # fmt: skip
    refusals = [_find_refusal(request, offer) for offer in chosen]
    if all(refusals):
        raise next(refusal for refusal in refusals if refusal)


def refuse_unknown(wanted: str, reservations: Collection[Reservation]) -> None:
    """Do nothing if there are these reservations, whose names stand between commas.

    Raises:
        Invalid: There is not; whom they are for, Slurm says.
    """
    names = [one.name for one in reservations]
    if unknown := [name for name in wanted.split(",") if name not in names]:
        raise Invalid(f"There is no reservation {unknown[0][:80]!r}.", why="It may have ended.",
                      hint="Leave it empty, or ask who made it.", field="reservation")  # fmt: skip


def _find_refusal(request: JobRequest, offer: Offer) -> Invalid | None:
    options, name = request.options, offer.partition
    if options.account and offer.accounts and options.account not in offer.accounts:
        return Invalid(f"You can't charge the account {options.account[:80]!r} in partition {name}.",
                       hint=f"You have: {', '.join(offer.accounts)}.", field="account")  # fmt: skip
    qos = next((q for q in offer.qos if q.name == options.qos), None)
    if options.qos and offer.qos and qos is None:
        return Invalid(f"You can't use the QOS {options.qos[:80]!r} in partition {name}.",
                       hint=f"You have: {', '.join(q.name for q in offer.qos)}.", field="qos")  # fmt: skip
    if request.cores > offer.max_cores_per_node:
        return Invalid(f"Nodes of partition {name} have {offer.max_cores_per_node} cores at most; "
                       f"{request.cores:g} for one task can never be had.", hint="Ask for fewer.",
                       field="cores")  # fmt: skip
    if request.memory_bytes > offer.max_memory_per_node_bytes:
        return Invalid(f"Nodes of partition {name} have {offer.max_memory_per_node_bytes / _GB:.1f} GB of memory at "
                       f"most; {request.memory_bytes / _GB:.1f} GB can never be had.", hint="Ask for less.",
                       field="memory_gb")  # fmt: skip
    if options.nodes > offer.max_nodes:
        return Invalid(f"Partition {name} gives one job {offer.max_nodes} nodes at most; {options.nodes} can never be "
                       "had.", hint="Ask for fewer.", field="nodes")  # fmt: skip
    limits = [limit for limit in (offer.max_time_s, qos.max_time_s if qos else None) if limit is not None]
    if limits and request.time_limit_s > min(limits):
        whose = f"QOS {qos.name}" if qos and qos.max_time_s == min(limits) else f"partition {name}"
        return Invalid(f"Jobs of {whose} run for {_describe_time(min(limits))} at most; "
                       f"{_describe_time(request.time_limit_s)} can never be had.", hint="Ask for less time.",
                       field="hours")  # fmt: skip
    return None


def count_capacity(nodes: Iterable[Node], jobs: Iterable[Job]) -> Capacity:
    """Return what the usable nodes have, and what is held."""
    usable = [node for node in nodes if node.usable]
    states = [job.state for job in jobs]
    return Capacity(
        cores=sum(node.cores for node in usable),
        memory_bytes=sum(node.memory_bytes for node in usable),
        cores_held=sum(node.cores_held for node in usable),
        memory_held_bytes=sum(node.memory_held_bytes for node in usable),
        running=states.count(JobState.RUNNING),
        queued=states.count(JobState.QUEUED),
    )


def _or_endless(time: float | None) -> float:
    return float("inf") if time is None else time


def _or_none(time: float) -> float | None:
    return None if time == float("inf") else time


def _describe_time(seconds: float) -> str:
    minutes = int(render_minutes(seconds))
    return f"{minutes} minutes" if minutes < 120 else f"{minutes / 60:g} hours"


def _describe_closed(partition: Partition, nodes: Collection[Node]) -> str:
    if partition.state != "UP":
        return {
            "DOWN": "it is closed: jobs wait until an administrator opens it",
            "DRAIN": "it takes no new jobs at present",
            "INACTIVE": "it takes and starts no jobs at present",
        }.get(partition.state, f"its state is {partition.state.lower()}")
    if nodes and not any(node.usable for node in nodes):
        return "none of its nodes works at present"
    return ""
