"""``portico desktop open``: a session's desktop in a viewer of this computer, through one SSH connection.

A desktop listens on a Unix socket that only its user can reach, with no password: the SSH key is the password. The near
end of the tunnel is a Unix socket in a 0700 folder as well, or, where a viewer can't take one, a port of localhost. For
viewers and computers that need a password the tunnel leads to the desktop's second socket, which asks for it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from portico.cli import show
from portico.cli.client import Client
from portico.cli.ssh_config import find_ssh_folder
from portico.errors import Conflict, Invalid, NotFound, Unavailable
from portico.ssh.client import INCLUDE

desktop = typer.Typer(no_args_is_help=True, help="Desktops in a viewer of this computer.")

VIEWERS: Final = (
    "xtigervncviewer",
    "vncviewer",
    "/Applications/TigerVNC.app/Contents/MacOS/TigerVNC",
    "/Applications/TigerVNC Viewer.app/Contents/MacOS/TigerVNC Viewer",
)
MARK: Final = "portico-socket="
PATH: Final = re.compile(rf"^{MARK}(/[A-Za-z0-9._/@+-]{{1,200}})$", re.MULTILINE)
"""A colon would be another forward to ssh; what a login script says stands on other lines."""
COLUMNS: Final = {"VNC password": "full", "View-only": "view_only"}
ANSWER_S: Final = 30.0
END_S: Final = 5.0
DOOR: Final = ".password"
"""After the path of a desktop's socket: that of the one that asks for a VNC password."""
PASSWORD: Final = "VNC_PASSWORD"
"""The variable from which TigerVNC's viewer takes a password (vncviewer(1)); an argument could be seen by others."""


@desktop.command("open")
def open_desktop(
    context: typer.Context,
    id: Annotated[str, typer.Argument(metavar="SESSION", help="The session's id, or the app's for the newest of it.")],
    port: Annotated[
        int,
        typer.Option(help="Listen on this port of localhost, for a viewer that can't take a Unix socket."),
    ] = 0,
    viewer: Annotated[str, typer.Option(help="The viewer's program; by default TigerVNC's.")] = "",
    tunnel: Annotated[bool, typer.Option("--tunnel", help="Start no viewer; hold the tunnel until Ctrl-C.")] = False,
    password: Annotated[
        bool,
        typer.Option(
            "--password",
            help="Have the desktop ask for a VNC password. Makes new ones, unless VNC_PASSWORD is set.",
        ),
    ] = False,
    view_only: Annotated[
        bool, typer.Option("--view-only", help="With the password for looking only; nothing can be touched.")
    ] = False,
) -> None:
    """Open a desktop in a viewer of this computer; the tunnel ends with the viewer."""
    if not 0 <= port < 65536:
        raise Invalid(f"{port} is not a port.", field="port")
    client = Client(context.obj)
    session = find_desktop(client.ask("GET", "/sessions"), id)
    password = password or view_only
    if not (find_ssh_folder() / INCLUDE).exists():
        raise Conflict("Your ssh does not know Portico yet.", hint="portico ssh config --write")
    program = "" if tunnel else find_viewer(viewer, needs_tiger=not port)
    if port and not password:
        show.tell(
            f"Whoever else is on this computer can connect to port {port} while this runs, and use your desktop. "
            "With --password it asks for one."
        )
    env = dict(os.environ)
    with (
        tempfile.TemporaryDirectory(prefix="p-", dir=os.environ.get("XDG_RUNTIME_DIR") or None) as folder,  # 0700
        Tunnel(f"{session['id']}.portico", Path(folder)).opened() as way,
    ):
        near = f"localhost:{port}" if port else f"{folder}/desktop"
        way.forward(near, way.ask_socket(asks_password=password))
        if password and not env.get(PASSWORD):
            made = make_passwords(client, session["id"])
            chosen = "view_only" if view_only else "full"
            env[PASSWORD] = made[chosen]
            if port or tunnel:  # another viewer asks its person
                show.show(made, False, {title: name for title, name in COLUMNS.items() if name == chosen})
        address = f"localhost::{port}" if port else near
        if tunnel:
            show.tell(f"The desktop is at {address} until you press Ctrl-C.")
            with contextlib.suppress(KeyboardInterrupt):
                way.wait()
            return
        try:
            done = subprocess.run([program, address], stdin=subprocess.DEVNULL, env=env, check=False)
        except OSError as error:
            raise Unavailable(f"{program} can't be run.", why=error.strerror or str(error)) from error
    if done.returncode:
        raise Unavailable(f"{program} ended with status {done.returncode}.")


@desktop.command("password")
def make_password(
    context: typer.Context,
    id: Annotated[str, typer.Argument(metavar="SESSION", help="The session's id, or the app's for the newest of it.")],
    remove: Annotated[bool, typer.Option("--remove", help="Take the passwords away.")] = False,
    as_json: show.AsJson = False,
) -> None:
    """Make VNC passwords of a desktop, for everything and for looking only; earlier ones are good no more."""
    client = Client(context.obj)
    session = find_desktop(client.ask("GET", "/sessions"), id)
    if remove:
        client.ask("DELETE", f"/sessions/{session['id']}/vnc-passwords")
        show.tell("The passwords are removed. Viewers that came in with them are cut off.")
        return
    show.show(make_passwords(client, session["id"]), as_json, COLUMNS)


def make_passwords(client: Client, session_id: str) -> dict[str, str]:
    """Return new VNC passwords of a desktop, ``full`` and ``view_only``."""
    made: dict[str, str] = client.ask("POST", f"/sessions/{session_id}/vnc-passwords")
    return made


