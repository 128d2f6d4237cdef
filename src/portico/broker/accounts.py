"""POSIX accounts: which ones the broker acts for, and making, locking and removing them with shadow's own tools.

Policy: a member of portico-users, with a uid in the configured range. Whoever can reach the broker can make new
accounts in that range, and can never touch one that root did not give to the group.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Callable
from typing import Any, Final

from portico.config import USER_GROUP, Config
from portico.errors import Conflict, NotFound, PorticoError, Unavailable
from portico.model import USER_NAME

TOOL_TIMEOUT_S: Final = 30
GID_MIN: Final = 1000
"""Groups below are the system's (sudo, disk, shadow, docker: Debian policy 9.2.2) and never given to an agent."""


def get_account(name: str, config: Config) -> pwd.struct_passwd:
    """Return an account that the broker may act for.

    Raises:
        NotFound: There is none.
        Conflict: There is one, and policy forbids it.

    """
    if not USER_NAME.match(name):
        raise NotFound("There is no such account.")
    try:
        account = pwd.getpwnam(name)
    except KeyError:
        raise NotFound(f"There is no POSIX account {name}.") from None
    if not config.multi_user:
        if account.pw_uid != os.geteuid():
            raise Conflict("This Portico runs without root, for its owner only.")
        return account
    if not config.uid_min <= account.pw_uid <= config.uid_max or account.pw_uid < GID_MIN:
        raise Conflict(
            f"The POSIX account {name} has the uid {account.pw_uid}, for which Portico does not act.",
            hint=f"Its range is {config.uid_min} to {config.uid_max}: settings uid_min and uid_max.",
        )
    if name not in _list_members() and account.pw_gid != _find_gid():
        raise Conflict(
            f"The POSIX account {name} was there before Portico, which does not act for it.",
            hint=f"To allow it, root runs: usermod -aG {USER_GROUP} {name}",
        )
    return account


def list_groups(account: pwd.struct_passwd) -> list[int]:
    """Return the supplementary groups that an agent of this account gets."""
    return [gid for gid in os.getgrouplist(account.pw_name, account.pw_gid) if gid >= GID_MIN]


def make_account(name: str, config: Config, before: Callable[[], None]) -> dict[str, Any]:
    """Make an account, unless it is there: own group, locked password, home 0700.

    ``before`` is called where there is something to make, and may refuse: each session's start asks for its account.
    """
    if not config.multi_user:
        account = get_account(name, config)
        return {"uid": account.pw_uid, "home": account.pw_dir, "made": False}
    try:
        account, made = get_account(name, config), False
    except NotFound:
        before()
        # useradd reads -K values from login.defs(5). `--` is not needed: the name can't begin with a dash.
        _run_useradd(
            name, config,
            "/usr/sbin/useradd", "--create-home", "--base-dir", config.home_base, "--shell", "/bin/bash",
            "--user-group", "--groups", USER_GROUP, "--no-log-init", "-K", f"UID_MIN={config.uid_min}", "-K",
            f"UID_MAX={config.uid_max}", "-K", f"GID_MIN={config.uid_min}", "-K", f"GID_MAX={config.uid_max}",
            "-K", "HOME_MODE=0700", "-K", "UMASK=077", name,
        )  # fmt: skip
        account, made = get_account(name, config), True
    return {"uid": account.pw_uid, "home": account.pw_dir, "made": made}


def _run_useradd(name: str, config: Config, *argv: str) -> None:
    try:
        _run(*argv)
    except Unavailable:
        # On a full disk the account is there and its home is not (useradd(8), 12); nobody would make it later.
        with contextlib.suppress(PorticoError):
            if not os.path.lexists(get_account(name, config).pw_dir):
                _run("/usr/sbin/userdel", name)
        raise


def lock_account(name: str, locked: bool, config: Config) -> None:
    """Lock an account for every way in (password, expiry), or unlock it."""
    _refuse_single_user(config)
    get_account(name, config)
    _run("/usr/sbin/usermod", "--expiredate", "1" if locked else "", name)


def remove_account(name: str, remove_home: bool, config: Config) -> None:
    """End all processes of an account, then remove it.

    Raises:
        Unavailable: The tool failed; the account may be there still.

    """
    _refuse_single_user(config)
    account = get_account(name, config)
    _end_processes(account)
    shutil.rmtree(f"{config.run_dir}/users/{account.pw_uid}", ignore_errors=True)
    _run("/usr/sbin/userdel", *(("--remove",) if remove_home else ()), name)
    with contextlib.suppress(KeyError):  # userdel leaves the group where it has other members
        if not grp.getgrnam(name).gr_mem:
            _run("/usr/sbin/groupdel", name)


def _refuse_single_user(config: Config) -> None:
    if not config.multi_user:
        raise Conflict("This Portico runs without root, for its owner only.", hint="Start it as root for more users.")


def _end_processes(account: pwd.struct_passwd) -> None:
    for _ in range(3):  # a fork bomb may need more than one
        child = os.fork()
        if child == 0:
            try:
                os.setgroups([])
                os.setresgid(account.pw_gid, account.pw_gid, account.pw_gid)
                os.setresuid(account.pw_uid, account.pw_uid, account.pw_uid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(-1, signal.SIGKILL)  # all that this uid may signal (kill(2)), itself left out
            finally:
                os._exit(0)
        os.waitpid(child, 0)


def _list_members() -> list[str]:
    try:
        return grp.getgrnam(USER_GROUP).gr_mem
    except KeyError:
        return []


def _find_gid() -> int:
    try:
        return grp.getgrnam(USER_GROUP).gr_gid
    except KeyError:
        return -1


def _run(*argv: str) -> None:
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=TOOL_TIMEOUT_S, cwd="/", text=True,
            errors="replace", env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable("The POSIX account could not be changed.", why=str(error)) from error
    # userdel's 12 says that the home, or a mail spool that never was, could not be removed (userdel(8)).
    if done.returncode != 0 and not (argv[0].endswith("userdel") and done.returncode == 12):
        raise Unavailable("The POSIX account could not be changed.", why=done.stderr.strip()[:500])
