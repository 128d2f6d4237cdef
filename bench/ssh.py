#!/usr/bin/python3
"""How quick SSH through Portico is, beside OpenSSH alone.

    python bench/ssh.py [look-up shell scp attack] [--rounds 15] [--megabytes 200]

Starts a demo cluster, a Portico with 10,000 users and 30,000 keys, and plain sshds with an authorized_keys file on
this machine and on a node; all of them in turn, in the same run. A session is two SSH connections, one inside the
other, so its peer is plain OpenSSH's way through two machines (ProxyJump). The plain sshds have Portico's own
configuration but for where the keys are. As root; ./portico test installs all. Leaves nothing behind.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import json
import os
import pwd
import random
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT / "src"), str(ROOT / "bench")]

import cluster  # noqa: E402
import ssh_attack  # noqa: E402
from running import RunningPortico, find_free_ports, wait_until  # noqa: E402
from ssh_person import SshPerson, run  # noqa: E402

from portico.demo import DemoCluster  # noqa: E402
from portico.model import Role, SshKey, UserState, now  # noqa: E402
from portico.store import Store  # noqa: E402

PARTS = ("look-up", "shell", "scp", "attack")
KEYS_EACH = 3
CIPHER = "aes128-gcm@openssh.com"
LOOK_UP = Path(__file__).with_name("ssh_look_up.py")


@dataclass(frozen=True)
class Door:
    """A way to a shell: ``make`` returns the argv for a command there, or of scp with options alone."""

    name: str
    make: Callable[..., list[str]]
    target: str
    peer: str = ""


@dataclass
class Site:
    """What is measured."""

    house: RunningPortico
    slurm: DemoCluster
    alice: SshPerson
    here: str
    there: str
    plain_here: tuple[str, int]
    plain_there: tuple[str, int]

    def doors(self) -> list[Door]:
        """Return all ways, each behind its peer."""
        alice, name = self.alice, self.alice.name

        def plain(where: tuple[str, int], jump: bool = False) -> Callable[..., list[str]]:
            def make(*command: str, program: str = "ssh") -> list[str]:
                way = ("-o", f"ProxyCommand={' '.join(make_plain(alice, self.plain_here))} -W %h:%p") if jump else ()
                return make_plain(alice, where, *command, program=program, options=way)

            return make

        def session(key: str) -> Callable[..., list[str]]:
            return lambda *command, program="ssh": alice.session(key, *command, program=program)

        first, second = (f"{name}@{host}" for host, _ in (self.plain_here, self.plain_there))
        return [
            Door("plain sshd", plain(self.plain_here), first),
            Door("Portico's sshd", alice.front, f"{name}@127.0.0.1", "plain sshd"),
            Door("plain, two hops, here", plain(self.plain_here, True), first),
            Door("session here", session(self.here), f"{name}@{self.here}.portico", "plain, two hops, here"),
            Door("plain sshd on the node", plain(self.plain_there), second),
            Door("plain, two hops, node", plain(self.plain_there, True), second),
            Door("session on the node", session(self.there), f"{name}@{self.there}.portico", "plain, two hops, node"),
        ]


def make_plain(
    who: SshPerson, where: tuple[str, int], *command: str, program: str = "ssh", options: Sequence[str] = ()
) -> list[str]:
    """Return the argv of ``ssh`` to a plain sshd; with ``scp``, the options alone."""
    host, port = where
    target = () if program == "scp" else (f"{who.name}@{host}",)
    return [program, *who.get_options(), "-P" if program == "scp" else "-p", str(port), *options, *target, *command]


# what has to be there


def fill(house: RunningPortico, users: int) -> list[tuple[str, str]]:
    """Add users with keys; return the pairs of name and fingerprint."""
    pairs, store = [], Store(house.state_dir / "portico.db")
    with contextlib.closing(store):
        for first in range(0, users, 200):  # in portions: Portico wants to write too
            with store.begin() as tx:
                for number in range(first, min(first + 200, users)):
                    name = f"bench{number}"
                    tx.add_user(name, Role.USER, UserState.ACTIVE, now())
                    for _ in range(KEYS_EACH):
                        blob = b"\0\0\0\x0bssh-ed25519\0\0\0\x20" + secrets.token_bytes(32)
                        body = base64.b64encode(blob).decode()
                        digest = base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
                        tx.add_ssh_key(SshKey(0, name, "", "ssh-ed25519", body, f"SHA256:{digest}", 256, (), now()))
                        pairs.append((name, f"SHA256:{digest}"))
    return pairs


@contextlib.contextmanager
def plain_sshd(
    house: RunningPortico, key: Path, folder: Path, where: tuple[str, int], prefix: Sequence[str] = ()
) -> Iterator[None]:
    """Run an sshd with Portico's configuration, but for where it finds the keys."""
    host, port = where
    keys = folder / f"authorized_keys_{host}"
    keys.write_text(key.with_suffix(".pub").read_text())
    keys.chmod(0o644)
    left_out = ("Port", "ListenAddress", "AuthorizedKeys", "AuthorizedPrincipals", "TrustedUserCAKeys")
    theirs = (house.run_dir / "ssh/sshd_config").read_text().splitlines()
    lines = [line for line in theirs if not line.startswith(left_out)]
    lines += [f"Port {port}", f"ListenAddress {host}", f"AuthorizedKeysFile {keys}"]
    config = folder / f"sshd_config_{host}"
    config.write_text("\n".join(lines) + "\n")
    process = subprocess.Popen([*prefix, "/usr/sbin/sshd", "-D", "-e", "-f", str(config)], stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(10)


@contextlib.contextmanager
def running_site(folder: Path) -> Iterator[Site]:
    """Start all of it; remove it."""
    folder.chmod(0o755)
    port, plain_port, _ = find_free_ports()
    with contextlib.ExitStack() as stack:
        slurm = stack.enter_context(cluster.running_cluster())
        table = f'[clusters.demo]\nconf = "{slurm.conf}"\nrelay_host = "{slurm.host_address}"'
        house = RunningPortico({"ssh_port": port}, tables=table)
        stack.callback(house.destroy)
        house.start()
        person, name = house.user("alice"), house.get_name("alice")
        person.http.post("/api/v1/sessions", json={"app_id": "terminal", "cluster": "demo"})  # makes the account
        slurm.add_user(name)
        here = person.start("terminal")["id"]
        time.sleep(6)
        there = person.start("terminal", cluster="demo", memory_gb=1, hours=1)["id"]
        person.wait(here)
        node = person.wait(there)["node_name"]
        alice = SshPerson(house, "alice", port, CIPHER)
        stack.callback(alice.close)
        alice.add_key()
        wheres = ("127.0.0.1", plain_port), (slurm.network.get_address(10 + int(node[1:])), plain_port)
        stack.enter_context(plain_sshd(house, alice.key, folder, wheres[0]))
        inside = ("nsenter", f"--net={slurm.network.get_namespace(node)}")
        stack.enter_context(plain_sshd(house, alice.key, folder, wheres[1], inside))
        site = Site(house, slurm, alice, here, there, *wheres)
        for door in site.doors():
            wait_until(lambda door=door: run(door.make("true")).returncode == 0, 30, door.name)
        yield site


# the parts


def measure_look_ups(site: Site, pairs: Sequence[tuple[str, str]], count: int) -> None:
    """Print how long look-ups take: the question alone, the program as sshd runs it, and 50 programs at once."""
    config = (site.house.run_dir / "ssh/sshd_config").read_text()
    (line,) = [line for line in config.splitlines() if line.startswith("AuthorizedKeysCommand ")]
    look_up = line.split()[1:-3]  # without: keys %u %f
    some = random.sample(list(pairs), count)
    unknown = [(name, "SHA256:" + "A" * 43) for name, _ in some]
    account = pwd.getpwnam("portico-ssh")
    work = [
        ("the question, a good key", "ask", some, 1),
        ("the question, an unknown key", "ask", unknown, 1),
        ("the program, a good key", "run", some, 1),
        ("Python that does nothing", "idle", some, 1),
        ("the program, 50 at once", "run", some, 50),
        ("Python that does nothing, 50 at once", "idle", some, 50),
    ]
    for name, what, asked, parallel in work:
        done = subprocess.run(
            ["/usr/bin/python3", "-I", "-c", LOOK_UP.read_text()], user=account.pw_uid, group=account.pw_gid,
            extra_groups=[], cwd="/", check=True, stdout=subprocess.PIPE, text=True,
            input=json.dumps({"what": what, "look_up": look_up, "pairs": asked, "parallel": parallel}),
        )  # fmt: skip
        found = json.loads(done.stdout)
        times = sorted(found["ms"])
        p50, p99 = (times[int(len(times) * part)] for part in (0.5, 0.99))
        print(
            f"  {name}: p50 {p50:.1f} ms, p99 {p99:.1f} ms ({len(times)}; {found['each_s']:.0f} a second)", flush=True
        )


def time_first_output(argv: Sequence[str]) -> float:
    """Return how long it took until a command's first output came, in seconds."""
    begin = time.perf_counter()
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as process:
        assert process.stdout
        said = process.stdout.read(1)
        took = time.perf_counter() - begin
    if not said or process.returncode:
        raise RuntimeError(f"{argv} failed")
    return took


def time_copy(door: Door, path: Path) -> float:
    """Return how long it took to copy a file into a home, in seconds."""
    begin = time.perf_counter()
    done = run([*door.make(program="scp"), str(path), f"{door.target}:copied"], timeout=300)
    if done.returncode:
        raise RuntimeError(f"{door.name}: {done.stderr}")
    return time.perf_counter() - begin


def measure_in_turn(doors: Sequence[Door], rounds: int, measure: Callable[[Door], float]) -> dict[str, list[float]]:
    """Measure each in turn, beginning with another one each round; the first round warms up."""
    found: dict[str, list[float]] = {door.name: [] for door in doors}
    for number in range(rounds + 1):
        for at in range(len(doors)):
            door = doors[(number + at) % len(doors)]
            value = measure(door)
            if number:
                found[door.name].append(value)
    return found


def print_doors(doors: Sequence[Door], found: dict[str, list[float]], unit: str, scale: float) -> None:
    """Print a line for each: the median, and the ratio to its peer within a round."""
    for door in doors:
        values = sorted(value * scale for value in found[door.name])
        line = f"  {door.name}: {statistics.median(values):.0f} {unit} ({values[0]:.0f} to {values[-1]:.0f})"
        if door.peer:
            ratios = [a / b for a, b in zip(found[door.name], found[door.peer], strict=True)]
            low, middle, high = statistics.quantiles(ratios)
            line += f"; {middle:.2f} of {door.peer} (quartiles {low:.2f}, {high:.2f})"
        print(line, flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="these only")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--megabytes", type=int, default=200)
    parser.add_argument("--look-ups", type=int, default=500)
    parser.add_argument("--users", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=20, help="how long an attack is")
    options = parser.parse_args()
    if reason := cluster.find_reason_to_skip():
        sys.exit(reason)
    parts = options.parts or PARTS
    if unknown := set(parts) - set(PARTS):
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory(prefix="portico-bench-", dir="/run") as name, running_site(Path(name)) as site:
        load = os.getloadavg()[0]
        print(f"{os.cpu_count()} cores, load {load:.1f} before, {run(['ssh', '-V']).stderr.strip()}, {CIPHER}")
        if "look-up" in parts:
            pairs = fill(site.house, options.users)
            print(f"key look-ups, {options.users} users, {len(pairs)} keys:")
            measure_look_ups(site, pairs, min(options.look_ups, len(pairs)))
        doors = site.doors()
        if "shell" in parts:
            print("from ssh to the first output:")
            times = measure_in_turn(doors, options.rounds, lambda door: time_first_output(door.make("echo in")))
            print_doors(doors, times, "ms", 1000)
        if "scp" in parts:
            path = Path(name) / "data"
            path.write_bytes(os.urandom(options.megabytes * 1_000_000))
            print(f"scp of {options.megabytes} MB of random bytes into a home:")
            times = measure_in_turn(doors, max(3, options.rounds // 3), lambda door: time_copy(door, path))
            speeds = {door: [options.megabytes / took for took in values] for door, values in times.items()}
            print_doors(doors, speeds, "MB/s", 1)
        if "attack" in parts:
            ssh_attack.measure(site.alice, Path(name), options.seconds)


if __name__ == "__main__":
    main()
