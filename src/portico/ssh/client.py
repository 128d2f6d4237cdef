"""What goes into a person's own ~/.ssh: how to come in, and whom to trust. Pure (ssh_config(5), sshd(8)).

Rendered where it is written: the command line takes values from the portal, never a finished file, so that not even a
portal gone bad can have a person's ssh run something.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from typing import Final

from portico.errors import Invalid
from portico.model import USER_NAME
from portico.ssh.inner import HOST_ALIAS

INCLUDE: Final = "portico_config"
KNOWN_HOSTS: Final = "portico_known_hosts"
MARK: Final = "# Portico at "
"""How both files begin; what begins otherwise is somebody else's."""
CERTIFIED: Final = "~/.ssh/portico_ed25519"
"""Where `portico ssh login` puts its key."""
LOGIN: Final = "portico_login"
"""The file by which ssh finds that key."""
_HOST: Final = re.compile(r"[A-Za-z0-9:][A-Za-z0-9:._-]{0,252}\Z")
"""A name or an address: no % or blank, which ssh_config(5) reads, no * ? ! or comma, which known_hosts does."""
_PROGRAM: Final = re.compile(r"/[A-Za-z0-9._/@+-]{1,200}\Z")
_KIND: Final = re.compile(r"[a-z0-9-]{1,40}(@openssh\.com)?\Z")
_CONFIG_LINE: Final = re.compile(r"\s*include[\s=]+(.*)\Z", re.IGNORECASE)
_CONDITION: Final = re.compile(r"\s*(host|match)[\s=]", re.IGNORECASE)


@dataclass(frozen=True)
class Way:
    """How one person comes in by SSH.

    Args:
        host: The front door, as clients reach it.
        port: Its port.
        user_name: Who comes in.
        connect: The program there that joins a client to a session.
        host_keys: The front door's keys, as in .pub files.
        host_ca: The key by which sessions' own are signed, likewise.

    Raises:
        Invalid: One of them can't stand in the files: it would be read as something else.
    """

    host: str
    port: int
    user_name: str
    connect: str
    host_keys: tuple[str, ...]
    host_ca: str

    def __post_init__(self) -> None:
        """Look at every value: all of them become parts of lines."""
        good = {
            "host": _HOST.match(self.host),
            "port": 0 < self.port < 65536,
            "user": USER_NAME.match(self.user_name),
            "connect": _PROGRAM.match(self.connect),
        }
        for name, is_good in good.items():
            if not is_good:
                raise Invalid("This can't stand in an SSH configuration.", why=f"Its {name} is not one.", field=name)
        object.__setattr__(self, "host_keys", tuple(_take_key(line) for line in self.host_keys))
        object.__setattr__(self, "host_ca", _take_key(self.host_ca))


def render_ssh_config(way: Way) -> str:
    """Return the file that ~/.ssh/config includes: ``portico`` is the front door, ``NAME.portico`` a session."""
    return f"""\
{MARK}{way.host}. In ~/.ssh/config, above everything else: Include {INCLUDE}
Host portico
    HostName {way.host}
    Port {way.port}
    HostKeyAlias {render_alias(way.host)}
Host *.portico
    HostKeyAlias {HOST_ALIAS}
    ProxyCommand ssh -a -x portico {way.connect} %n
    CheckHostIP no
Host portico *.portico
    User {way.user_name}
    UserKnownHostsFile ~/.ssh/{KNOWN_HOSTS}
    StrictHostKeyChecking yes
    Include {LOGIN}
    ServerAliveInterval 30
"""


def render_login() -> str:
    """Return the file that `portico ssh login` adds: its key first, then those that ssh tries by itself.

    It is a file of its own because ssh says of each key that is named and not there that it is not there; an Include
    that is not there is nothing to it (ssh_config(5)).
    """
    files = (CERTIFIED, "~/.ssh/id_ed25519", "~/.ssh/id_ecdsa", "~/.ssh/id_rsa")
    return "".join(f"IdentityFile {file}\n" for file in files)


def render_known_hosts(way: Way) -> str:
    """Return whom to trust: the front door's own keys, and for sessions whatever this installation's CA has signed."""
    lines = [f"{render_alias(way.host)} {key}" for key in way.host_keys]
    return "\n".join([f"{MARK}{way.host}", *lines, f"@cert-authority {HOST_ALIAS} {way.host_ca}"]) + "\n"


def render_alias(host: str) -> str:
    """Return the name by which clients know the front door's keys, whatever address they reach it by."""
    return f"portico-{host}"


def add_include(config: bytes) -> bytes:
    """Return ~/.ssh/config with our Include on top; as it is where it stands there, above every Host and Match."""
    for line in config.decode(errors="replace").splitlines():
        if _CONDITION.match(line):
            break
        found = _CONFIG_LINE.match(line)
        if found and any(word.strip('"').rpartition("/")[2] == INCLUDE for word in found[1].split()):
            return config
    return f"Include {INCLUDE}\n".encode() + (b"\n" + config if config else b"")


def find_owner(text: str) -> str | None:
    """Return the host that one of our files is for; None where it is none of ours."""
    first = text.partition("\n")[0]
    return first.removeprefix(MARK).partition(". ")[0].strip() if first.startswith(MARK) else None


def _take_key(line: str) -> str:
    kind, _, rest = line.strip().partition(" ")
    body = rest.partition(" ")[0]
    try:
        blob = base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        blob = b""
    if not _KIND.match(kind) or not blob or "\n" in body:
        raise Invalid("This can't stand in an SSH configuration.", why="A host's key is not one.", field="host_keys")
    return f"{kind} {body}"
