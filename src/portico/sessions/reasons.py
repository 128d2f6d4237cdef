"""Why a session ended, as sentences for the person whose session it was."""

from __future__ import annotations

from typing import Final

from portico.model import Reason, Session

SENTENCES: Final[dict[Reason, tuple[str, str]]] = {
    Reason.STOPPED: ("You stopped it.", ""),
    Reason.STOPPED_BY_ADMIN: ("An administrator stopped it.", "Ask them why, then start it again."),
    Reason.FINISHED: ("It ended by itself.", ""),
    Reason.FAILED: ("The program ended with an error.", "The last lines of its log say more."),
    Reason.NEVER_READY: ("It did not get ready in time.", "The last lines of its log say more. Try again once."),
    Reason.TIME_LIMIT: ("Its time was over.", "Ask for more hours next time, or press Extend while it runs."),
    Reason.OUT_OF_MEMORY: ("It needed more memory than it had.", "Start it again with more memory."),
    Reason.NODE_FAILED: ("The node on which it ran failed.", "Start it again. Files that were saved are there."),
    Reason.PREEMPTED: ("Its nodes were needed for work of higher priority.", "Start it again later."),
    Reason.CANCELLED: ("It was cancelled, not through Portico.", "Start it again if it was not you."),
    Reason.NOT_STARTED: ("It could not be started.", ""),
    Reason.LOST: ("It was lost.", "Start it again. Files that were saved are there."),
}


def describe_end(session: Session) -> tuple[str, str]:
    """Return what happened, with its detail, and what to do next; empty for a session that has not ended."""
    if session.reason is None:
        return "", ""
    sentence, hint = SENTENCES[session.reason]
    if session.detail:
        sentence = f"{sentence.rstrip('.')}: {session.detail}."
    return sentence, hint


BEGINS_AGAIN: Final = "It begins again from its start. Files that were saved are there; what else was open is not."
"""Of a session that was put back into the queue."""

WAIT_TURN: Final = "its turn"
WAIT_SOCKET: Final = "the app to open its socket"
WAIT_END: Final = "its end"
"""What a session can wait for, besides what schedulers/queue.py and the agent's probe say: "It waits for …"."""
