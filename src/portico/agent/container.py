"""Runs a program inside a container image: builds the argv of Charliecloud's ch-run, or of Apptainer or Singularity.

docs/apps.md, "Container images", says what the program finds inside. Run inside the session's job as the user:

    python -I container.py -- PROGRAM ARGUMENT…

The image is $PORTICO_FORM_IMAGE; without one the program runs as it is. The rest is in the session's container.json.
It is one file that needs nothing else of Portico, and Python 3.9: it is copied into jobs on other machines.

It never becomes root and never calls a shell of the host. What goes wrong it says in one sentence, in the log and in
the session's file "trouble", from which people are told.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

GUEST_RUN = "/tmp/portico"  # noqa: S108 - the container's own
"""Inside: the folder of the app's socket. Below /tmp, because there any image has room for it."""
GUEST_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/games"
X11 = "/tmp/.X11-unix"  # noqa: S108 - where X servers put their sockets, outside and inside
CHECK_S = 60.0
"""For an image on a slow file system; a folder takes 10 ms."""
TROUBLE_EXIT = 78
"""EX_CONFIG of sysexits.h(3)."""
HAS_ENVIRONMENT = 77
PASSED = re.compile(
    r"USER|LOGNAME|LANG|LC_[A-Z]+|TERM|COLORTERM|TZ|SHELL|DISPLAY|XAUTHORITY|OMP_[A-Z_]+|[A-Z_]*VISIBLE_DEVICES"
    r"|(?:PORTICO|SLURM)_[A-Z0-9_]+"
)
"""What reaches the program of the session's variables."""
OUTSIDE = frozenset(
    f"PORTICO_{name}" for name in ("PYTHON", "TERMINAL", "APPS", "CONTAINER", "VNC_DOOR", "VNC_PASSWORDS")
)
"""Paths of the host, which lead nowhere inside."""
UNFIT = re.compile(r"[:,\\\"'\n\0]")
"""Characters with a meaning in what --bind and --home take."""

FOLDER, SQUASHFS, SIF = "folder", "SquashFS file", "SIF file"


class Trouble(Exception):
    """Why nothing can run, for people: what, and what to do."""


class Container(NamedTuple):
    """An image with what is put into it.

    ``home`` and ``run`` are the host's paths; ``binds`` are pairs of the host's path and that inside. ``env`` is as
    the program gets it, with paths as they are inside.
    """

    image: str
    kind: str
    user: str
    home: str
    run: str
    binds: Sequence[tuple[str, str]]
    env: Mapping[str, str]
    cwd: str
    has_environment: bool = False


