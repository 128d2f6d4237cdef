"""``portico ssh config`` and ``portico ssh drop-in``: what OpenSSH reads, at a person's end and at the machine's.

Nothing of a person's own is lost: their configuration gets one line on top, and a file of that name that is not ours
stays as it is.
"""

from __future__ import annotations

import os
import pwd
import stat
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from portico.cli import show
from portico.cli.client import Client
from portico.cli.sshd_process import make_front
from portico.config import load_config
from portico.errors import Conflict, Forbidden, Invalid, Unavailable
from portico.ssh.client import INCLUDE, KNOWN_HOSTS, Way, add_include, find_owner, render_known_hosts, render_ssh_config
from portico.ssh.front import render_drop_in

DROP_IN: Final = "/etc/ssh/sshd_config.d/portico.conf"


def find_ssh_folder() -> Path:
    """Return the folder that ssh reads, which asks the account and not HOME (ssh(1), FILES)."""
    return Path(pwd.getpwuid(os.getuid()).pw_dir) / ".ssh"


def parse_way(answer: dict[str, Any]) -> Way:
    """Return what the portal tells, looked at: it ends in a file that ssh obeys.

    Raises:
        Invalid: Something of it can't stand there.
        Unavailable: Something of it is missing.
    """
    try:
        return Way(
            host=str(answer["host"]), port=int(answer["port"]), user_name=str(answer["user"]),
            connect=str(answer["connect"]), host_keys=tuple(str(line) for line in answer["host_keys"]),
            host_ca=str(answer["host_ca"]),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise Unavailable("What Portico says about SSH is not understood.", why=repr(error)) from error


def config(
    context: typer.Context,
    write: Annotated[
        bool, typer.Option("--write/--print", help="Put it into ~/.ssh, or only print it (the default).")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
) -> None:
    """Have your ssh know Portico: afterwards `ssh portico` and `ssh SESSION.portico` work, and scp, sftp and rsync."""
    way = parse_way(Client(context.obj).ask("GET", "/ssh"))
    if not write:
        sys.stdout.write(render_ssh_config(way))
        show.tell("This was only printed. To put it into ~/.ssh: portico ssh config --write")
        return
    folder = find_ssh_folder()
    main = folder / "config"
    try:
        asks = [*_list_changes(folder, way), *([f"{main} gets the line `Include {INCLUDE}`."] if _lacks(main) else [])]
        if asks and not yes:
            _confirm(asks)
        write_files(folder, way)
    except OSError as error:
        raise Unavailable(f"{error.filename or folder} can't be used.", why=error.strerror or str(error)) from error
    show.tell(f"Written. Try it: ssh portico, or ssh SESSION.portico (you come in as {way.user_name} at {way.host}).")


def _lacks(path: Path) -> bool:
    text = path.read_bytes() if path.exists() else b""
    return add_include(text) != text


def _list_changes(folder: Path, way: Way) -> list[str]:
    """Return what is to be asked about our own files, a sentence each.

    Raises:
        Conflict: There is a file that is not ours.
    """
    asks = []
    for name in (INCLUDE, KNOWN_HOSTS):
        path = folder / name
        if not os.path.lexists(path):
            continue
        owner = find_owner(path.read_text(errors="replace"))
        if owner is None:
            raise Conflict(f"{path} is not a file of Portico's.", hint="Move it out of the way, and try again.")
        if owner != way.host:
            asks.append(f"{path} is for the Portico at {owner} now, and will be for the one at {way.host}.")
    return asks


def is_person_there() -> bool:
    """Return whether somebody can be asked."""
    return sys.stdin.isatty()


def _confirm(sentences: list[str]) -> None:
    for sentence in sentences:
        show.tell(sentence)
    if not is_person_there():
        raise Invalid("Nobody is here to be asked.", hint="Say --yes.")
    if not typer.confirm("Go on?", default=True, err=True):
        show.tell("Nothing was written.")
        raise typer.Exit(1)


def write_files(folder: Path, way: Way) -> None:
    """Write both files, and the line that has ssh read them.

    Raises:
        OSError: Something can't be written; what was there is there still.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _write(folder / KNOWN_HOSTS, render_known_hosts(way).encode())
    _write(folder / INCLUDE, render_ssh_config(way).encode())
    main = folder / "config"
    text = main.read_bytes() if main.exists() else b""
    if (wanted := add_include(text)) != text:
        _write(main, wanted)


def _write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all; one that is a link into somebody's dotfiles stays a link."""
    target = Path(os.path.realpath(path))
    mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else 0o600
    descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")  # 0600 from its first moment
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, mode)
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise


def drop_in(context: typer.Context) -> None:
    """Print what has the system's own sshd ask Portico about keys too (for root, on the machine)."""
    if os.geteuid():
        raise Forbidden("The system's sshd is root's.", hint="Run this as root, where Portico runs.")
    config = load_config(None, run_dir=context.obj.run_dir or None)
    sys.stdout.write(render_drop_in(make_front(config)))
    show.tell(
        f"Put this into {DROP_IN}, then: sshd -t && systemctl reload ssh\n"
        f"The files that it names are in {config.ssh_dir} while Portico runs with an ssh_port."
    )
