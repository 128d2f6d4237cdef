"""What sshd runs for each key or certificate that somebody offers (AuthorizedKeysCommand, sshd_config(5)).

Asks the portal, prints what it answers, and nothing where it does not. One file of the standard library that needs
nothing else of Portico, runs as an account that can do nothing else, and believes nothing that it is given:

    python3 -IS lookup.py SOCKET keys USER FINGERPRINT
    python3 -IS lookup.py SOCKET principals USER FINGERPRINT SERIAL

Its parent is the sshd process of that very connection; the portal is told which one.
"""

import json
import os
import socket
import sys
import time

TRY_S = 5.0
"""A portal that is started anew is there again within about a second."""
ANSWER_S = 5.0
MESSAGE_BYTES = 120 * 1024
NAMES = {"keys": ("user", "fingerprint"), "principals": ("user", "fingerprint", "serial")}


def read_start(pid: int) -> int:
    """Return when a process began, in clock ticks since boot (proc(5)); 0 where /proc does not tell."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            text = file.read().decode(errors="replace")
        return int(text[text.rindex(")") + 2 :].split()[19])
    except (OSError, ValueError, IndexError):
        return 0


def ask(path: str, request: dict) -> dict:  # type: ignore[type-arg]
    """Return the portal's answer.

    Raises:
        OSError, ValueError: There is none.
    """
    deadline = time.monotonic() + TRY_S
    while True:
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                sock.settimeout(ANSWER_S)
                sock.connect(path)
                sock.send(json.dumps(request).encode())
                answer = json.loads(sock.recv(MESSAGE_BYTES))
                if not isinstance(answer, dict):
                    raise ValueError("no object")
                return answer
        except (ConnectionError, FileNotFoundError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def main(arguments: "list[str]") -> int:
    """Print the lines for one look-up; return the exit status."""
    try:
        path, op, *values = arguments
        args: dict[str, object] = dict(zip(NAMES[op], values, strict=True))
        pid = os.getppid()
        args |= {"pid": pid, "start_ticks": read_start(pid)}
        lines = ask(path, {"id": 1, "op": op, "args": args})["ok"]["lines"]
        text = "".join(f"{line}\n" for line in lines)
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"the portal was not asked: {error!r}", file=sys.stderr)
        return 1
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
