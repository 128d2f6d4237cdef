"""The shepherd: runs one job, and outlives the agent and all of Portico.

It keeps the time limit by itself, so that a limit holds while Portico is away, and records how the job ended. It
has no connection to anything; it is never asked and never asks. All it says, it writes to the session's folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, NoReturn

from portico.agent import processes
from portico.agent.folder import Folder
from portico.errors import PorticoError, Unavailable

GRACE_S: Final = 10.0
"""From TERM at the time limit to KILL."""
TICK_S: Final = 1.0

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_libc = ctypes.CDLL(None, use_errno=True)
signal.valid_signals()  # builds its tables now, before any fork


def start(
    folder: Folder,
    argv: Sequence[str],
    env: Mapping[str, str],
    *,
    deadline: float,
    memory_bytes: int,
    cores: float,
    enforce: bool,
    cwd: str = "",
    outputs: Sequence[int] = (),
) -> dict[str, Any]:
    """Fork a shepherd for the job; return its ``pid`` and ``start_ticks`` once it has recorded itself.

    It works in the home where no ``cwd`` is given. ``outputs`` are the descriptors of its two outputs, which stay the
    caller's; without them both go to ``log``.

    Raises:
        Unavailable: It could not start; the disk is full, say.

    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            if os.fork():
                os._exit(0)
            os.close(reader)
            _be_shepherd(folder, argv, env, writer, deadline, memory_bytes, cores, enforce, cwd, outputs)
        finally:
            os._exit(70)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read(4096).decode(errors="replace")
    if not said.isdigit():
        raise Unavailable("The job could not be started.", why=said or "It ended before it began.")
    process = processes.find_process(int(said))
    return {"pid": int(said), "start_ticks": process.start_ticks if process else 0}


def _be_shepherd(
    folder: Folder,
    argv: Sequence[str],
    env: Mapping[str, str],
    writer: int,
    deadline: float,
    memory_bytes: int,
    cores: float,
    enforce: bool,
    cwd: str,
    outputs: Sequence[int],
) -> NoReturn:
    _libc.prctl(_PR_SET_PDEATHSIG, 0)
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1)
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, signal.SIGTERM})
    try:
        _keep_only(writer, *outputs)
        me = processes.find_process(os.getpid())
        assert me is not None
        record = {
            "pid": me.pid,
            "start_ticks": me.start_ticks,
            "boot_id": processes.read_boot_id(),
            "deadline": deadline,
        }
        folder.write_json("job.json", record)
        if not outputs:
            log = os.open(folder.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
            outputs = (log, log)
        if enforce:
            _limit_cores(cores)
        job = _spawn(argv, env, outputs, cwd)
        for fd in set(outputs):
            os.close(fd)
    except (OSError, PorticoError) as error:
        os.write(writer, f"{error}".encode()[:1000])
        os._exit(1)
    with contextlib.suppress(OSError):  # the agent may have been killed meanwhile; the job has begun
        os.write(writer, str(os.getpid()).encode())
    os.close(writer)
    ended = _watch(folder, job, deadline, memory_bytes if enforce else 0)
    with contextlib.suppress(OSError, PorticoError):
        folder.write_json("ended.json", ended)
    folder.remove_run()
    os._exit(0)


def _keep_only(*kept: int) -> None:
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    for name in os.listdir("/proc/self/fd"):
        if int(name) > 2 and int(name) not in kept:
            with contextlib.suppress(OSError):
                os.close(int(name))


def _limit_cores(cores: float) -> None:
    usable = sorted(os.sched_getaffinity(0))
    wanted = max(1, round(cores))
    if wanted < len(usable):
        begin = os.getpid() % len(usable)  # spread sessions over the machine
        os.sched_setaffinity(0, (usable + usable)[begin : begin + wanted])


def _spawn(argv: Sequence[str], env: Mapping[str, str], outputs: Sequence[int], cwd: str) -> int:
    os.chdir(cwd or os.environ["HOME"])
    try:
        return os.posix_spawn(
            argv[0],
            list(argv),
            dict(env),
            file_actions=[(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(outputs, 1)],
            setsigmask=[],
            setsigdef=[signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGXFSZ],
            setpgroup=0,
        )
    except FileNotFoundError as error:  # the kernel says the same of the interpreter (execve(2), ENOENT)
        if not os.path.exists(argv[0]):
            raise
        raise Unavailable("The first line of its script names a program that is not here.") from error


def _watch(folder: Folder, job: int, deadline: float, memory_bytes: int) -> dict[str, Any]:
    """Run until the job has ended and nothing of it is left; return what ended.json says."""
    why, kill_at, status = "exited", 0.0, None
    me = os.getpid()
    while status is None:
        with contextlib.suppress(InterruptedError):
            arrived = signal.sigtimedwait({signal.SIGCHLD, signal.SIGTERM}, TICK_S)
            if arrived and arrived.si_signo == signal.SIGTERM:
                processes.send_signal(processes.find_of_session(folder.session_id, me), signal.SIGTERM)
        status = _reap(job)
        if status is not None:
            break
        now = time.time()
        deadline = _read_deadline(folder, deadline)
        if now >= deadline and why == "exited":
            why, kill_at = "time-limit", now + GRACE_S
            processes.send_signal(processes.find_of_session(folder.session_id, me), signal.SIGTERM)
        elif memory_bytes and why == "exited":
            of_session = processes.find_of_session(folder.session_id, me)
            if processes.sum_memory(of_session) > memory_bytes:
                why, kill_at = "out-of-memory", now
        if kill_at and now >= kill_at:
            processes.end_all(folder.session_id, me, 1)
    left = processes.find_of_session(folder.session_id, me)
    if left:
        processes.send_signal(left, signal.SIGTERM)
        end = time.monotonic() + 2
        while time.monotonic() < end and processes.find_of_session(folder.session_id, me):
            _reap(job)
            time.sleep(0.02)
        processes.end_all(folder.session_id, me, 5)
    return {
        "at": time.time(),
        "exit_status": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
        "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
        "why": why,
    }


def _reap(job: int) -> int | None:
    """Reap whatever has ended, orphans too; return the job's wait status once it is among them."""
    status = None
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            if found[0] == job:
                status = found[1]
    return status


def _read_deadline(folder: Folder, known: float) -> float:
    job = folder.read_json("job.json")
    value = job.get("deadline") if job else None
    return float(value) if isinstance(value, (int, float)) and 0 < value < sys.maxsize else known
