"""What Slurm's states and reasons mean for people: pure tables. Sources: squeue(1) of 22.05 and 24.05, and the rig.

An unknown word degrades: an unknown state counts as running with a warning, an unknown reason is shown as it is.
"""

from __future__ import annotations

import functools
import logging
import re
import signal
from typing import Final

from portico.model import Reason
from portico.schedulers.protocol import JobState

log = logging.getLogger(__name__)

STATES: Final[dict[str, JobState]] = {
    **dict.fromkeys(
        ("PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT", "EXPEDITING"),
        JobState.QUEUED,
    ),
    **dict.fromkeys(
        ("RUNNING", "SUSPENDED", "STOPPED", "COMPLETING", "CONFIGURING", "SIGNALING", "STAGE_OUT", "RESIZING",
         "POWER_UP_NODE", "UPDATE_DB"),
        JobState.RUNNING,
    ),
    **dict.fromkeys(
        ("COMPLETED", "CANCELLED", "FAILED", "TIMEOUT", "DEADLINE", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL",
         "PREEMPTED", "REVOKED", "LAUNCH_FAILED", "RECONFIG_FAIL"),
        JobState.ENDED,
    ),
}  # fmt: skip

WAITS: Final[dict[str, str]] = {
    "Priority": "its turn: jobs of higher priority are ahead",
    "Resources": "nodes to become free",
    "Dependency": "the jobs that it depends on",
    "DependencyNeverSatisfied": "nothing any more: a job that it depends on failed, so it can never start; cancel it",
    "JobHeldUser": "its release: it is on hold",
    "JobHeldAdmin": "its release by an administrator, who put it on hold",
    "launch_failed_requeued_held": "its release: its start failed, and Slurm put it on hold",
    "job_requeued_in_held_state": "its release: it was put back and is on hold",
    "JobHoldMaxRequeue": "its release: it was started too often, and Slurm put it on hold",
    "BeginTime": "the time at which it may begin; after being put back that takes up to two minutes",
    "PartitionDown": "its partition, which is closed at present",
    "PartitionInactive": "its partition, which is closed at present",
    "PartitionNodeLimit": "nothing any more: it asks for more nodes than its partition allows",
    "PartitionTimeLimit": "nothing any more: it asks for more time than its partition allows",
    "PartitionConfig": "nothing any more: it asks for more than its partition has",
    "BadConstraints": "nothing any more: no node is as it asks for",
    "InvalidAccount": "nothing any more: its account is no longer valid",
    "InvalidQOS": "nothing any more: its QOS is no longer valid",
    "AccountNotAllowed": "a change by an administrator: its partition does not take its account",
    "QOSNotAllowed": "a change by an administrator: its partition does not take its QOS",
    "MaxMemPerLimit": "nothing any more: it asks for more memory than is allowed",
    "ReqNodeNotAvail": "nodes that are down, drained or reserved at present",
    "Nodes_required_for_job_are_DOWN,_DRAINED_or_reserved_for_jobs_in_higher_priority_partitions":
        "nodes that are down, drained or reserved at present",
    "NodeDown": "a node that is down at present",
    "Reservation": "its reservation to begin",
    "ReservationDeleted": "an administrator: its reservation was removed",
    "JobArrayTaskLimit": "other tasks of its array: only so many may run at once",
    "Licenses": "a licence to become free",
    "Cleaning": "the end of its earlier run",
    "Prolog": "its node to get ready",
    "FrontEndDown": "a front-end node that is down at present",
    "Reboot": "its node to restart",
    "BurstBufferResources": "space in the burst buffer",
    "BurstBufferStageIn": "its data to be copied in",
    "DeadLine": "nothing any more: it can't end before its deadline",
    "SystemFailure": "an administrator: Slurm had a failure",
}  # fmt: skip

PUT_BACK: Final[dict[str, str]] = {
    "PREEMPTED": "its node was needed for work of higher priority",
    "NODE_FAIL": "the node on which it ran failed",
    "BOOT_FAIL": "its node did not start up",
    "REQUEUED": "somebody did so in Slurm itself, not through Portico",
}
"""What accounting says of the earlier run of a job that was put back, and why that was."""

UNKNOWN_PUT_BACK: Final = "Slurm does not say why"

_LIMIT: Final = re.compile(r"(QOS|Assoc)(Grp|Max)([A-Za-z/]*?)(PerJob|PerUser|PerAccount|PerNode|PU|PA)?(Limit)?\Z")
_LIMITED: Final = (
    ("Submit", "jobs in the queue"),
    ("Jobs", "jobs running at once"),
    ("Wall", "time"),
    ("CPURunMin", "core time in use"),
    ("CPUMin", "core time"),
    ("Cpu", "cores"),
    ("CPU", "cores"),
    ("Node", "nodes"),
    ("Mem", "memory"),
    ("GRES", "GPUs and other devices"),
    ("Billing", "billed units"),
    ("Lic", "licences"),
)