def find_desktop(sessions: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Return the session that is meant, of one's own, the newest first.

    Raises:
        NotFound: There is none.
        Conflict: It is no desktop, or not ready.
    """
    found = next((one for one in sessions if one["id"] == name), None)
    ready = [one for one in sessions if one["state"] == "ready" and one["reach"] == "rfb"]
    found = found or next((one for one in ready if one["app_id"] == name), None)
    if found is None:
        names = ", ".join(f"{one['id']} ({one['app_id']})" for one in ready)
        raise NotFound(
            f"You have no desktop {name[:40]!r}.", hint=f"Those that are ready: {names}" if names else "None is ready."
        )
    if found["reach"] != "rfb":
        raise Conflict(f"The session {found['id']} is no desktop.", hint=f"portico session open {found['id']}")
    if found["state"] != "ready":
        raise Conflict(f"The session {found['id']} is not ready.", why=f"It is {found['state']}.")
    return found


def find_viewer(wanted: str, *, needs_tiger: bool) -> str:
    """Return the path of a viewer's program.

    Args:
        wanted: The one to take; empty: the first that is there.
        needs_tiger: Whether it must take a Unix socket, as TigerVNC's alone does. One that was named is believed.

    Raises:
        Unavailable: There is none.
    """
    for name in (wanted,) if wanted else VIEWERS:
        path = shutil.which(name)
        if path and (wanted or not needs_tiger or _is_tiger(path)):
            return path
    raise Unavailable(
        f"There is no {wanted or 'TigerVNC viewer'} here.",
        hint="apt-get install tigervnc-viewer; another viewer: --port 5901 --viewer PROGRAM; none: --tunnel",
    )


def _is_tiger(path: str) -> bool:
    try:
        done = subprocess.run(
            [path, "--version"], stdin=subprocess.DEVNULL, capture_output=True, timeout=ANSWER_S, check=False
        )
    except (OSError, subprocess.SubprocessError):
        return False
    return b"tigervnc" in (done.stdout + done.stderr).lower()


@dataclass(frozen=True)
class Way:
    """An SSH connection that others share (ssh(1), -M and -S)."""

    target: str
    control: Path
    master: subprocess.Popen[bytes]

    def ask_socket(self, *, asks_password: bool) -> str:
        """Return the path of the desktop's socket on its machine.

        Args:
            asks_password: Whether it is to be the one that asks for a VNC password.

        Raises:
            Unavailable: It is not told, or not there.
        """
        suffix = DOOR if asks_password else ""
        done = self._run(f"echo {MARK}$PORTICO_SOCKET{suffix}; test -S $PORTICO_SOCKET{suffix}")
        if not (found := PATH.search(done.stdout.replace("\r", ""))):
            raise Unavailable("The session does not tell where its desktop is.", why=done.stderr.strip()[:300])
        if done.returncode and asks_password:
            raise Unavailable(
                "This desktop takes no VNC password.",
                why="It was started before Portico knew them, or its app does not offer them.",
                hint="Start a new one, or leave --password out.",
            )
        return found[1]

    def forward(self, near: str, far: str) -> None:
        """Have ``near`` lead to ``far``.

        Raises:
            Unavailable: It can't.
        """
        done = self._run("", "-O", "forward", "-L", f"{near}:{far}")
        if done.returncode:
            raise Unavailable(f"{near} can't be listened on.", why=done.stderr.strip()[:300])

    def wait(self) -> None:
        """Wait until the connection ends."""
        self.master.wait()

    def _run(self, command: str, *options: str) -> subprocess.CompletedProcess[str]:
        argv = ["ssh", "-S", str(self.control), *options, self.target, *([command] if command else [])]
        try:
            return subprocess.run(
                argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", timeout=ANSWER_S,
                check=False,
            )  # fmt: skip
        except (OSError, subprocess.SubprocessError) as error:
            raise Unavailable("ssh does not answer.", why=str(error)) from error


class Tunnel:
    """One SSH connection into a session.

    Args:
        target: As ssh is told.
        folder: Of its own, for the sockets.
    """

    def __init__(self, target: str, folder: Path) -> None:
        self._target = target
        self._control = folder / "ssh"

    @contextlib.contextmanager
    def opened(self) -> Iterator[Way]:
        """Connect, and disconnect at the end. ssh may ask its person meanwhile: it has the terminal.

        Raises:
            Unavailable: ssh has ended instead; it said why.
        """
        # SessionType is none by -N. What the person's own configuration forwards belongs to their own connections.
        argv = ["ssh", "-N", "-M", "-S", str(self._control), "-o", "ControlPersist=no", "-o", "ClearAllForwardings=yes",
                "-o", "ServerAliveInterval=15", self._target]  # fmt: skip
        try:
            master = subprocess.Popen(argv, stdin=subprocess.DEVNULL)
        except OSError as error:
            raise Unavailable("ssh can't be run.", why=error.strerror or str(error)) from error
        try:
            while not self._answers():
                if master.poll() is not None:
                    raise Unavailable(f"ssh {self._target} does not get in.", hint=f"Try: ssh -v {self._target} true")
                time.sleep(0.05)
            yield Way(self._target, self._control, master)
        finally:
            master.terminate()
            try:
                master.wait(END_S)
            except subprocess.TimeoutExpired:
                master.kill()
                master.wait()

    def _answers(self) -> bool:
        with socket.socket(socket.AF_UNIX) as attempt:
            try:
                attempt.connect(str(self._control))
            except OSError:
                return False
        return True
