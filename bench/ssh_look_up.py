"""Does look-ups as sshd has them done, for bench/ssh.py: runs as their account, with the standard library alone.

Standard input: an object with ``what`` (``ask``, ``run`` or ``idle``), ``look_up`` (the program's argv, the socket
last), ``pairs`` of user and fingerprint, and ``parallel``. Standard output: an object with ``ms`` and ``each_s``.
"""

import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

wanted = json.load(sys.stdin)
look_up, what = wanted["look_up"], wanted["what"]


def ask(user: str, fingerprint: str) -> None:
    """Ask the portal, as a process that it does not know yet."""
    args = {"user": user, "fingerprint": fingerprint, "pid": os.getpid(), "start_ticks": time.monotonic_ns() // 1000}
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(10)
        sock.connect(look_up[-1])
        sock.send(json.dumps({"id": 1, "op": "keys", "args": args}).encode())
        assert b'"lines"' in sock.recv(100_000)


def do(pair: "list[str]") -> float:
    """Do one look-up; return its milliseconds."""
    user, fingerprint = pair
    begin = time.perf_counter()
    if what == "ask":
        ask(user, fingerprint)
    elif what == "idle":
        subprocess.run([*look_up[:-2], "-c", "pass"], check=True)
    else:
        done = subprocess.run([*look_up, "keys", user, fingerprint], check=True, stdout=subprocess.PIPE)
        assert done.stdout.startswith(b"ssh-ed25519 ")
    return (time.perf_counter() - begin) * 1000


begin = time.perf_counter()
with ThreadPoolExecutor(wanted["parallel"]) as pool:
    times = list(pool.map(do, wanted["pairs"]))
json.dump({"ms": times, "each_s": len(times) / (time.perf_counter() - begin)}, sys.stdout)
