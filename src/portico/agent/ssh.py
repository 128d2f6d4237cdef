"""Starts an sshd for one connection inside a session: OpenSSH's own, as the user, with nothing that listens.

The relay does the same on a node, with code of its own: it is one file that needs nothing else.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
from typing import Any, Final

from portico.agent.folder import Folder, translate
from portico.errors import Invalid, Unavailable

PATH: Final = "/usr/sbin:/sbin:/usr/local/sbin:/usr/bin"
_NAME: Final = re.compile(r"[a-z][a-z_.-]{0,40}\Z")
# A shell waits for it: sshd writes its title over its own environment, and by that a session's processes are found.
_WAIT: Final = '"$@"; exit $?'


def start(folder: Folder, files: dict[str, Any]) -> int:
    """Start an sshd; return a descriptor that is connected to it.

    Args:
        folder: The session's.
        files: What it is given, by name; one of them is ``sshd_config``.

    Raises:
        Unavailable: There is no sshd on this machine, or the disk is full.
    """
    program = shutil.which("sshd", path=PATH)
    if program is None:
        raise Unavailable("There is no sshd on this machine.", hint="An administrator can install openssh-server.")
    env = {**os.environ, "PORTICO_SESSION": folder.session_id}
    kept = {"PORTICO_SESSION": folder.session_id, "PORTICO_SESSION_DIR": folder.path, "PORTICO_SOCKET": folder.socket,
            "XDG_RUNTIME_DIR": os.environ["XDG_RUNTIME_DIR"]}  # fmt: skip
    try:
        own = write_files(f"{folder.run}/ssh", files, kept)
        log = os.open(f"{own}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise translate(error, "writing what sshd needs") from error
    ours, theirs = socket.socketpair()
    try:
        os.posix_spawn(
            "/bin/sh",
            ["/bin/sh", "-c", _WAIT, "portico-ssh", program, "-i", "-e", "-f", f"{own}/sshd_config"],
            env,
            file_actions=[
                (os.POSIX_SPAWN_DUP2, theirs.fileno(), 0),
                (os.POSIX_SPAWN_DUP2, theirs.fileno(), 1),
                (os.POSIX_SPAWN_DUP2, log, 2),
            ],
            setsigmask=[],
            setsigdef=[signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE],
            setpgroup=0,
        )
    finally:
        theirs.close()
        os.close(log)
    ours.setblocking(False)
    return ours.detach()


def write_files(own: str, files: dict[str, Any], env: dict[str, str]) -> str:
    """Write sshd's files into a folder, 0700, each whole or not at all; return the folder.

    Raises:
        Invalid: A name is none.
        OSError: The disk is full.
    """
    with contextlib.suppress(FileExistsError):
        os.mkdir(own, 0o700)
    setting = " ".join(f"{name}={value}" for name, value in env.items() if re.fullmatch(r"[^\s\"'\\#]+", value))
    for name, text in files.items():
        if not _NAME.match(name) or not isinstance(text, str):
            raise Invalid(f"{name!r} is no file of sshd's.")
        temporary = f"{own}/.{name}.{os.getpid()}"
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w") as file:
            file.write(text.replace("@FOLDER@", own).replace("@ENVIRONMENT@", setting))
        os.rename(temporary, f"{own}/{name}")
    return own
