"""One real Slurm: controller, accounting with MariaDB, nodes in namespaces of their own, and nodes that boot on demand.

All of it is in one folder and known by one file there, so that ``down`` finds what ``up`` has begun, whatever became
of it. Nothing of the machine's own Slurm, munge or MariaDB is touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from portico.demo.network import Network, find_free_subnet
from portico.demo.processes import Processes, hold_lock, wait_until
from portico.demo.settings import Site, render_hosts, render_provider_script, render_slurm, render_slurmdbd
from portico.errors import Conflict, NotFound, PorticoError, Unavailable

DEFAULT_FOLDER: Final = Path("/var/lib/portico-demo")
ACCOUNT: Final = "demo"
"""Slurm's account that users of the demo charge."""
PROGRAMS: Final = ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd", "sbatch", "sacctmgr", "nsenter", "unshare")
PATH: Final = "/usr/sbin:/usr/bin:/sbin:/bin"

START_S: Final = 30.0


class DemoCluster:
    """A cluster below ``folder``.

    Args:
        folder: Its own; 40 characters at most, for sockets are below it.
        prefix: Of namespaces and links, so that several fit on one machine; at most 6 characters.
        nodes: How many that are always there.
        elastic: How many that boot on demand.
        tell: Takes a line about what is being done.
    """

    def __init__(
        self,
        folder: Path = DEFAULT_FOLDER,
        prefix: str = "pdemo",
        nodes: int = 3,
        elastic: int = 3,
        tell: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.folder = folder
        self._tell = tell
        self._processes = Processes(folder)
        self._facts: dict[str, Any] = {"prefix": prefix, "nodes": nodes, "elastic": elastic, "subnet": ""}
        with contextlib.suppress(OSError, ValueError):
            self._facts |= json.loads((folder / "demo.json").read_text())

    # what it is

    @property
    def conf(self) -> Path:
        """The path of slurm.conf."""
        return self.folder / "etc/slurm.conf"

    @property
    def nodes(self) -> list[str]:
        """The names of the nodes that are always there."""
        return [f"n{number}" for number in range(1, self._facts["nodes"] + 1)]

    @property
    def elastic(self) -> list[str]:
        """The names of the nodes that boot on demand."""
        first = self._facts["nodes"] + 1
        return [f"n{number}" for number in range(first, first + self._facts["elastic"])]

    @property
    def network(self) -> Network:
        """Its network, once it has one."""
        return Network(self._facts["prefix"], self._facts["subnet"])

    @property
    def host_address(self) -> str:
        """How its nodes reach this machine."""
        return self.network.host_address

    @property
    def exists(self) -> bool:
        """Whether something of it is there."""
        return (self.folder / "demo.json").exists()

    def describe(self) -> dict[str, Any]:
        """Return its state, as ``status`` shows it."""
        if not self.exists:
            return {"state": "down", "folder": str(self.folder)}
        running = {name: self._processes.is_running(name) for name in self._processes.names}
        needed = ("munged", "mariadbd", "slurmdbd", "slurmctld", *self.nodes)
        return {
            "state": "up" if all(running.get(name) for name in needed) else "broken",
            "folder": str(self.folder),
            "conf": str(self.conf),
            "host_address": self.host_address,
            "nodes": self.nodes,
            "elastic": self.elastic,
            "processes": running,
        }

    # up and down

    def up(self) -> None:
        """Start it; on failure nothing of it is left.

        Raises:
            Conflict: It, or something else, is there already.
            Unavailable: It can't be started; the message says which step failed.
        """
        if os.geteuid() != 0:
            raise Unavailable("A demo cluster needs root.", why="It makes namespaces and network links.")
        if missing := [name for name in PROGRAMS if not shutil.which(name, path=PATH)]:
            raise Unavailable("Programs are missing.", why=", ".join(missing), hint="Install Slurm and MariaDB.")
        if self.exists:
            raise Conflict(
                f"There is a demo cluster in {self.folder} already.",
                why=f"It is {self.describe()['state']}.",
                hint="Remove it first: portico cluster demo down",
            )
        if len(str(self.folder)) > 40:
            raise Unavailable(f"The folder's path is too long: {self.folder}", hint="40 characters at most.")
        try:
            self.folder.mkdir(mode=0o755, parents=True)
        except FileExistsError:
            raise Conflict(
                f"{self.folder} is there already, and is no demo cluster.",
                why="down removes the whole folder, so up takes only one that it made.",
                hint="Name a folder that does not exist.",
            ) from None
        try:
            for step, work in self._steps():
                self._tell(step)
                work()
        except BaseException:
            self._tell("it failed; removing what was made")
            self.down()
            raise

    def _steps(self) -> Iterator[tuple[str, Callable[[], None]]]:
        yield "network", self._make_network
        yield "folders, keys and configuration", self._make_files
        yield "munge", self._start_munge
        yield "database", self._start_database
        yield "accounting", self.start_accounting
        yield "controller", self.start_controller
        yield "nodes", self._start_nodes
        yield "account demo", self._make_account

    def down(self) -> None:
        """End and remove all of it; nothing is no error."""
        for name in reversed(self._processes.names):
            self._processes.stop(name, signal.SIGKILL if name in (*self.nodes, *self.elastic) else signal.SIGTERM)
        if self._facts["subnet"]:
            self.network.down()
        for _ in range(50):  # killed daemons may still write for a moment
            shutil.rmtree(self.folder, ignore_errors=True)
            if not self.folder.exists():
                return
            time.sleep(0.1)

    def _make_network(self) -> None:
        with hold_lock(Path("/run")):  # two that look at once would find the same subnet
            self._facts["subnet"] = find_free_subnet()
            facts = self.folder / "demo.json"
            facts.touch(0o600)
            facts.write_text(json.dumps(self._facts))
            self.network.up([*self.nodes, *self.elastic])

    def _make_files(self) -> None:
        folder = self.folder
        os.chmod(folder, 0o755)  # noqa: S103 - whatever the umask: users read slurm.conf
        owners = {"munge": "munge", "state": "slurm", "log": "slurm", "run": "slurm", "mysql": "mysql", "db": "mysql"}
        for name in ("etc", "bin", "spool", *owners):
            (folder / name).mkdir(mode=0o755)
            os.chmod(folder / name, 0o755)  # noqa: S103
            if name in owners:
                entry = pwd.getpwnam(owners[name])
                os.chown(folder / name, entry.pw_uid, entry.pw_gid)
        os.chmod(folder / "spool", 0o1777)  # noqa: S103 - as /tmp: slurmd makes one folder below for each node
        os.chmod(folder / "log", 0o1777)  # noqa: S103
        network = self.network
        names = (*self.nodes, *self.elastic)
        page, pages = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
        site = Site(
            name=self._facts["prefix"],
            folder=folder,
            controller=network.controller_address,
            nodes=tuple(self.nodes),
            addresses=tuple(network.get_address(10 + number) for number in range(1, len(names) + 1)),
            elastic=tuple(self.elastic),
            memory_mb=min(4000, page * pages // 1_000_000 // 4),
        )
        (folder / "etc/slurm.conf").write_text(render_slurm(site))
        (folder / "etc/hosts").write_text(render_hosts(site))
        conf = folder / "etc/slurmdbd.conf"
        conf.touch(0o600)
        conf.write_text(render_slurmdbd(site))
        os.chown(conf, pwd.getpwnam("slurm").pw_uid, -1)
        for word in ("resume", "suspend"):
            script = folder / "bin" / word
            script.write_text(render_provider_script(folder, word))
            script.chmod(0o755)
        key = folder / "munge/key"
        key.touch(0o400)
        key.write_bytes(secrets.token_bytes(128))
        os.chown(key, pwd.getpwnam("munge").pw_uid, pwd.getpwnam("munge").pw_gid)
        os.mkfifo(folder / "run/elastic", 0o600)
        os.chown(folder / "run/elastic", pwd.getpwnam("slurm").pw_uid, -1)

    def _start_munge(self) -> None:
        munge = self.folder / "munge"
        self._processes.start("munged", [
            "setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", "munged", "--foreground",
            f"--key-file={munge}/key", f"--socket={munge}/socket", f"--pid-file={munge}/pid",
            f"--log-file={munge}/log", f"--seed-file={munge}/seed", "--num-threads=4",
        ], self._env)  # fmt: skip
        self._wait("munged", lambda: (munge / "socket").exists())

    def _start_database(self) -> None:
        folder = self.folder
        self._processes.run("mariadb-install-db", [
            "mariadb-install-db", "--no-defaults", "--user=mysql", f"--datadir={folder}/mysql",
            "--auth-root-authentication-method=socket", "--skip-test-db",
        ], self._env)  # fmt: skip
        self._processes.start("mariadbd", [
            "mariadbd", "--no-defaults", "--user=mysql", f"--datadir={folder}/mysql", f"--socket={folder}/db/socket",
            f"--pid-file={folder}/db/pid", "--skip-networking", "--innodb-buffer-pool-size=64M",
            "--innodb-log-file-size=16M", "--innodb-lock-wait-timeout=900", "--innodb-flush-log-at-trx-commit=0",
            "--skip-log-bin", "--performance-schema=OFF",
        ], self._env)  # fmt: skip
        client = ["mariadb", "--no-defaults", "-S", f"{folder}/db/socket", "-e"]
        self._wait("mariadbd", lambda: self._succeeds([*client, "select 1"]))
        self._run([*client, "create user slurm@localhost identified via unix_socket; create database slurm_acct; "
                   "grant all on slurm_acct.* to slurm@localhost"], "making the database")  # fmt: skip

    def _start_in_controller(self, name: str, command: str) -> None:
        inside = f"hostname ctl; mount --bind {self.folder}/etc/hosts /etc/hosts; exec {command}"
        argv = ["nsenter", f"--net={self.network.get_namespace('ctl')}", "unshare", "--uts", "--mount", "sh", "-c",
                inside]  # fmt: skip
        self._processes.start(name, argv, self._env)

    def start_accounting(self) -> None:
        """Start slurmdbd, which gives up at once where its database hesitates: then once more, twice at most."""
        for attempt in (1, 2, 3):
            self._start_in_controller("slurmdbd", "slurmdbd -D")
            try:
                self._wait("slurmdbd", lambda: self._succeeds(["sacctmgr", "-n", "list", "cluster"]))
                return
            except Unavailable:
                if attempt == 3 or self._processes.is_running("slurmdbd"):
                    raise

    def stop_accounting(self) -> None:
        """End slurmdbd."""
        self._processes.stop("slurmdbd")

    def start_controller(self) -> None:
        """Start slurmctld; return when it answers."""
        self._start_in_controller("slurmctld", "slurmctld -D -i")
        self._wait("slurmctld", lambda: self._succeeds(["scontrol", "ping"]))

    def stop_controller(self) -> None:
        """End slurmctld with TERM; return when it is gone."""
        self._processes.stop("slurmctld")

    def kill_controller(self) -> None:
        """End it with KILL."""
        self._processes.stop("slurmctld", signal.SIGKILL)

    def hang_controller(self) -> None:
        """Stop it with SIGSTOP."""
        self._processes.send("slurmctld", signal.SIGSTOP)

    def wake_controller(self) -> None:
        """Let it go on."""
        self._processes.send("slurmctld", signal.SIGCONT)

    def _start_nodes(self) -> None:
        for node in self.nodes:
            self.start_node(node)
        if self.elastic:
            script = f"exec {shutil.which('python3', path=PATH)} -I {Path(__file__).with_name('provider.py')}"
            self._processes.start("provider", ["sh", "-c", f"{script} {self.folder}"], self._env)
        self._wait("slurmctld", lambda: self._count_idle() >= len(self.nodes))

    def _count_idle(self) -> int:
        lines = self.run("sinfo", "-h", "-N", "-p", "batch", "-o", "%N %t", check=False).splitlines()
        return sum(1 for line in set(lines) if line.endswith(" idle"))

    def start_node(self, name: str) -> None:
        """Start a node, also one that boots on demand, in namespaces of its own."""
        boots = " -b" if name in self.elastic else ""
        # Terminals as systemd has them, whatever this machine's are like: an sshd that is no root's needs that.
        inside = (
            f"hostname {name}; mount --bind {self.folder}/etc/hosts /etc/hosts; "
            "mount -t devpts -o gid=tty,mode=620 devpts /dev/pts; "
            f"slurmd -D{boots} -N {name} & trap 'kill $!' TERM; wait; wait"
        )
        argv = ["nsenter", f"--net={self.network.get_namespace(name)}", "unshare", "--uts", "--mount", "--pid",
                "--fork", "--mount-proc", "--kill-child", "sh", "-c", inside]  # fmt: skip
        self._processes.start(name, argv, self._env)

    def is_node_running(self, name: str) -> bool:
        """Return whether a node was started and has not ended."""
        return self._processes.is_running(name)

    def kill_node(self, name: str) -> None:
        """End a node with all that runs there, at once."""
        self._processes.stop(name, signal.SIGKILL)

    # people

    def _make_account(self) -> None:
        name = self._facts["prefix"]
        listed = ("sacctmgr", "-n", "-P", "list", "cluster", "format=cluster")
        # Accounting learns of a cluster from its controller, some time after that has begun to answer.
        self._wait("slurmctld", lambda: name in self.run(*listed, check=False).split())
        self.run("sacctmgr", "-i", "add", "account", ACCOUNT, f"Cluster={self._facts['prefix']}")

    def add_user(self, name: str) -> None:
        """Let a POSIX user submit jobs.

        Raises:
            NotFound: There is no such POSIX account: Slurm would remember that.
        """
        try:
            pwd.getpwnam(name)
        except KeyError:
            raise NotFound(f"There is no POSIX account {name!r}.", hint="It is made by the first sign-in.") from None
        self.run("sacctmgr", "-i", "add", "user", name, f"account={ACCOUNT}", f"Cluster={self._facts['prefix']}")

    # commands

    @property
    def _env(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.conf), "MYSQL_UNIX_PORT": f"{self.folder}/db/socket", "PATH": PATH}

    def run(self, *argv: str, check: bool = True) -> str:
        """Run one of Slurm's programs as root; return its output.

        Raises:
            Unavailable: It failed, and ``check`` says that it must not.
        """
        done = subprocess.run(
            argv, env={**os.environ, **self._env}, capture_output=True, text=True, errors="replace", timeout=60,
            check=False,
        )  # fmt: skip
        if check and done.returncode:
            raise Unavailable(f"{argv[0]} failed.", why=(done.stderr or done.stdout).strip()[-1000:])
        return done.stdout

    def _run(self, argv: list[str], doing: str) -> None:
        try:
            self.run(*argv)
        except PorticoError as error:
            raise Unavailable(f"{doing.capitalize()} failed.", why=error.why) from error

    def _succeeds(self, argv: list[str]) -> bool:
        done = subprocess.run(
            argv, env={**os.environ, **self._env}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=60,
            check=False,
        )  # fmt: skip
        return done.returncode == 0

    def _wait(self, name: str, condition: Callable[[], bool]) -> None:
        """Wait until a daemon serves.

        Raises:
            Unavailable: It does not, or has ended.
        """

        def is_so() -> bool:
            if not self._processes.is_running(name):
                raise Unavailable(f"{name} has ended.", why=self._read_log(name))
            return condition()

        wait_until(is_so, START_S, f"The start of {name}", lambda: self._read_log(name))

    def _read_log(self, name: str) -> str:
        said = self._processes.read_log(name)
        with contextlib.suppress(OSError):
            lines = (self.folder / "log" / f"{name}.log").read_text(errors="replace").splitlines()
            said = "\n".join([said, *lines[-5:]]).strip()
        return said
