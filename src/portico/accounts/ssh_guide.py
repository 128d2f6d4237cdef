"""What a person needs to come in by SSH: where, as whom, and whom to trust. Nothing of it is a secret."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from portico.accounts.ssh_entry import SshEntry
from portico.config import Config
from portico.errors import Forbidden, Unavailable
from portico.model import Identity
from portico.ssh.client import Way


class HostAuthority(Protocol):
    """This installation's host CA; portico.ssh.authority has it."""

    @property
    def host_public(self) -> str:
        """Its public key, a line."""


class SshGuide:
    """Tells people the way in.

    Args:
        authority: Signs sessions' host keys.
    """

    def __init__(self, config: Config, entry: SshEntry, authority: HostAuthority) -> None:
        self._config = config
        self._entry = entry
        self._authority = authority

    def get_way(self, who: Identity) -> Way:
        """Return how somebody comes in.

        Raises:
            Forbidden: Root does not, by SSH.
            Invalid: A name of the configuration can't stand in an SSH client's.
            Unavailable: There is no SSH here.
        """
        if not self._config.ssh_port:
            raise Unavailable("SSH is off here.", hint="Whoever runs this portal can set ssh_port.")
        if not who.user_id:
            raise Forbidden("Root does not come in by SSH.", hint="Ask as the user who is to come in.")
        folder = Path(self._config.ssh_dir)
        try:
            host_keys = (folder / "host_keys.pub").read_text().splitlines()
        except OSError as error:
            raise Unavailable(
                "No sshd of Portico's runs here.", why=f"{error.filename}: {error.strerror}",
                hint="apt-get install openssh-server, then start Portico anew.",
            ) from error  # fmt: skip
        return Way(
            host=self._config.ssh_host or self._config.host,
            port=self._config.ssh_port,
            user_name=who.user_name,
            connect=str(folder / "connect"),
            host_keys=tuple(host_keys),
            host_ca=self._authority.host_public,
        )

    def has_key(self, who: Identity) -> bool:
        """Return whether a key or certificate of somebody's is good now."""
        return bool(self._entry.list_inner(who.user_name))

    @property
    def takes_keys(self) -> bool:
        """Whether plain keys are good here, and not certificates alone."""
        return self._config.ssh_keys
