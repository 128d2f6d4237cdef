"""Forks an agent: the one place where Portico takes another uid, and proves that there is no way back."""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
import socket
import sys
from collections.abc import Callable
from typing import Final, NoReturn

from portico.agent import server
from portico.broker.accounts import list_groups
from portico.broker.cells import Cells
from portico.config import Config

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38
_libc = ctypes.CDLL(None, use_errno=True)


def fork_agent(account: pwd.struct_passwd, config: Config, cells: Cells, cell: str | None) -> tuple[int, socket.socket]:
    """Return the pid of a new agent and our end of its channel.

    Raises:
        OSError: As fork(2) and socketpair(2).

    """
    runtime = make_runtime(account, config)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        status = 70
        try:
            ours.close()
            _be_agent(theirs, account, config, cells, cell, runtime)
        except BaseException as error:
            os.write(2, f"broker: the agent of {account.pw_name} did not start: {error!r}\n".encode())
            status = 71
        finally:
            os._exit(status)
    theirs.close()
    return pid, ours


def make_runtime(account: pwd.struct_passwd, config: Config) -> str:
    """Make the user's runtime folder, 0700, below one that only root can write; return its path."""
    path = f"{config.run_dir}/users/{account.pw_uid}"
    os.makedirs(path, mode=0o700, exist_ok=True)
    if os.geteuid() == 0:
        os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)
    return path


def _be_agent(
    channel: socket.socket, account: pwd.struct_passwd, config: Config, cells: Cells, cell: str | None, runtime: str
) -> NoReturn:
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        if signal.getsignal(number) not in (signal.SIG_DFL, None):
            signal.signal(number, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    _keep_only(channel.fileno())
    os.setsid()
    if cell is not None:
        cells.join(cell)
    if config.multi_user:
        become(account)
    _libc.prctl(_PR_SET_PDEATHSIG, 0)
    os.umask(0o077)
    os.environ.clear()
    os.environ.update(
        PATH="/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin:/usr/games",
        HOME=account.pw_dir,
        USER=account.pw_name,
        LOGNAME=account.pw_name,
        SHELL=account.pw_shell or "/bin/sh",
        LANG="C.UTF-8",
        XDG_RUNTIME_DIR=runtime,
    )
    try:
        os.chdir(account.pw_dir)
    except OSError:
        os.chdir("/")
    sys.argv[:] = ["portico-agent"]
    server.serve(channel)
    os._exit(0)


def become(account: pwd.struct_passwd) -> None:
    """Take the account's ids for good (setresuid(2)), and prove it.

    Raises:
        RuntimeError: The proof failed; the process must not go on.

    """
    uid, gid = account.pw_uid, account.pw_gid
    if uid == 0 or gid == 0:
        raise RuntimeError("never root")
    groups = list_groups(account)
    os.setgroups(groups)
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    if os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid) or set(os.getgroups()) != set(groups):
        raise RuntimeError("the ids are not those that were set")
    attempts: list[Callable[[], None]] = [lambda: os.setuid(0), lambda: os.setgid(0), lambda: os.setgroups([0])]
    for take_back in attempts:
        try:
            take_back()
        except PermissionError:
            continue
        raise RuntimeError("root's ids could be had back")
    with open("/proc/self/status") as status:
        for line in status:
            if line.startswith(("CapPrm:", "CapEff:", "CapAmb:")) and int(line.split()[1], 16):
                raise RuntimeError(f"a capability was kept: {line.strip()}")


def _keep_only(fd: int) -> None:
    null = os.open("/dev/null", os.O_RDWR)
    for target in (0, 1):
        os.dup2(null, target)
    os.dup2(null, 2)
    os.closerange(3, fd)
    os.closerange(fd + 1, os.sysconf("SC_OPEN_MAX") if os.sysconf("SC_OPEN_MAX") < 1 << 16 else 1 << 16)
