"""``./portico`` in a clone: installs what is missing, each step once, and then becomes the installed ``portico``.

Runs with the system's Python before there is any package: standard library and the floor only. A step has a stamp, the
hash of what it was made from; a step whose stamp is right does nothing, so a second start needs no network. Everything
installed is readable by every user of the machine, because users' sessions run from it, and writable by the one who
installs only.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from portico.cli import packages
from portico.config import load_config
from portico.errors import PorticoError, Unavailable

USAGE: Final = """\
./portico: the front door of an HPC system, from a clone

  ./portico up [--admin NAME] [--port 8000]   install what is missing, start, print a one-time link for the admin
  ./portico test                              install what the tests need, and run them
  ./portico COMMAND …                         as the installed `portico`: status, stop, user, session, app, … (--help)
"""

ASSETS: Final = {
    "novnc": ("@novnc/novnc", {"core": "core", "vendor": "vendor"}),
    "xterm": (
        "@xterm/xterm",
        {
            "lib/xterm.mjs": "xterm.mjs",
            "css/xterm.css": "xterm.css",
            "../addon-fit/lib/addon-fit.mjs": "addon-fit.mjs",
            "../addon-web-links/lib/addon-web-links.mjs": "addon-web-links.mjs",
        },
    ),
}
"""What the pages load from npm packages: folder below assets/ → (package, {path in it: name here})."""


class Installer:
    """Brings one install folder up to date with one clone.

    Args:
        source: The clone.
        target: The install folder.

    """

    def __init__(self, source: Path, target: Path) -> None:
        self.source = source
        self.target = target
        self.venv = target / "venv"
        self._log = target / "install.log"

    def run(self, *, with_tests: bool = False) -> None:
        """Install what is missing.

        Raises:
            Unavailable: Something could not be had; what is installed already stays as it is.

        """
        os.umask(0o022)
        try:
            self.target.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable(f"The install folder {self.target} can't be made.", why=str(error)) from error
        with self._lock():
            assets_wanted = self._is_stale("assets", self._hash(self._asset_sources()))
            packages.install(packages.list_wanted(with_node=assets_wanted, with_tests=with_tests), self._call, tell)
            self._make_venv("venv", ["requirements.lock"])
            self._install_package("venv")
            if with_tests:
                self._make_venv("venv-test", ["requirements.lock", "requirements-test.lock"])
                self._install_package("venv-test")
                self._unpack_servers()
                self._unpack_image()
            self._install_assets()
            try:
                self._make_venv("jupyter", ["requirements-jupyter.lock"])
            except Unavailable as error:
                tell(f"JupyterLab could not be installed: {error.why or error}\n  Going on without it.")
            self._check_readable()
        if os.geteuid() == 0:
            make_shared_socket_folders()

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with open(self.target / ".lock", "w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                tell("Another ./portico is installing; waiting for it.")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _make_venv(self, name: str, locks: list[str]) -> None:
        """Make the virtual environment ``name`` with exactly what the lock files list."""
        files = [self.source / lock for lock in locks]
        wanted = self._hash(files, sys.version)
        if not self._is_stale(name, wanted):
            return
        folder = self.target / name
        self._forget_stamps(name, f"{name}-package")
        self._call(f"virtual environment {folder}", [_find_system_python(), "-m", "venv", "--clear", str(folder)])
        listed = [argument for file in files for argument in ("-r", str(file))]
        count = sum(1 for file in files for line in file.read_text().splitlines() if "==" in line)
        pip = [str(folder / "bin/python"), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
        self._call(f"{count} Python packages into {folder.name}", [*pip, "--no-deps", *listed])
        self._stamp(name, wanted)

    def _install_package(self, name: str) -> None:
        """Install Portico itself, as a copy: users' processes import it, and can't read a clone below /root."""
        wanted = self._hash([self.source / "pyproject.toml", *_list_files(self.source / "src/portico")])
        stamp = f"{name}-package"
        if not self._is_stale(stamp, wanted):
            return
        self._forget_stamps(stamp)
        pip = [
            str(self.target / name / "bin/python"),
            "-m",
            "pip",
            "install",
            "--no-input",
            "--disable-pip-version-check",
        ]
        how = ["--no-deps", "--no-index", "--no-build-isolation", "--force-reinstall"]
        with tempfile.TemporaryDirectory(prefix="portico-build-") as folder:  # the clone stays as it is
            copy = Path(folder)
            for file in ("pyproject.toml", "README.md"):
                shutil.copy(self.source / file, copy)
            ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
            shutil.copytree(self.source / "src", copy / "src", ignore=ignore)
            self._call(f"Portico itself into {name}", [*pip, *how, str(copy)])
        self._stamp(stamp, wanted)

    def _asset_sources(self) -> list[Path]:
        return [self.source / "package.json", self.source / "package-lock.json"]

    def _install_assets(self) -> None:
        """Fetch the pinned npm packages, running no script of theirs, and keep the files that pages load."""
        wanted = self._hash(self._asset_sources(), json.dumps(ASSETS))
        if not self._is_stale("assets", wanted):
            return
        npm = shutil.which("npm")
        if not npm:
            raise Unavailable(
                "npm is missing.", why="The pages' scripts come from npm packages.", hint="apt-get install npm"
            )
        with tempfile.TemporaryDirectory(prefix="portico-npm-") as folder:
            for file in self._asset_sources():
                shutil.copy(file, folder)
            quiet = {"npm_config_update_notifier": "false", "npm_config_cache": str(Path(folder) / "cache")}
            command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--omit=dev"]
            self._call("the pages' scripts (npm ci)", command, quiet, cwd=folder)
            made = self.target / "assets.new"
            shutil.rmtree(made, ignore_errors=True)
            for name, (package, files) in ASSETS.items():
                _copy_package(Path(folder) / "node_modules" / package, made / name, files)
        shutil.rmtree(self.target / "assets", ignore_errors=True)
        made.rename(self.target / "assets")
        self._stamp("assets", wanted)

    def _unpack_servers(self) -> None:
        """Unpack what the tests run beside Portico into ``servers``; what can't be had is told, and its tests skip."""
        wanted = self._hash([], *packages.UNPACKED)
        if not self._is_stale("servers", wanted):
            return
        failed = False
        with tempfile.TemporaryDirectory(prefix="portico-servers-") as folder:
            for name in packages.UNPACKED:
                try:
                    self._call(f"{name}, for the tests", ["apt-get", "-q", "download", name], cwd=folder)
                    for file in Path(folder).glob(f"{name}_*.deb"):
                        self._call(f"{name}'s files", ["dpkg", "-x", str(file), str(self.target / "servers")])
                except Unavailable as error:
                    failed = True
                    tell(f"{name} can't be had, so that its tests are skipped: {error.why}")
        if not failed:
            self._stamp("servers", wanted)

    def _unpack_image(self) -> None:
        """Put the tests' container image together in ``images``; what can't be had is told, and its tests skip."""
        wanted = self._hash([], *packages.IMAGE)
        if not self._is_stale("image", wanted):
            return
        image = self.target / "images/debian"
        shutil.rmtree(image, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix="portico-image-") as folder:
            (Path(folder) / "partial").mkdir()
            image.parent.mkdir(exist_ok=True)
            # As if nothing were installed, so that everything comes; and beside the machine's own apt.
            options = ("Dir::State::status=/dev/null", f"Dir::Cache::archives={folder}", "Debug::NoLocking=1")
            apt = ["apt-get", "-q", "-y", "--no-install-recommends", "--download-only"]
            try:
                settings = [argument for option in options for argument in ("-o", option)]
                self._call("a container image, for the tests", [*apt, *settings, "install", *packages.IMAGE])
                unpack = ["dpkg", "-x", "{}", str(image), ";"]
                self._call("its files", ["find", folder, "-name", "*.deb", "-exec", *unpack])
                (image / "mnt").mkdir(exist_ok=True)  # which its package's script would make, as the first two of these
                for name in ("passwd", "group", "portico-test-image"):
                    (image / "etc" / name).touch()
            except (OSError, Unavailable) as error:
                why = error.why if isinstance(error, Unavailable) else error
                tell(f"The tests' container image can't be had, so that its tests are skipped: {why}")
                return
        self._stamp("image", wanted)

    def _check_readable(self) -> None:
        """Refuse to go on where users could not run what was installed; they would only see a broken app."""
        if os.geteuid() != 0:
            return
        for folder in [self.target, *self.target.parents]:
            if not folder.stat().st_mode & stat.S_IXOTH:
                raise Unavailable(
                    f"Users could not reach {self.target}.",
                    why=f"{folder} is closed to others.",
                    hint=f"Choose another --install-dir, or: chmod o+x {folder}",
                )
        interpreter = (self.venv / "bin/python").resolve()
        for folder in interpreter.parents:
            if not folder.stat().st_mode & stat.S_IXOTH:
                raise Unavailable(
                    "Users could not run Portico's Python.", why=f"{interpreter} is in the closed {folder}."
                )

    def _hash(self, files: Iterable[Path], *more: str) -> str:
        digest = hashlib.sha256()
        for text in more:
            digest.update(text.encode() + b"\0")
        for file in files:
            digest.update(str(file.relative_to(self.source)).encode() + b"\0")
            digest.update(hashlib.sha256(file.read_bytes()).digest())
        return digest.hexdigest()

    def _stamp_path(self, name: str) -> Path:
        return self.target / f".stamp-{name}"

    def _is_stale(self, name: str, wanted: str) -> bool:
        try:
            return self._stamp_path(name).read_text() != wanted
        except OSError:
            return True

    def _forget_stamps(self, *names: str) -> None:
        for name in names:
            self._stamp_path(name).unlink(missing_ok=True)

    def _stamp(self, name: str, value: str) -> None:
        self._stamp_path(name).write_text(value)

    def _call(self, what: str, argv: list[str], env: dict[str, str] | None = None, cwd: str | None = None) -> None:
        """Run a program with its output in install.log, showing how long it takes; Unavailable with its last lines."""
        environment = {
            name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PIP_REQUIRE_VIRTUALENV")
        }
        begin = time.monotonic()
        with open(self._log, "a") as log:
            log.write(f"\n$ {' '.join(argv)}\n")
            log.flush()
            at = log.tell()
            try:
                process = subprocess.Popen(
                    argv,
                    env=environment | (env or {}),
                    cwd=cwd,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                )
            except OSError as error:
                raise Unavailable(f"Installing {what} failed.", why=f"{argv[0]}: {error.strerror}") from error
            show = sys.stderr.isatty()
            print(f"  Installing {what} …", end="" if show else "\n", file=sys.stderr, flush=True)
            while (status := _wait(process, 0.5)) is None:
                if show:
                    print(
                        f"\r  Installing {what} … {time.monotonic() - begin:.0f} s", end="", file=sys.stderr, flush=True
                    )
        if show:
            print(f"\r  Installing {what}: {time.monotonic() - begin:.0f} s   ", file=sys.stderr, flush=True)
        if status:
            with open(self._log, errors="replace") as log:
                log.seek(at)
                lines = [line.rstrip() for line in log if line.strip() and not line.startswith("WARNING: Retrying")]
            tail = "\n    ".join(lines[-8:])
            raise Unavailable(
                f"Installing {what} failed.",
                why=f"{argv[0]} ended with status {status}:\n    {tail}",
                hint=f"The whole output is in {self._log}. Is there a network? The same command goes on from here.",
            )


