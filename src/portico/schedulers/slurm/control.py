"""What is done to jobs: cancel, hold, release, suspend, resume, requeue, another time limit. Pure.

Each names one job by its own id, which is digits only: nothing that a person wrote reaches argv.
"""

from __future__ import annotations

import re
from typing import Final

from portico.errors import Conflict, Forbidden, NotFound, PorticoError
from portico.schedulers.protocol import Action
from portico.schedulers.slurm.command import Command, Result
from portico.schedulers.slurm.refusals import translate
from portico.schedulers.slurm.text import render_minutes

DOINGS: Final[dict[Action, str]] = {
    Action.CANCEL: "Cancelling the job",
    Action.HOLD: "Holding the job",
    Action.RELEASE: "Releasing the job",
    Action.SUSPEND: "Suspending the job",
    Action.RESUME: "Resuming the job",
    Action.REQUEUE: "Putting the job back into the queue",
}
_OPERATORS: Final[dict[Action, str]] = {
    Action.SUSPEND: "Slurm lets only the cluster's operators suspend jobs.",
    Action.RESUME: "Slurm lets only the cluster's operators resume jobs.",
    Action.RELEASE: "Slurm does not let you release this job: an administrator put it on hold, or it is not yours.",
}


def act(job_id: str, action: Action, *, waiting_only: bool = False) -> Command[None]:
    """Do something to a job, ``12``, to an array with all its tasks, ``12`` too, or to one of its tasks, ``12_3``.

    scancel says nothing about a job that has ended or that never was, with exit status 0: whoever needs to know
    looks at the queue. Requeue takes jobs that have ended too, which then run once more.

    Args:
        job_id: Which.
        action: What.
        waiting_only: Of an array that is cancelled, leave alone the tasks that run.
    """
    check_id(job_id)
    argv: tuple[str, ...] = ("scontrol", action.value, job_id)
    if action is Action.CANCEL:
        argv = ("scancel", "--state=PENDING", job_id) if waiting_only else ("scancel", job_id)
    return Command(argv, lambda result: _parse_done(result, action))


def _parse_done(result: Result, action: Action) -> None:
    # scontrol tells some refusals with exit status 0.
    if result.status or result.timed_out or re.search(rb"denied|invalid|error", result.stderr, re.IGNORECASE):
        error = translate(result, DOINGS[action])
        if isinstance(error, Forbidden) and action in _OPERATORS:
            error = Forbidden(_OPERATORS[action], why=error.why, hint="Ask an administrator of the cluster.")
        raise error


def change_limit(job_id: str, limit_s: float) -> Command[None]:
    """Set a job's time limit, counted from its start; whole minutes, rounded up."""
    check_id(job_id)
    return Command(("scontrol", "update", f"JobId={job_id}", f"TimeLimit={render_minutes(limit_s)}"), _parse_limit)


def _parse_limit(result: Result) -> None:
    if result.status or result.timed_out:
        raise _explain_limit(translate(result, "Changing the time limit"))


def _explain_limit(error: PorticoError) -> PorticoError:
    if isinstance(error, Forbidden):
        return Forbidden(
            "This cluster lets only its operators give a job more time; you can only shorten it.",
            why=error.why,
            hint="Ask an administrator, or save your work and start again with more time.",
        )
    if isinstance(error, NotFound):
        return Conflict("The job has ended already.", why=error.why)
    return error


def check_id(job_id: str) -> str:
    """Return a job's own id.

    Raises:
        NotFound: It is none, so there is no such job.
    """
    if not re.fullmatch(r"\d{1,10}(_\d{1,9})?", job_id):
        raise NotFound("Slurm knows no such job.")
    return job_id