@functools.lru_cache(1000)  # an unknown one is told once
def parse_state(word: str) -> JobState:
    """Return the state that a word of Slurm's means: ``PENDING``, ``CANCELLED by 1003``, ``CANCELLED+``."""
    first = (word.split() or [""])[0].rstrip("+")
    state = STATES.get(first)
    if state is None:
        log.warning("Slurm speaks of a job state that is not known here: %r; taken for running", first[:40])
        return JobState.RUNNING
    return state


def is_held(reason: str) -> bool:
    """Return whether a waiting job is on hold."""
    return reason in ("JobHeldUser", "JobHeldAdmin") or "held" in re.split("[ _]", reason)


def describe_turn(position: int) -> str:
    """Return what a job waits for that nothing but others before it keep."""
    return f"its turn: number {position} in the queue"


def find_put_back(word: str) -> str:
    """Return why a job was put back, by the state in which accounting has its earlier run; empty where it can't say."""
    return PUT_BACK.get(word.partition(" ")[0].rstrip("+"), "")


@functools.lru_cache(1000)
def describe_wait(reason: str) -> str:
    """Return what a waiting job waits for, as the rest of "It waits for …"."""
    # 22.05 says some with spaces: "job requeued in held state".
    bare = reason.strip("()").partition(",")[0].replace(" ", "_") if not reason.startswith("Nodes_") else reason
    if bare in ("", "None", "Priority"):
        return WAITS["Priority"] if bare == "Priority" else "its turn"
    if found := WAITS.get(bare):
        return found
    if match := _LIMIT.match(bare):
        whose = "QOS" if match[1] == "QOS" else "account"
        what = next((text for part, text in _LIMITED if part in match[3]), "what may be used at once")
        if match[4] == "PerJob" and match[2] == "Max":
            return f"nothing any more: it asks for more {what} than its {whose} allows one job ({bare})"
        users = "you have" if match[4] in ("PerUser", "PU") else f"its {whose} has"
        return f"the limit on {what}, which {users} reached ({bare})"
    return f"what Slurm calls {bare[:80]}"


def explain_end(word: str, reason: str, exit_code: str) -> tuple[Reason, str]:
    """Return why a job ended, and its detail.

    Args:
        word: Slurm's state, ``CANCELLED by 1003`` too.
        reason: Slurm's reason, e.g. ``JobLaunchFailure``; empty where it is not known.
        exit_code: ``STATUS:SIGNAL`` as sacct has it; empty where it is not known.
    """
    first, _, rest = word.partition(" ")
    first = first.rstrip("+")
    if first == "COMPLETED":
        return Reason.FINISHED, ""
    if first == "TIMEOUT":
        return Reason.TIME_LIMIT, ""
    if first == "DEADLINE":
        return Reason.TIME_LIMIT, "it could not end before the deadline it was given"
    if first == "OUT_OF_MEMORY":
        return Reason.OUT_OF_MEMORY, ""
    if first == "NODE_FAIL":
        return Reason.NODE_FAILED, ""
    if first == "BOOT_FAIL":
        return Reason.NODE_FAILED, "it did not start up"
    if first == "PREEMPTED":
        return Reason.PREEMPTED, ""
    if first == "CANCELLED":
        return Reason.CANCELLED, _describe_canceller(rest, reason)
    if first == "REVOKED":
        return Reason.CANCELLED, "another cluster of the federation runs it"
    return _explain_failure(reason, exit_code)


def _describe_canceller(rest: str, reason: str) -> str:
    if reason.startswith("Dependency"):
        return "a job that it depended on failed"
    uid = rest.removeprefix("by ").strip()
    return f"by uid {uid}" if uid.isdecimal() else ""


def _explain_failure(reason: str, exit_code: str) -> tuple[Reason, str]:
    status, _, number = exit_code.partition(":")
    if exit_code == "0:53":  # what slurmd 22.05 gives a job whose output file it could not open
        return Reason.NOT_STARTED, "the folder of its output file does not exist or can't be written"
    if reason == "OutOfMemory":
        return Reason.OUT_OF_MEMORY, ""
    if number.isdecimal() and int(number):
        # Without task/cgroup Slurm kills what uses too much memory in this way and says no more (JobAcctGatherParams).
        memory = "; a job that uses more memory than it asked for ends like this, too" * (int(number) == signal.SIGKILL)
        return Reason.FAILED, f"signal {_name_signal(int(number))}{memory}"
    if status.isdecimal() and int(status) > 128 and (name := _find_signal(int(status) - 128)):
        return Reason.FAILED, f"exit status {status}, as after signal {name}"
    if status.isdecimal() and int(status):
        return Reason.FAILED, f"exit status {status}"
    if reason == "JobLaunchFailure":  # 22.05 says so of a script that was killed by a signal, too
        return Reason.FAILED, "it could not be started, or it was killed"
    if reason and reason not in ("None", "NonZeroExitCode"):
        return Reason.FAILED, f"Slurm says {reason[:80]}"
    return Reason.FAILED, "exit status unknown"


def _find_signal(number: int) -> str:
    try:
        return f"{number} ({signal.Signals(number).name})"
    except ValueError:
        return ""


def _name_signal(number: int) -> str:
    return _find_signal(number) or str(number)
