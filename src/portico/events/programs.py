"""Programs that a seat's agent runs for its participant: a file in, everything out. Never through a shell.

The bytes go over a descriptor that the portal hands to the agent, so no file is ever opened here (invariant 1).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any, Final

from portico import wire
from portico.errors import Unavailable
from portico.sessions import BrokerMachine
from portico.wire import Json

UPLOADS: Final = "Uploads"
ANSWER_S: Final = 10.0
STDOUT_LIMIT_BYTES: Final = 4096

# On a full disk useradd leaves homes whose files are cut off, and says nothing. What it began is completed; a file that
# somebody has changed is left alone. Then some room is asked for, as it will be needed.
_COMPLETE: Final = """
import os, sys
home, skeleton = os.environ["HOME"], "/etc/skel"

def write(path, data):
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())

try:
    os.chdir(home)
    for folder, _, names in os.walk(skeleton):
        for name in names:
            source = os.path.join(folder, name)
            target = os.path.join(home, os.path.relpath(source, skeleton))
            if not os.path.isfile(source) or not os.access(source, os.R_OK):
                continue
            with open(source, "rb") as file:
                wanted = file.read()
            found = None
            if os.path.isfile(target):
                with open(target, "rb") as file:
                    found = file.read()
            if found is None or found != wanted and wanted.startswith(found):
                os.makedirs(os.path.dirname(target), 0o700, exist_ok=True)
                write(target, wanted)
    room = ".portico-room"
    try:
        write(room, bytes(1 << 16))
    finally:
        if os.path.lexists(room):
            os.unlink(room)
except OSError as error:
    sys.exit(error.strerror)
"""

# Writes beside the file and renames, so that none is ever half there; a link in the file's place is not followed.
# With an offset it goes on with a part that has come before: the name of the part is the same for the same upload.
_PUT: Final = """
import os, sys
folder, name, part, offset, last = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]), sys.argv[5] == "last"
home = os.open(os.environ["HOME"], os.O_DIRECTORY)
if folder:
    try:
        os.mkdir(folder, 0o700, dir_fd=home)
    except FileExistsError:
        pass
    home = os.open(folder, os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=home)
hidden = ".portico-" + part
flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | (os.O_TRUNC if offset == 0 else 0)
try:
    file = os.open(hidden, flags, 0o600, dir_fd=home)
    if os.fstat(file).st_size < offset:
        sys.exit("A part of it is missing. Send it again.")
    os.lseek(file, offset, os.SEEK_SET)
    while data := os.read(0, 1 << 20):
        view = memoryview(data)
        while view:
            view = view[os.write(file, view):]
    if last:
        os.ftruncate(file, os.lseek(file, 0, os.SEEK_CUR))
        os.rename(hidden, name, src_dir_fd=home, dst_dir_fd=home)
except OSError as error:
    try:
        os.unlink(hidden, dir_fd=home)
    except OSError:
        pass
    sys.exit(error.strerror)
"""


def render_complete() -> list[str]:
    """Return the argv that completes a home which was made a moment ago, or says why that can't be."""
    return ["/usr/bin/python3", "-I", "-S", "-c", _COMPLETE]


def render_put(folder: str, name: str, *, part: str = "put", offset: int = 0, last: bool = True) -> list[str]:
    """Return the argv that writes standard input into a file of the home; names were checked by the caller."""
    ending = "last" if last else "more"
    return ["/usr/bin/python3", "-I", "-S", "-c", _PUT, folder, name, part, str(offset), ending]


def render_archive() -> list[str]:
    """Return the argv that writes the whole home, compressed, to standard output (tar(1)).

    What Portico keeps there of sessions is left out, and so are caches and sockets. Status 1 is no failure: a file
    changed while it was read.
    """
    return [
        "/usr/bin/tar", "--create", "--gzip", "--file=-", "--one-file-system", "--ignore-failed-read", "--sparse",
        "--exclude=./.cache", "--exclude=./.local/share/portico", "--transform=s,^\\.,home,S", ".",
    ]  # fmt: skip


async def run(
    machine: BrokerMachine,
    user_name: str,
    argv: Sequence[str],
    fds: Sequence[int] = (),
    *,
    timeout_s: float = 60.0,
    stream: bool = False,
    fine: Collection[int] = (0,),
) -> str:
    """Run a program as a user, by their agent, and wait for its end; return the last line of its errors. ``fds`` are
    closed.

    Args:
        machine: The agents.
        user_name: As whom.
        argv: The program.
        fds: Its standard input; with ``stream`` its standard output instead.
        timeout_s: How long it may take.
        stream: See ``fds``.
        fine: The statuses that are no failure.

    Raises:
        Unavailable: It failed; the message is its own.
    """
    args: Json = {"argv": list(argv), "env": {}, "timeout_s": timeout_s, "limit_bytes": STDOUT_LIMIT_BYTES}
    if stream:
        args["stream"] = True
    answer, received = await machine.ask_once(user_name, "command", args, list(fds), timeout_s=timeout_s + ANSWER_S)
    wire.close_all(received)
    if answer.get("timed_out"):
        raise Unavailable("It took too long.", why=f"The limit is {timeout_s:g} s.")
    said = _find_last_line(answer.get("stderr"))
    if answer.get("status") not in fine:
        raise Unavailable("It failed.", why=said or "It said nothing.")
    return said


def _find_last_line(said: Any) -> str:
    lines = said.strip().splitlines() if isinstance(said, str) else []
    return "".join(letter if letter.isprintable() else "?" for letter in lines[-1][:300]) if lines else ""
