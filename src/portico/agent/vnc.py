"""A desktop's VNC passwords, in the file that Xtigervnc reads at each attempt; TigerVNC's own program makes it.

That format hides nothing: who can read the file has the passwords. It lies in the session's folder, 0600.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from typing import Final

from portico.agent.folder import Folder
from portico.errors import Conflict, Invalid, PorticoError, Unavailable

FILE: Final = "vnc-passwords"
PROGRAMS: Final = ("tigervncpasswd", "vncpasswd")
PROGRAM_S: Final = 10
MARK: Final = b"PORTICO_VNC_DOOR"
"""In the script of an app whose desktop has a door for passwords."""
SCRIPT_LIMIT_BYTES: Final = 256 * 1024


def has_passwords(folder: Folder) -> bool:
    """Return whether there are any."""
    return os.path.exists(os.path.join(folder.path, FILE))


def takes_passwords(folder: Folder) -> bool:
    """Return whether a session's desktop can have them."""
    try:
        with os.fdopen(folder.open_file("job.sh"), "rb") as file:
            return MARK in file.read(SCRIPT_LIMIT_BYTES)
    except (OSError, PorticoError):
        return False


def write_passwords(folder: Folder, passwords: Sequence[str]) -> None:
    """Write the password and the view-only one, in place of earlier ones; with none, remove those.

    Raises:
        Conflict: This session's desktop takes none.
        Invalid: They are no such passwords.
        Unavailable: There is no program for it, or the disk is full.
    """
    if not passwords:
        folder.remove_file(FILE)
        return
    if not takes_passwords(folder):
        raise Conflict(
            "This desktop takes no VNC passwords.",
            why="It was started before Portico knew them, or its app does not offer them.",
            hint="Start a new one; without a password: portico desktop open",
        )
    if len(passwords) != 2 or not all(one.isascii() and one.isalnum() and len(one) == 8 for one in passwords):
        raise Invalid("There are two VNC passwords, of 8 letters and digits each.")
    program = next((path for name in PROGRAMS if (path := shutil.which(name))), None)
    if program is None:
        raise Unavailable(
            "There is no program here that makes a file of VNC passwords.",
            hint="An administrator can install it: apt-get install tigervnc-tools",
        )
    text = "".join(f"{one}\n" for one in passwords)
    try:
        done = subprocess.run([program, "-f"], input=text.encode(), capture_output=True, timeout=PROGRAM_S, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"{program} can't be run.", why=type(error).__name__) from error
    if done.returncode or len(done.stdout) != 16:
        raise Unavailable(f"{program} made no file of two passwords.", why=f"Its exit status is {done.returncode}.")
    folder.write(FILE, done.stdout)
