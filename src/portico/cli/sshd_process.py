"""Prepares what Portico's own sshd needs, and becomes it.

As root on a multi-user machine, as everything else of the one who starts Portico otherwise. All that sshd reads is
root's and nobody else's to write: its configuration, its host keys, and the programs that it runs for look-ups.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Final, NoReturn

from portico.config import SSH_ACCOUNT, USER_GROUP, Config
from portico.errors import Unavailable
from portico.ssh.authority import Authority
from portico.ssh.front import Front, render_config

PROGRAM_PATH: Final = "/usr/sbin:/sbin:/usr/local/sbin:/usr/bin"
HOST_KEYS: Final = (("ed25519", ()), ("rsa", ("-b", "3072")))
"""RSA for clients of before 2014."""
CA_WAIT_S: Final = 60.0
KEYGEN_S: Final = 60.0
_PRIVILEGE_SEPARATION: Final = "/run/sshd"
"""Where Debian's sshd puts its processes before anybody is let in; systemd makes it for the system's own."""


def find_sshd() -> str | None:
    """Return the path of sshd; None where there is none."""
    return shutil.which("sshd", path=PROGRAM_PATH)


def find_folder(config: Config) -> Path:
    """Return the folder of what sshd is given, which others may read."""
    return Path(config.ssh_dir)


def find_host_keys(config: Config) -> list[Path]:
    """Return the paths of the front door's host keys."""
    folder = Path(config.state_dir) / "ssh-host"
    return [folder / f"ssh_host_{kind}_key" for kind, _ in HOST_KEYS]


def make_front(config: Config) -> Front:
    """Return what the front door's sshd is made of."""
    folder = find_folder(config)
    python = os.path.realpath(sys.executable)
    account = SSH_ACCOUNT if config.multi_user else pwd.getpwuid(os.geteuid()).pw_name
    return Front(
        port=config.ssh_port,
        listen=(config.bind,) if config.bind else (),
        host_keys=tuple(str(path) for path in find_host_keys(config)),
        look_up=(python, "-IS", str(folder / "lookup.py"), config.socket_paths["ssh"]),
        account=account,
        user_ca=str(folder / "user_ca.pub"),
        group=USER_GROUP if config.multi_user else "",
        forwarding=config.ssh_forwarding,
        banner=config.ssh_banner,
        pam=config.multi_user,
    )


def run_sshd(config: Config) -> NoReturn:
    """Become sshd.

    Raises:
        Unavailable: It is not installed, or what it needs can't be written.
    """
    program = find_sshd()
    if program is None:
        raise Unavailable("There is no sshd here.", hint="apt-get install openssh-server")
    os.umask(0o022)
    try:
        if config.multi_user:
            os.makedirs(_PRIVILEGE_SEPARATION, mode=0o755, exist_ok=True)
        _make_host_keys(config)
        path = _write_files(config)
    except OSError as error:
        raise Unavailable("What sshd needs can't be written.", why=f"{error.filename}: {error.strerror}") from error
    os.execv(program, [program, "-D", "-e", "-f", str(path)])


def _make_host_keys(config: Config) -> None:
    folder = Path(config.state_dir) / "ssh-host"
    folder.mkdir(mode=0o700, exist_ok=True)
    for path, (kind, more) in zip(find_host_keys(config), HOST_KEYS, strict=True):
        if path.exists():
            continue
        new = path.with_name(f".{path.name}.{os.getpid()}")
        argv = ["ssh-keygen", "-q", "-t", kind, *more, "-N", "", "-C", f"portico {config.host}", "-f", str(new)]
        try:
            subprocess.run(argv, check=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=KEYGEN_S)
        except subprocess.SubprocessError as error:
            raise Unavailable("A host key could not be made.", why=str(error)) from error
        new.with_name(f"{new.name}.pub").rename(path.with_name(f"{path.name}.pub"))
        new.rename(path)


def _write_files(config: Config) -> Path:
    folder = find_folder(config)
    folder.mkdir(mode=0o755, exist_ok=True)
    programs = Path(__file__).resolve().parent.parent / "ssh"
    shebang = f"#!{os.path.realpath(sys.executable)} -IS\n"
    authority = Path(config.state_dir) / "ssh"
    deadline = time.monotonic() + CA_WAIT_S
    while not (authority / "user_ca").exists():  # the portal makes it, whose it is, at its first start
        if time.monotonic() > deadline:
            raise Unavailable("The portal has not made its SSH authority.", why=f"{authority} is empty.")
        time.sleep(0.05)
    publics = [path.with_name(f"{path.name}.pub").read_text() for path in find_host_keys(config)]
    texts = {
        "lookup.py": ((programs / "lookup.py").read_text(), 0o644),
        "connect": (shebang + (programs / "connect.py").read_text(), 0o755),
        "user_ca.pub": (f"{Authority(authority).user_public}\n", 0o644),
        "host_keys.pub": ("".join(publics), 0o644),
        "sshd_config": (render_config(make_front(config)), 0o644),
    }
    for name, (text, mode) in texts.items():
        new = folder / f".{name}"
        new.unlink(missing_ok=True)
        new.write_text(text)
        new.chmod(mode)
        new.rename(folder / name)
    return folder / "sshd_config"
