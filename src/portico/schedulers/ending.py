"""Why a job ended: the pure part of the embedded scheduler that reads the traces.

The traces are ended.json, which the job's owner can write, the cell's counter of out-of-memory kills, which only the
kernel can, and what somebody asked for. Nothing here trusts the first to be well formed.
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Any

from portico.model import Reason


def explain_end(look: Mapping[str, Any], cancelled: Reason | None, oom_kills: int) -> tuple[Reason, str]:
    """Return the reason and its detail.

    Args:
        look: What the user's agent saw (docs/protocol.md, `look`).
        cancelled: Why Portico itself ended it, if it did.
        oom_kills: How often the kernel killed in the job's cell because its memory was used up.
    """
    if cancelled is not None:
        return cancelled, ""
    ended = look.get("ended")
    if not isinstance(ended, Mapping):
        if look.get("this_boot") is False:
            return Reason.LOST, "the machine was restarted"
        if oom_kills:
            return Reason.OUT_OF_MEMORY, ""
        return Reason.LOST, str(look.get("gone") or "it ended without leaving a trace")
    status, number = _read_number(ended, "exit_status"), _read_number(ended, "signal")
    why = ended.get("why")
    if why == "time-limit":
        return Reason.TIME_LIMIT, ""
    if why == "out-of-memory" or (oom_kills and status != 0):
        return Reason.OUT_OF_MEMORY, ""
    if status == 0:
        return Reason.FINISHED, ""
    if number is not None:
        return Reason.FAILED, f"signal {_name_signal(number)}"
    return Reason.FAILED, f"exit status {status}" if status is not None else "exit status unknown"


def _read_number(ended: Mapping[str, Any], name: str) -> int | None:
    value = ended.get(name)
    return value if type(value) is int and 0 <= value < 1 << 16 else None


def _name_signal(number: int) -> str:
    try:
        return f"{number} ({signal.Signals(number).name})"
    except ValueError:
        return str(number)