def tell(text: str) -> None:
    """Show a sentence to the person who waits."""
    print(f"  {text}", file=sys.stderr, flush=True)


def make_shared_socket_folders() -> None:
    """Make the folders of X and ICE sockets as at boot: root's, sticky, so that nobody can take another's name."""
    for path in ("/tmp/.X11-unix", "/tmp/.ICE-unix"):  # noqa: S108  (the names are X's; the owner is checked)
        with contextlib.suppress(FileExistsError):
            os.mkdir(path)
        state = os.lstat(path)
        if not stat.S_ISDIR(state.st_mode) or state.st_uid != 0:
            raise Unavailable(
                f"{path} is not root's folder.",
                why="Desktops would not be safe from other users.",
                hint=f"Remove {path}.",
            )
        if stat.S_IMODE(state.st_mode) != 0o1777:
            os.chmod(path, 0o1777)  # noqa: S103


def _wait(process: subprocess.Popen[bytes], timeout_s: float) -> int | None:
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        return None


def _find_system_python() -> str:
    # The one that ./portico found, but never a virtual environment's: that may stand where others can't read.
    return os.path.realpath(sys.executable)


def _list_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.is_file() and "__pycache__" not in file.parts)


def _copy_package(package: Path, target: Path, files: dict[str, str]) -> None:
    target.mkdir(parents=True)
    for path, name in files.items():
        source = package / path
        if not source.exists():
            raise Unavailable(
                f"The npm package {package.name} has no {path}.", hint="Does package.json name another version?"
            )
        if source.is_dir():
            shutil.copytree(source, target / name)
        else:
            shutil.copyfile(source, target / name)
    licences = [file for file in package.iterdir() if file.name.upper().startswith(("LICENSE", "LICENCE", "AUTHORS"))]
    for licence in licences:
        shutil.copyfile(licence, target / licence.name)
    for folder, _, names in os.walk(target):
        os.chmod(folder, 0o755)  # noqa: S103
        for name in names:
            os.chmod(os.path.join(folder, name), 0o644)


