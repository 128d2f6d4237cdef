"""The places that Portico uses on this machine, made with the right owners and modes before anything is started.

Everything that root does for the others is here: the service account, the folders, the sockets. Nothing here starts a
process of Portico.

state_dir is root's, writable for the service account and sticky (1770): gateway and portal keep their files in it, and
can't replace root's (the logs, the broker's audit log) by links that root would then write through.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import json
import os
import pwd
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from portico import wire
from portico.cli.sshd_process import find_sshd
from portico.config import LOOPBACK_HOSTS, SERVICE_ACCOUNT, SSH_ACCOUNT, USER_GROUP, Config
from portico.errors import Conflict, Invalid, Unavailable


@dataclass(frozen=True)
class Account:
    """The POSIX account that gateway and portal run as."""

    name: str
    uid: int
    gid: int


def make_service_account(config: Config) -> Account:
    """Return the account of gateway and portal, made where it is missing; in single-user mode the one who starts
    Portico.

    Raises:
        Unavailable: It could not be made.

    """
    if not config.multi_user:
        own = pwd.getpwuid(os.getuid())
        return Account(own.pw_name, own.pw_uid, own.pw_gid)
    if not _has_group(USER_GROUP):
        _run_as_root(["groupadd", "--system", USER_GROUP], done=lambda: _has_group(USER_GROUP))
    _make_system_account(SERVICE_ACCOUNT, "Portico gateway and portal")
    _make_system_account(SSH_ACCOUNT, "Portico SSH look-ups")
    entry = pwd.getpwnam(SERVICE_ACCOUNT)
    if entry.pw_uid == 0 or entry.pw_gid == 0:
        raise Unavailable(
            f"The account {SERVICE_ACCOUNT} is root's.", hint=f"Give {SERVICE_ACCOUNT} a uid and gid of its own."
        )
    return Account(entry.pw_name, entry.pw_uid, entry.pw_gid)


def _make_system_account(name: str, purpose: str) -> None:
    if not _has_account(name):
        options = [
            "--system",
            "--user-group",
            "--no-create-home",
            "--home-dir",
            "/nonexistent",
            "--shell",
            "/usr/sbin/nologin",
        ]
        _run_as_root(["useradd", *options, "--comment", purpose, name], done=lambda: _has_account(name))


def make_folders(config: Config, account: Account) -> None:
    """Make state_dir, its log folder and run_dir, and check the ones that are there.

    Raises:
        Unavailable: One can't be made, or belongs to somebody else.

    """
    own = os.geteuid()
    if config.multi_user:
        folders = (
            (config.state_dir, own, account.gid, 0o1770),
            (f"{config.state_dir}/log", own, account.gid, 0o750),
            (config.run_dir, own, own, 0o755),
            (f"{config.run_dir}/users", own, own, 0o755),
        )
    else:
        folders = (
            (config.state_dir, own, account.gid, 0o700),
            (f"{config.state_dir}/log", own, account.gid, 0o700),
            (config.run_dir, own, account.gid, 0o700),
            (f"{config.run_dir}/users", own, account.gid, 0o700),
        )
    for path, uid, gid, mode in folders:
        _make_folder(Path(path), uid, gid, mode)


def _make_folder(path: Path, uid: int, gid: int, mode: int) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        raise Unavailable(f"The folder {path} can't be used.", why=error.strerror or str(error)) from error
    try:
        if os.fstat(descriptor).st_uid != uid:
            raise Unavailable(
                f"The folder {path} belongs to somebody else.",
                why=f"Its owner has uid {os.fstat(descriptor).st_uid}.",
                hint="Choose another folder, or give it to root." if uid == 0 else "Choose another folder.",
            )
        os.fchown(descriptor, uid, gid)
        os.fchmod(descriptor, mode)
    finally:
        os.close(descriptor)


class Lock:
    """Held by the one ``portico up`` of a state folder and a run folder, and readable by ``portico status``.

    Two flocks, both gone with the process however it dies: on the state folder itself, and on ``up.lock`` in the run
    folder, which says who holds it. That file is root's, so that nobody else can make ``portico stop`` signal another
    process.
    """

    def __init__(self, config: Config) -> None:
        self._path = Path(config.run_dir) / "up.lock"
        self._state_dir = config.state_dir
        self._held: list[int] = []
        self._size = 0

    def take(self) -> None:
        """Take both locks for the life of this process.

        Raises:
            Conflict: Another Portico has one; ``why`` says which.

        """
        file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
        folder = os.open(self._state_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._held = [file, folder]
        self._size = os.fstat(file).st_size
        for descriptor in self._held:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                other = self.read()
                where = (
                    f"process {other['pid']}, {other['url']}" if other else f"with the state folder {self._state_dir}"
                )
                raise Conflict(
                    "Portico is running already.",
                    why=f"It is {where}.",
                    hint="`portico status` shows it, `portico stop` ends it.",
                ) from None

    def write(self, facts: dict[str, Any]) -> None:
        """Replace what :meth:`read` tells others."""
        data = json.dumps({"pid": os.getpid(), **facts}).encode()
        self._size = max(self._size, len(data))  # one write and no truncation: a reader never sees half of it
        os.pwrite(self._held[0], data.ljust(self._size), 0)

    def read(self) -> dict[str, Any] | None:
        """Return what the running ``portico up`` wrote, with its ``pid``; None where none holds the lock."""
        try:
            with open(self._path) as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    facts = json.loads(file.read())
                    return facts if isinstance(facts, dict) else None
        except (OSError, ValueError):
            return None
        return None

    def release(self) -> None:
        """Give both up."""
        wire.close_all(self._held)
        self._held = []


def open_sockets(config: Config, account: Account) -> dict[str, socket.socket]:
    """Return every listening socket of Portico by its name in docs/protocol.md.

    Also a ``reserved`` one per loopback address that nobody of ours serves: bound, not listening, so that no user of
    this machine can answer there for a browser that tries ::1 before 127.0.0.1.

    Raises:
        Unavailable: An address or path can't be had.

    """
    sockets = {"listen-portal": _listen_tcp(config.bind, config.port, "port")}
    ports = [config.port]
    if not config.apps_domain:
        sockets["listen-apps"] = _listen_tcp(config.bind, config.apps_port, "apps_port")
        ports.append(config.apps_port)
    if config.clusters:
        sockets["listen-relays"] = open_relay_socket(config)
    if config.bind == "127.0.0.1":
        for port in ports:
            with contextlib.suppress(OSError):  # no IPv6 here, or somebody has it: then that is theirs to tell
                reserved = socket.socket(socket.AF_INET6)
                reserved.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                reserved.bind(("::1", port))
                sockets[f"reserved-{port}"] = reserved
    for name, kind, mode, owner in (
        ("broker", socket.SOCK_SEQPACKET, 0o600, account),
        ("routes", socket.SOCK_SEQPACKET, 0o600, account),
        ("relays", socket.SOCK_SEQPACKET, 0o600, account),
        ("portal", socket.SOCK_STREAM, 0o600, account),
        ("api", socket.SOCK_STREAM, 0o666, account),
        ("ssh", socket.SOCK_SEQPACKET, 0o666, account),
    ):
        sockets[name] = _listen_unix(config.socket_paths[name], kind, mode, owner)
    return sockets


def open_relay_socket(config: Config) -> socket.socket:
    """Return the listening socket that nodes of clusters dial, wherever browsers do.

    Raises:
        Unavailable: The port can't be had.
    """
    return _listen_tcp("", config.relay_port, "relay_port")


def _listen_unix(path: str, kind: socket.SocketKind, mode: int, owner: Account) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, kind)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        before = os.umask(0o777 & ~mode)
        try:
            sock.bind(path)
        finally:
            os.umask(before)
        if os.geteuid() == 0:
            os.chown(path, owner.uid, owner.gid)
        sock.listen(1024)
    except OSError as error:
        raise Unavailable(f"The socket {path} can't be made.", why=error.strerror or str(error)) from error
    return sock


def _listen_tcp(bind: str, port: int, setting: str) -> socket.socket:
    try:
        if bind in ("", "::") and socket.has_dualstack_ipv6():
            with contextlib.suppress(OSError):
                return _create(("::", port), socket.AF_INET6, dualstack=True)
        family = socket.AF_INET6 if ":" in bind else socket.AF_INET
        return _create((bind or "0.0.0.0", port), family)  # noqa: S104  (every address is what was asked for)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            who = find_listener(port)
            raise Unavailable(
                f"Port {port} is taken.",
                why=f"{who} listens there." if who else "Another program listens there.",
                hint=f"End it, or choose another port: --{setting.replace('_', '-')} {port + 10}",
            ) from error
        if error.errno == errno.EACCES:
            raise Unavailable(
                f"Port {port} is for root.", hint="Choose one above 1023, or start Portico as root."
            ) from error
        raise Unavailable(f"Portico can't listen on {bind or 'every address'}, port {port}.", why=str(error)) from error


def _create(address: tuple[str, int], family: socket.AddressFamily, *, dualstack: bool = False) -> socket.socket:
    return socket.create_server(address, family=family, backlog=4096, dualstack_ipv6=dualstack)


def find_listener(port: int) -> str:
    """Return who listens on a TCP port, as far as /proc tells: ``nginx (process 17)``; else an empty string."""
    inodes: set[str] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                columns = line.split()
                if columns[3] == "0A" and int(columns[1].rpartition(":")[2], 16) == port:  # 0A: TCP_LISTEN
                    inodes.add(f"socket:[{columns[9]}]")
    for process in Path("/proc").iterdir() if inodes else ():
        if process.name.isdigit():
            with contextlib.suppress(OSError):
                for descriptor in (process / "fd").iterdir():
                    if os.readlink(descriptor) in inodes:
                        return f"{(process / 'comm').read_text().strip()} (process {process.name})"
    return ""


def copy_tls_files(config: Config, account: Account) -> tuple[str, str]:
    """Return copies of certificate and key that the gateway can read; root's originals mostly can't be read by it.

    Raises:
        Invalid: They can't be read, or are no such pair.

    """
    import ssl

    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(config.tls_certificate, config.tls_key)
        texts = {
            "certificate.pem": Path(config.tls_certificate).read_bytes(),
            "key.pem": Path(config.tls_key).read_bytes(),
        }
    except (OSError, ssl.SSLError) as error:
        raise Invalid(
            "The TLS certificate and key can't be used.",
            why=f"{config.tls_certificate}, {config.tls_key}: {error}",
            hint="Both are PEM files; the key is the certificate's own and has no password.",
        ) from error
    folder = Path(config.run_dir) / "tls"
    _make_folder(folder, os.geteuid(), account.gid, 0o750 if config.multi_user else 0o700)
    for name, data in texts.items():
        path = folder / f"{name}.new"
        path.unlink(missing_ok=True)
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:
            os.fchown(descriptor, os.geteuid(), account.gid)
            os.fchmod(descriptor, 0o640 if config.multi_user else 0o600)
            file.write(data)
    for name in texts:  # one after the other at once: a gateway that starts just now finds the pair
        os.replace(folder / f"{name}.new", folder / name)
    return str(folder / "certificate.pem"), str(folder / "key.pem")


def check_terminals(mounts: str, tty_gid: int) -> str:
    """Return what an administrator should know of this machine's pseudo terminals; empty where all is well.

    An sshd that is not root's, as inside a session, gives up on a terminal whose group is not tty's (sshpty.c,
    OpenSSH 9.2), which systemd and Debian mount devpts with (mount(8), devpts) and some containers do not.

    Args:
        mounts: /proc/self/mounts.
        tty_gid: The group tty's.
    """
    for line in reversed(mounts.splitlines()):  # the last one hides those before
        _, where, kind, options = line.split()[:4]
        if where == "/dev/pts" and kind == "devpts":
            if f"gid={tty_gid}" in options.split(","):
                return ""
            return (
                "Interactive shells by SSH inside sessions will fail: /dev/pts is mounted without the group tty. "
                f"root can mend it: mount -o remount,gid={tty_gid},mode=620 /dev/pts"
            )
    return ""


def find_reason_without_ssh(config: Config) -> str:
    """Return why there can be no sshd, for people; empty where there can be one, or none is wanted.

    All else is of use without it: so that is told, and is no reason not to start.
    """
    if not config.ssh_port:
        return ""
    if find_sshd() is None:
        return "there is no sshd here (apt-get install openssh-server)"
    try:
        _listen_tcp(config.bind, config.ssh_port, "ssh_port").close()
    except Unavailable as error:
        return f"{error.message} {error.why} Choose another port: --ssh-port {config.ssh_port + 10}"
    return ""


def check_host(config: Config) -> Iterator[str]:
    """Yield sentences about settings that work, but that an administrator should know of."""
    if config.ssh_port and find_sshd() and _has_group("tty"):
        sentence = check_terminals(Path("/proc/self/mounts").read_text(), grp.getgrnam("tty").gr_gid)
        if sentence:
            yield sentence
    if config.host not in LOOPBACK_HOSTS and config.scheme == "http":
        yield (
            "Passwords and sessions cross the network unencrypted: "
            "set --tls-certificate and --tls-key, or put a TLS server in front."
        )


def _has_group(name: str) -> bool:
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True


def _has_account(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _run_as_root(argv: list[str], done: Any) -> None:
    program = shutil.which(argv[0], path="/usr/sbin:/sbin:/usr/bin:/bin")
    if not program:
        raise Unavailable(
            f"{argv[0]} is missing.", why="Portico needs a service account.", hint="apt-get install passwd"
        )
    result = subprocess.run([program, *argv[1:]], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if result.returncode and not done():  # another Portico may have been faster
        raise Unavailable(f"{argv[0]} failed.", why=result.stderr.strip())
