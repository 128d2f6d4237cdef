"""From "fork an agent" to its first answer: the broker beside a fresh Python started as the user, in the same run.

Both do the same for the same POSIX account: become that user, then answer one question over a socket. The broker forks
a process that has imported everything; the peer is what one does without it. Prints medians and the ratio; the target
for the agent is under 10 ms at the median.

    bench/agent_fork.py [--rounds 200]

Needs root, for users.
"""

from __future__ import annotations

import argparse
import json
import pwd
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT / "src")]

from running import RunningPortico  # noqa: E402

MEASURE = """
import json, socket, sys, time
from portico import wire
path, user, rounds = sys.argv[1], sys.argv[2], int(sys.argv[3])
broker = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
broker.connect(path)
broker.settimeout(10)
times = []
for _ in range(rounds):
    begin = time.perf_counter()
    packet = wire.call(broker, "agent", {"user": user})
    agent = socket.socket(fileno=packet.fds[0])
    agent.settimeout(10)
    answer = wire.call(agent, "ping").body
    times.append(time.perf_counter() - begin)
    agent.close()
    time.sleep(0.03)  # the broker forks at most fifty a second
print(json.dumps(times))
"""

PEER = "import socket, sys; s = socket.socket(fileno=int(sys.argv[1])); s.recv(1); s.send(b'x')"


def measure_agents(house: RunningPortico, user: str, rounds: int) -> list[float]:
    """Return seconds from the request to the first answer, asked as the portal would."""
    account = pwd.getpwnam("portico")
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(house.run_dir / "broker.sock"), user, str(rounds)],
        user=account.pw_uid, group=account.pw_gid, extra_groups=[], capture_output=True, text=True, check=True,
        env={"PYTHONPATH": str(ROOT / "src")}, cwd="/",
    )  # fmt: skip
    times: list[float] = json.loads(done.stdout)
    return times


def measure_fresh(user: str, rounds: int) -> list[float]:
    """Return seconds from starting /usr/bin/python3 as the user to its first answer."""
    account = pwd.getpwnam(user)
    times = []
    for _ in range(rounds):
        ours, theirs = socket.socketpair()
        begin = time.perf_counter()
        process = subprocess.Popen(
            ["/usr/bin/python3", "-I", "-S", "-c", PEER, str(theirs.fileno())], pass_fds=[theirs.fileno()],
            user=account.pw_uid, group=account.pw_gid, extra_groups=[], cwd="/",
        )  # fmt: skip
        ours.send(b"?")
        ours.recv(1)
        times.append(time.perf_counter() - begin)
        process.wait()
        ours.close()
        theirs.close()
    return times


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=200)
    rounds = parser.parse_args().rounds
    house = RunningPortico()
    try:
        house.start()
        person, user = house.user("forked"), house.get_name("forked")
        person.wait(person.start("terminal")["id"])  # makes the account
        agents, fresh = measure_agents(house, user, rounds), measure_fresh(user, rounds)
    finally:
        house.destroy()
    print("| start to first answer, ms | p50 | p99 |\n| --- | --- | --- |")
    for name, times in (("agent, forked by the broker", agents), ("a fresh, bare python3", fresh)):
        print(
            f"| {name} | {statistics.median(times) * 1000:.1f} | {sorted(times)[int(rounds * 0.99) - 1] * 1000:.1f} |"
        )
    print(f"| ratio | {statistics.median(agents) / statistics.median(fresh):.2f} | |")


if __name__ == "__main__":
    main()
