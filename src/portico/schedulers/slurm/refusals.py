"""What Slurm's refusals mean: one table from its messages to errors that a person understands. Pure.

The messages are those of Slurm's slurm_errno.c and of its commands, seen on 22.05.8 unless a row says otherwise;
they have kept their wording from 20.11 to 24.11. What no row knows is shown as Slurm said it, never swallowed.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from portico.errors import Conflict, Forbidden, Invalid, NotFound, PorticoError, TooMany, Unavailable
from portico.schedulers.slurm.command import Result
from portico.schedulers.slurm.text import make_printable


class Row(NamedTuple):
    """What a message means. ``pattern`` is searched in what the command said, whatever its case."""

    pattern: str
    error: type[PorticoError]
    message: str
    hint: str = ""
    field: str = ""


AWAY: Final = "Slurm's controller does not answer."
WAIT: Final = "Nothing is lost: what runs goes on. Try again in a few minutes."

TABLE: Final[tuple[Row, ...]] = (
    # accounting, whose messages name the same causes as the controller's
    Row(r"accounting storage is disabled", Unavailable, "This cluster keeps no accounting, so jobs are known for a few "
        "minutes after they ended only."),
    Row(r"slurmdbd|slurm_persist_conn|unable to contact the slurm (accounting )?database|problem (getting|talking)",
        Unavailable, "Slurm's accounting does not answer.",
        "Running and waiting jobs are not touched. Try again in a few minutes."),
    # the controller or the way to it
    Row(r"unable to contact slurm controller", Unavailable, AWAY, WAIT),
    Row(r"socket timed out|zero bytes were transmitted|connection (refused|timed out|reset)|"
        r"communication (connection|shutdown) failure|transport endpoint|insane message length|"
        r"unable to establish|connect failure|header lengths are longer", Unavailable, AWAY, WAIT),
    Row(r"slurm (backup )?controller (is )?in standby|temporarily unable to accept", Unavailable,
        "Slurm's controller is starting or changing over.", WAIT),
    Row(r"could not establish a configuration|fetch_config|unable to process configuration file|"
        r"cannot stat.*slurm\.conf", Unavailable,
        "Slurm's commands find no configuration here.",
        "An administrator sets the cluster's `conf` to its slurm.conf."),
    Row(r"munge|protocol authentication error|invalid authentication|unauthorized credential", Unavailable,
        "Slurm does not accept who we are: authentication between this machine and the controller is broken.",
        "An administrator looks at munge on this machine: its key, its clock, whether it runs."),
    Row(r"incompatible versions", Unavailable, "Slurm's commands here and its controller are of versions that do not "
        "fit.", "An administrator updates Slurm's commands on this machine."),
    # what was asked for
    Row(r"invalid partition", Invalid, "There is no such partition.", "Choose one of those offered.", "partition"),
    Row(r"invalid account or account/partition", Invalid,
        "You have no such account on this cluster, or not in this partition.",
        "Choose one of those offered, or ask your project's coordinator.", "account"),
    Row(r"invalid qos", Invalid, "You have no such QOS on this cluster.", "Choose one of those offered.", "qos"),
    Row(r"group not permitted to use this partition", Forbidden, "Your groups may not use this partition.",
        "Choose another.", "partition"),
    Row(r"invalid node name|node count specification invalid", Invalid, "These nodes do not exist on this cluster.",
        "", "nodes"),
    Row(r"invalid feature", Invalid, "No node has this feature.", "", "constraint"),
    Row(r"invalid generic resource|invalid (trackable )?resource|invalid tres", Invalid,
        "This cluster has no such devices (GRES).", "Write them as type:count, e.g. gpu:1.", "gres"),
    Row(r"invalid licen[sc]e", Invalid, "This cluster has no such licence."),
    Row(r"requested reservation is invalid|denied to requested reservation|reservation.*(invalid|not)", Invalid,
        "There is no such reservation, or not for you.", "", "reservation"),
    Row(r"memory (specification can not be satisfied|required by task is not available)", Invalid,
        "No node of this partition has that much memory.", "Ask for less memory on each node.", "memory_gb"),
    Row(r"more processors requested than permitted", Invalid,
        "That is more cores or nodes than this partition has.", "Ask for fewer.", "cores"),
    Row(r"requested time limit is invalid|invalid timelimit|invalid --time", Invalid,
        "The time is not one that this partition allows.", "Ask for less time, or choose another partition.", "hours"),
    Row(r"qosmaxwalldurationperjoblimit|assocmaxwall", Invalid, "That is more time than your QOS or account allows.",
        "Ask for less time, or choose another QOS.", "hours"),
    Row(r"(qos|assoc)\w*submit\w*limit", TooMany, "You have as many jobs in the queue as your account or QOS allows.",
        "Wait until some have ended."),
    Row(r"violates accounting/qos policy", Invalid, "That is more than your account or QOS allows: jobs, size or time.",
        "Ask for less, choose another account or QOS, or wait until some of your jobs have ended."),
    Row(r"requested node configuration is not available|requested partition configuration not available", Invalid,
        "No nodes of this partition can ever give what you ask for.", "Ask for fewer cores or less memory.", "cores"),
    Row(r"required partition not available", Conflict, "This partition takes no jobs at present.", "Choose another.",
        "partition"),
    Row(r"required node not available", Conflict, "The nodes asked for are down, drained or reserved.", "", "nodes"),
    Row(r"job dependency problem|dependency.*invalid", Invalid, "The dependency is not understood.",
        "Write it as afterok:JOB, afterany:JOB, after:JOB or singleton, several with commas.", "dependency"),
    Row(r"invalid job array", Invalid, "The array is not understood, or larger than this cluster allows.",
        "Write it as 1-100, 1-100:10 or 1-100%5.", "array"),
    Row(r"invalid --begin|invalid time specification", Invalid, "The time to begin is not understood.", "", "begin"),
    Row(r"invalid --mem", Invalid, "The memory is not understood.", "", "memory_gb"),
    Row(r"invalid numeric value", Invalid, "A number is out of bounds."),
    Row(r"does not look like a batch script", Invalid, "The script has no first line that says what runs it.",
        "Begin it with a line like #!/bin/bash", "script"),
    Row(r"contains dos line breaks", Invalid, "The script has the line ends of Windows.", "Save it with Unix line "
        "ends, or run dos2unix on it.", "script"),
    Row(r"batch script is empty", Invalid, "The script is empty.", "", "script"),
    Row(r"null character", Invalid, "The script has a NUL character in it.", "It may not be a text file.", "script"),
    Row(r"parameter too long|script (is )?too (large|long)", Invalid, "The script is larger than this cluster takes.",
        "Put data into a file of its own.", "script"),
    Row(r"unable to open file", NotFound, "The script is not there.", "", "script"),
    Row(r"maxjobcount|too many jobs|resource temporarily unavailable|job limit", TooMany,
        "The cluster's queue is full.", "Try again when some jobs have ended."),
    # what a job's state or its owner do not allow
    Row(r"invalid job id|no job matching|unknown job", NotFound, "Slurm knows no such job any more."),
    Row(r"job has already finished|already (completing or )?completed|job/step already", Conflict,
        "The job has ended already."),
    Row(r"job is not suspended|job is not running", Conflict, "The job is not in a state for that."),
    Row(r"job is pending execution|is pending", Conflict, "The job has not started yet."),
    Row(r"no longer pending", Conflict, "The job has started already."),
    Row(r"in transitional state|can not be altered|try again later", Conflict, "The job is just changing its state.",
        "Try again in a moment."),
    Row(r"requeue.*disabled|only batch jobs are|operation (is )?not supported|presently disabled|not requeue", Conflict,
        "Slurm does not allow that for this job."),
    Row(r"access/permission denied|invalid user id|permission denied|not permitted", Forbidden,
        "Slurm does not let you do that to this job.",
        "It may belong to another user, or be for the cluster's operators only."),
    Row(r"unexpected message received", Unavailable, AWAY + " Or it knows no such job.", WAIT),
)  # fmt: skip

_PREFIX: Final = re.compile(r"^(\w+: )?(error: |fatal: )?(Batch job submission failed: )?", re.IGNORECASE)


def translate(result: Result, doing: str) -> PorticoError:
    """Return what a person should read about a command that was no success.

    Args:
        result: What it said.
        doing: What was tried, as in "Submitting the job failed": ``Submitting the job``.
    """
    if result.timed_out:
        return Unavailable(AWAY, why=f"{doing} took too long.", hint=WAIT)
    said = result.message
    why = describe(said)
    for row in TABLE:
        if re.search(row.pattern, said, re.IGNORECASE | re.DOTALL):
            return row.error(row.message, why=why, hint=row.hint, field=row.field)
    return Conflict(f"{doing} was refused by Slurm.", why=why or f"exit status {result.status}")


def describe(said: str) -> str:
    """Return what Slurm said, on one line, without its own prefixes."""
    lines = [_PREFIX.sub("", line.strip()) for line in said.splitlines()]
    unique = list(dict.fromkeys(line for line in lines if line))
    return f"Slurm says: {make_printable(' / '.join(unique), 400)}" if unique else ""


def is_unknown_outcome(error: PorticoError) -> bool:
    """Return whether a submission that failed so may have been accepted all the same."""
    return isinstance(error, Unavailable)
