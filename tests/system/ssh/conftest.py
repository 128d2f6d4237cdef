"""A Portico with an sshd, and its users at their laptops."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from running import RunningPortico
from ssh_person import SshPerson, find_free_port, find_reason_to_skip


@pytest.fixture(scope="session")
def ssh_port() -> int:
    """The port of that sshd."""
    return find_free_port()


@pytest.fixture(scope="session")
def ssh_house(portico_factory: Callable[..., RunningPortico], ssh_port: int) -> RunningPortico:
    """Return a Portico that the tests of one worker share."""
    if reason := find_reason_to_skip():
        pytest.skip(reason)
    return portico_factory({"ssh_port": ssh_port, "max_sessions_per_user": 50})


@pytest.fixture
def alice(ssh_house: RunningPortico, ssh_port: int) -> Iterator[SshPerson]:
    """Alice, who has a key that Portico does not know yet."""
    person = SshPerson(ssh_house, "alice", ssh_port)
    yield person
    for key in person.list_keys():
        person.remove_key(key["id"])
    person.close()


@pytest.fixture
def bob(ssh_house: RunningPortico, ssh_port: int) -> Iterator[SshPerson]:
    """Bob, the same."""
    person = SshPerson(ssh_house, "bob", ssh_port)
    yield person
    for key in person.list_keys():
        person.remove_key(key["id"])
    person.close()


@pytest.fixture(scope="session")
def sessions(ssh_house: RunningPortico) -> dict[str, str]:
    """A terminal of each user's, by the user's short name."""
    found = {}
    for name in ("alice", "bob"):
        session = ssh_house.user(name).start("terminal")
        ssh_house.user(name).wait(session["id"])
        found[name] = session["id"]
    return found
