"""Ends a connection of Portico's own sshd: of one process, after another look at what it is."""

from __future__ import annotations

import contextlib
import os
import pwd
import signal
from typing import NamedTuple

from portico.errors import NotFound


class _Process(NamedTuple):
    pid: int
    parent: int
    start_ticks: int
    uid: int


def end_connection(account: pwd.struct_passwd, pid: int, start_ticks: int) -> int:
    """End the sshd process ``pid`` and its child that is the user's; return how many were signalled.

    Raises:
        NotFound: There is no such process, or it is no sshd of this user's connection.
    """
    found = _find(pid)
    if found is None or found.start_ticks != start_ticks or found.uid not in (os.geteuid(), account.pw_uid):
        raise NotFound("There is no such connection.")
    if not _is_sshd_of(pid, account.pw_name):
        raise NotFound("That process is no such connection.")
    ended = 0
    children = [_find(int(name)) for name in os.listdir("/proc") if name.isdigit()]
    for child in children:
        if child is not None and child.parent == pid and child.uid == account.pw_uid:
            ended += _signal(child, signal.SIGKILL)
    # What is left cleans up after the user (utmp, PAM); one that nobody has come in by yet ends with its child.
    return ended + _signal(found, signal.SIGTERM)


def _is_sshd_of(pid: int, name: str) -> bool:
    """Return whether a process is sshd, and serves this user: ``sshd: alice [priv]``, ``sshd: alice [accepted]``."""
    try:
        program = os.path.basename(os.readlink(f"/proc/{pid}/exe"))
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            title = file.read(200).split(b"\0")[0].decode(errors="replace")
    except OSError:
        return False
    words = title.split()
    return program in ("sshd", "sshd-session") and len(words) > 1 and words[1].partition("@")[0] == name


def _find(pid: int) -> _Process | None:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read().decode(errors="replace")
        uid = os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return _Process(pid, int(fields[1]), int(fields[19]), uid)


def _signal(process: _Process, number: signal.Signals) -> int:
    with contextlib.suppress(OSError):
        fd = os.pidfd_open(process.pid)  # pins it: a pid that was given again is never hit
        try:
            again = _find(process.pid)
            if again is not None and again.start_ticks == process.start_ticks:
                signal.pidfd_send_signal(fd, number)
                return 1
        finally:
            os.close(fd)
    return 0