def render_ch_run(program: str, container: Container, argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return Charliecloud's argv and environment (ch-run(1), 0.31).

    It shows the home at /home/$USER whatever the host calls it, and passes its own environment on.
    """
    options = ["--home", "--private-tmp", f"--bind={container.run}:{GUEST_RUN}"]
    options += [f"--bind={source}:{target}" for source, target in container.binds]
    if container.kind == SQUASHFS:
        options.append(f"--mount={container.run}/image")
    if container.has_environment:  # of the image: what its Dockerfile's ENV says
        options += ["--set-env", f"--set-env=HOME={guest_home(container.user)}"]
    options.append(f"--cd={container.cwd}")
    env = {**container.env, "HOME": container.home, "USER": container.user}
    return [program, *options, container.image, "--", *argv], env


def render_apptainer(
    program: str, container: Container, argv: Sequence[str], host_env: Mapping[str, str]
) -> tuple[list[str], dict[str, str]]:
    """Return Apptainer's argv and environment (apptainer-exec(1)); Singularity 3's are the same.

    The program's variables go through the environment, by a prefix, and not on the command line.
    """
    options = [
        "--cleanenv",
        "--contain",
        f"--home={container.home}:{guest_home(container.user)}",
        f"--workdir={container.run}/work",
        f"--bind={container.run}:{GUEST_RUN}",
    ]
    options += [f"--bind={source}:{target}" for source, target in container.binds]
    options.append(f"--pwd={container.cwd}")
    prefix = "SINGULARITYENV_" if os.path.basename(program).startswith("singularity") else "APPTAINERENV_"
    # HOME is --home's; PATH is the image's own.
    inside = {f"{prefix}{name}": value for name, value in container.env.items() if name not in ("HOME", "PATH")}
    foreign = ("SINGULARITY", "APPTAINER")
    outside = {name: value for name, value in host_env.items() if not name.startswith(foreign)}
    return [program, "exec", *options, container.image, *argv], {**outside, **inside}


def guest_home(user: str) -> str:
    """Return where the home is inside."""
    return f"/home/{user}"


def translate(text: str, pairs: Sequence[tuple[str, str]]) -> str:
    """Return a path as it is inside; anything else as it is."""
    for outside, inside in pairs:
        if text == outside or text.startswith(f"{outside}/"):
            return inside + text[len(outside) :]
    return text


def make_env(host_env: Mapping[str, str], pairs: Sequence[tuple[str, str]], user: str) -> dict[str, str]:
    """Return what the program gets, with paths as they are inside."""
    env = {name: value for name, value in host_env.items() if PASSED.fullmatch(name) and name not in OUTSIDE}
    env = {name: translate(value, pairs) for name, value in env.items()}
    return {**env, "HOME": guest_home(user), "USER": user, "PATH": GUEST_PATH, "XDG_RUNTIME_DIR": GUEST_RUN}


def find_kind(image: str) -> str:
    """Return what kind of image a path leads to.

    Raises:
        Trouble: It leads to none, or this user may not read it.
    """
    node = socket.gethostname()
    try:
        if os.path.isdir(image):
            os.listdir(image)
            if not any(os.path.lexists(os.path.join(image, name)) for name in ("bin/sh", "usr/bin/sh")):
                raise Trouble(
                    f"the folder {image} is no image, it has no /bin/sh. Name the folder that has bin and usr"
                )
            return FOLDER
        with open(image, "rb") as file:
            head = file.read(64)
    except FileNotFoundError:
        raise Trouble(f"there is no image {image} on {node}. Whoever chose it can look at its path") from None
    except PermissionError:
        raise Trouble(f"you may not read the image {image}. Its owner can allow it: chmod -R a+rX {image}") from None
    except OSError as error:
        raise Trouble(f"the image {image} can't be read on {node} ({error.strerror})") from None
    if head.startswith(b"hsqs"):
        return SQUASHFS
    if head[32:41] == b"SIF_MAGIC":
        return SIF
    raise Trouble(f"{image} is no image. It must be a folder with a system in it, a SquashFS file or a SIF file")


def check_place(image: str, allowed: Sequence[str]) -> str:
    """Return where an image really is.

    Args:
        image: As it was named.
        allowed: Folders below which images are, and images that are allowed wherever they are.

    Raises:
        Trouble: It is elsewhere.
    """
    real = os.path.realpath(image)
    for path in map(os.path.realpath, allowed):
        if real == path or real.startswith(f"{path}/"):
            return real
    raise Trouble(f"{image} leads to {real}, which is not where this site has images ({', '.join(allowed)})")


def find_runtime(kind: str, wanted: str) -> str:
    """Return the program that runs an image of a kind here.

    Args:
        kind: The image's.
        wanted: Its name, or ``auto``.

    Raises:
        Trouble: There is none.
    """
    names = ["ch-run", "apptainer", "singularity"] if wanted == "auto" else [wanted]
    if kind == SIF:
        names = [name for name in names if name != "ch-run"]
    for name in names:
        if program := shutil.which(name):
            if name == "ch-run" and kind == SQUASHFS and not _can_mount(program):
                continue
            return program
    raise Trouble(
        f"nothing on {socket.gethostname()} runs an image that is a {kind} ({' or '.join(names) or wanted}). "
        "An administrator can install it; Charliecloud's ch-run takes folders"
    )


def _can_mount(program: str) -> bool:
    env = {"USER": "nobody", "HOME": "/", "PATH": os.environ.get("PATH", "")}  # it refuses to start without USER
    done = subprocess.run([program, "--feature=squash"], env=env, capture_output=True, timeout=CHECK_S, check=False)
    return done.returncode == 0


def find_display(display: str) -> str:
    """Return the socket of a local X display; empty where there is none."""
    number = re.fullmatch(r":(\d+)(?:\.\d+)?", display)
    path = f"{X11}/X{number[1]}" if number else ""
    return path if path and os.path.exists(path) else ""


def bind_display(path: str, run: str) -> list[tuple[str, str]]:
    """Return what shows an X socket, and no other user's, inside: a mount needs something to be put on."""
    folder = os.path.join(run, "x11")
    os.makedirs(folder, mode=0o700, exist_ok=True)
    name = os.path.basename(path)
    with open(os.path.join(folder, name), "a"):
        pass
    return [(folder, X11), (path, f"{X11}/{name}")]


def make_container(env: Mapping[str, str], settings: Mapping[str, Any]) -> Container:
    """Return the session's container.

    Args:
        env: The session's variables.
        settings: What container.json says.

    Raises:
        Trouble: There can be none.
        OSError: The disk is full.
    """
    image, home, user = env["PORTICO_FORM_IMAGE"], env["HOME"], env["USER"]
    run = os.path.dirname(env["PORTICO_SOCKET"])
    for path in (image, home, run):
        if UNFIT.search(path) or not path.startswith("/"):
            raise Trouble(f"the path {path!r} has a character that can't be in it here")
    image = check_place(image, settings["allowed"])
    kind = find_kind(image)
    for name in ("image", "work"):
        os.makedirs(os.path.join(run, name), mode=0o700, exist_ok=True)
    pairs = [(run, GUEST_RUN), (home, guest_home(user))]
    display = find_display(env.get("DISPLAY", ""))
    binds = bind_display(display, run) if display else []
    binds += [(source, target or source) for source, _, target in (bind.partition(":") for bind in settings["binds"])]
    cwd = translate(os.getcwd(), pairs)
    inside = (guest_home(user), GUEST_RUN)
    cwd = cwd if any(cwd == one or cwd.startswith(f"{one}/") for one in inside) else guest_home(user)
    return Container(image, kind, user, home, run, binds, make_env(env, pairs, user), cwd)


def render(program: str, container: Container, argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Return the argv and environment of whichever runtime this is."""
    if os.path.basename(program) == "ch-run":
        return render_ch_run(program, container, argv)
    return render_apptainer(program, container, argv, os.environ)


def check(program: str, container: Container) -> Container:
    """Run nothing in the container, so that what is wrong with it is told; return it with what was learned.

    Raises:
        Trouble: It can't run.
    """
    script = f"[ -f /ch/environment ] && exit {HAS_ENVIRONMENT}; exit 0"
    argv, env = render(program, container, ["/bin/sh", "-c", script])
    name = os.path.basename(program)
    try:
        done = subprocess.run(
            argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=CHECK_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise Trouble(f"{name} did not open {container.image} within {CHECK_S:.0f} s") from None
    if done.returncode in (0, HAS_ENVIRONMENT):
        return container._replace(has_environment=done.returncode == HAS_ENVIRONMENT)
    said = done.stderr.decode(errors="replace").strip()
    sys.stderr.write(f"{said}\n")
    last = said.splitlines()[-1] if said else f"exit status {done.returncode}"
    raise Trouble(f"{name} can't run {container.image}: {explain(last, container)}")


def explain(said: str, container: Container) -> str:
    """Return what a runtime said, without what means nothing to people, and what to do."""
    said = re.sub(r"^(?:ch-run\[\d+\]: (?:error: )?|FATAL: +|ERROR +: +)", "", said)
    said = re.sub(r" \(\w+\.c:\d+(?: \d+)?\)$", "", said)
    said = said.replace(f"{container.image}/", "/")
    if ("user" in said and "namespace" in said) or "can't unshare" in said:
        return f"{said}. User namespaces seem to be off here, an administrator can allow them"
    if said.startswith(("can't mkdir: ", "can't bind: destination not found: ")):
        return f"{said}. The image needs that file or folder, empty, as a place for the host's"
    return said


def report(text: str) -> None:
    """Tell people, in the log and in the session's folder."""
    print(f"portico: {text}.", file=sys.stderr, flush=True)
    with contextlib.suppress(OSError, KeyError):
        path = os.path.join(os.environ["PORTICO_SESSION_DIR"], "trouble")
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "w") as file:
            file.write(text)


def run(argv: Sequence[str]) -> NoReturn:
    """Become a program, inside the session's image if it has one.

    Raises:
        Trouble: It can't be.
        OSError, ValueError, KeyError: The session's folder is not as it should be.
    """
    if not os.environ.get("PORTICO_FORM_IMAGE"):
        os.execvp(argv[0], list(argv))
    with open(os.path.join(os.environ["PORTICO_SESSION_DIR"], "container.json")) as file:
        settings = json.load(file)
    container = make_container(os.environ, settings)
    program = find_runtime(container.kind, settings["runtime"])
    container = check(program, container)
    pairs = [(container.run, GUEST_RUN), (container.home, guest_home(container.user))]
    inside, env = render(program, container, [translate(argument, pairs) for argument in argv])
    os.execve(inside[0], inside, env)


def main() -> int:
    """Be what the command line names."""
    argv = sys.argv[2:] if sys.argv[1:2] == ["--"] else sys.argv[1:]
    if not argv:
        print(__doc__, file=sys.stderr)
        return 64
    try:
        run(argv)
    except Trouble as trouble:
        report(str(trouble))
    except (OSError, ValueError, KeyError, TypeError) as error:
        report(f"the container can't be prepared: {getattr(error, 'strerror', None) or error!r}")
    return TROUBLE_EXIT


if __name__ == "__main__":
    sys.exit(main())
