"""What sshd runs for each key or certificate that somebody offers (AuthorizedKeysCommand, sshd_config(5)).

Asks the portal, prints what it answers, and nothing where it does not. One file of the standard library that needs
nothing else of Portico, runs as an account that can do nothing else, and believes nothing that it is given:

    python3 -IS lookup.py SOCKET keys USER FINGERPRINT
    python3 -IS lookup.py SOCKET principals USER FINGERPRINT SERIAL

Its parent is the sshd process of that very connection; the portal is told which one.

sshd runs it twice for each login, so it imports little: the C parts of socket and json alone. What is around them
brings enum and re, which would be half of the whole time.
"""

import _json
import _socket
import os
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


class Scanning:
    """How json.decoder has the scanner read (json.JSONDecoder)."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float = parse_constant = float
    parse_int = int


def render(value: object) -> str:
    """Return JSON of an object of texts and numbers."""
    if isinstance(value, dict):
        return "{" + ",".join(f"{render(name)}:{render(one)}" for name, one in value.items()) + "}"
    return _json.encode_basestring_ascii(value) if isinstance(value, str) else str(value)


def parse(text: str) -> object:
    """Return what JSON says.

    Raises:
        ValueError: It is none.
    """
    try:
        return _json.make_scanner(Scanning)(text, 0)[0]  # type: ignore[arg-type]
    except (StopIteration, SystemError):  # the latter where it finds no json.decoder.JSONDecodeError to raise
        raise ValueError("no JSON") from None


def ask(path: str, request: "dict[str, object]") -> "dict":  # type: ignore[type-arg]
    """Return the portal's answer.

    Raises:
        OSError, ValueError: There is none.
    """
    deadline = time.monotonic() + TRY_S
    while True:
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
        try:
            sock.settimeout(ANSWER_S)
            sock.connect(path)
            sock.send(render(request).encode())
            answer = parse(sock.recv(MESSAGE_BYTES).decode())
            if not isinstance(answer, dict):
                raise ValueError("no object")
            return answer
        except (ConnectionError, FileNotFoundError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        finally:
            sock.close()


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
