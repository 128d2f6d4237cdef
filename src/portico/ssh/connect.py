"""Joins an SSH client to a running session: the other half of ``ssh SESSION.portico`` (ProxyCommand, ssh_config(5)).

Runs as the user, started by Portico's sshd, with the second SSH's bytes on its standard input and output. Asks the
portal for a connection to the session, which the kernel tells whose process this is, and moves bytes until one end
closes. One file of the standard library:

    /run/portico/ssh/connect k3x…[.portico]
"""

import contextlib
import json
import os
import socket
import sys
import threading

ANSWER_S = 15.0
CHUNK_BYTES = 256 * 1024
MESSAGE_BYTES = 120 * 1024


class Refused(Exception):
    """The portal's own words."""


def ask(path: str, session: str) -> socket.socket:
    """Return a connection to the session's sshd.

    Raises:
        Refused: The portal says why there is none.
        OSError, ValueError: It does not answer.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(ANSWER_S)
        sock.connect(path)
        sock.send(json.dumps({"id": 1, "op": "connect", "args": {"session": session}}).encode())
        data, fds, _, _ = socket.recv_fds(sock, MESSAGE_BYTES, 1)
    answer = json.loads(data)
    if "error" in answer:
        parts = (answer["error"].get(name) for name in ("message", "why", "hint"))
        raise Refused(" ".join(str(part) for part in parts if part))
    return socket.socket(fileno=fds[0])


def move(source: int, target: int) -> None:
    """Move bytes until there are no more.

    Copied, not spliced: splice(2) keeps a pipe locked while it waits for its other side, and sshd at the pipe's end
    would wait with it.
    """
    buffer = memoryview(bytearray(CHUNK_BYTES))
    with contextlib.suppress(OSError):
        while size := os.readv(source, [buffer]):
            rest = buffer[:size]
            while rest:
                rest = rest[os.write(target, rest) :]


def carry(sock: socket.socket) -> None:
    """Move bytes both ways, neither waiting for the other, until the session's end closes."""

    def inward() -> None:
        move(0, sock.fileno())
        with contextlib.suppress(OSError):
            sock.shutdown(socket.SHUT_WR)

    sock.setblocking(True)
    threading.Thread(target=inward, daemon=True).start()
    move(sock.fileno(), 1)


def main(arguments: "list[str]") -> int:
    """Connect and carry; return the exit status."""
    if len(arguments) != 1:
        print("portico: which session? Its name or id, as `portico session list` shows.", file=sys.stderr)
        return 2
    path = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "ssh.sock")
    try:
        carry(ask(path, arguments[0].removesuffix(".portico")))
    except Refused as error:
        print(f"portico: {error}", file=sys.stderr)
        return 1
    except (OSError, ValueError, IndexError) as error:
        print(f"portico: Portico does not answer: {error}", file=sys.stderr)
        return 1
    os._exit(0)  # the other direction may wait for a client that says no more


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