def _take_option(arguments: list[str], name: str) -> str | None:
    for at, argument in enumerate(arguments):
        if argument == name:
            return arguments[at + 1] if at + 1 < len(arguments) else None
        if argument.startswith(f"{name}="):
            return argument.partition("=")[2]
    return None


def main(argv: list[str]) -> int:
    """Run ``./portico``: ``argv`` is the clone's folder, then what was typed."""
    source, arguments = Path(argv[0]), argv[1:]
    command = next((argument for argument in arguments if not argument.startswith("-")), "")
    try:
        wanted = _take_option(arguments, "--install-dir")
        if command == "test":
            wanted = os.environ.get("PORTICO_TEST_INSTALL_DIR") or None
        target = Path(load_config(None, install_dir=wanted).install_dir).absolute()
        installer = Installer(source, target)
        if command == "test":
            from portico.cli.chores import run_tests

            installer.run(with_tests=True)
            return run_tests(source, target, arguments[arguments.index("test") + 1 :])
        if command == "up" and "--no-install" not in arguments and not {"--help", "-h"} & set(arguments):
            installer.run()
    except PorticoError as error:
        for part in (error.message, error.why, error.hint):
            if part:
                print(part, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted. The same command goes on from here.", file=sys.stderr)
        return 130
    program = installer.venv / "bin/portico"
    if not program.exists():
        print(USAGE, file=sys.stderr)
        if arguments and command:
            print(f"Portico is not installed in {target} yet: run ./portico up first.", file=sys.stderr)
        return 0 if {"--help", "-h"} & set(arguments) else 2
    for name in ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE"):
        os.environ.pop(name, None)
    os.execv(program, ["portico", *arguments])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
