"""The demo cluster's network: namespaces for the controller and each node, a bridge, and a way to the host."""

from __future__ import annotations

import ipaddress
import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from portico.errors import Unavailable

NAMESPACES = Path("/run/netns")


def run_ip(*arguments: str, check: bool = True) -> str:
    """Run ip(8).

    Raises:
        Unavailable: It failed.
    """
    try:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True, timeout=30, check=False)
    except OSError as error:
        raise Unavailable("The program ip is missing.", why=str(error), hint="Install the package iproute2.") from error
    if check and done.returncode:
        raise Unavailable(f"ip {' '.join(arguments)} failed.", why=done.stderr.strip())
    return done.stdout


class Network:
    """The namespaces and links of one demo cluster.

    Args:
        prefix: Their names' beginning; at most 6 characters, for a link's name has 15.
        subnet: An IPv4 network with 24 bits.
    """

    def __init__(self, prefix: str, subnet: str) -> None:
        self.prefix = prefix
        self._network = ipaddress.IPv4Network(subnet)

    def get_address(self, host: int) -> str:
        """Return the address of a host of the subnet."""
        return str(self._network[host])

    @property
    def controller_address(self) -> str:
        """Where the controller is."""
        return self.get_address(1)

    @property
    def host_address(self) -> str:
        """Where the nodes find this machine itself."""
        return self.get_address(254)

    def get_namespace(self, name: str) -> str:
        """Return the path of a namespace."""
        return str(NAMESPACES / f"{self.prefix}-{name}")

    def up(self, nodes: Sequence[str]) -> None:
        """Make all of it.

        Raises:
            Unavailable: It can't be made.
        """
        hub, width = f"{self.prefix}-ctl", self._network.prefixlen
        run_ip("netns", "add", hub)
        run_ip("-n", hub, "link", "set", "lo", "up")
        run_ip("-n", hub, "link", "add", "br0", "type", "bridge")
        run_ip("-n", hub, "addr", "add", f"{self.controller_address}/{width}", "dev", "br0")
        run_ip("-n", hub, "link", "set", "br0", "up")
        run_ip("link", "add", f"{self.prefix}-up", "type", "veth", "peer", "name", "up0", "netns", hub)
        run_ip("-n", hub, "link", "set", "up0", "master", "br0", "up")
        run_ip("addr", "add", f"{self.host_address}/{width}", "dev", f"{self.prefix}-up")
        run_ip("link", "set", f"{self.prefix}-up", "up")
        for number, node in enumerate(nodes, 1):
            space = f"{self.prefix}-{node}"
            run_ip("netns", "add", space)
            run_ip("-n", space, "link", "set", "lo", "up")
            run_ip("-n", hub, "link", "add", f"v{number}", "type", "veth", "peer", "name", "eth0", "netns", space)
            run_ip("-n", hub, "link", "set", f"v{number}", "master", "br0", "up")
            run_ip("-n", space, "addr", "add", f"{self.get_address(10 + number)}/{width}", "dev", "eth0")
            run_ip("-n", space, "link", "set", "eth0", "up")

    def down(self) -> None:
        """Remove whatever is there of it."""
        run_ip("link", "del", f"{self.prefix}-up", check=False)
        for path in NAMESPACES.glob(f"{self.prefix}-*") if NAMESPACES.is_dir() else ():
            run_ip("netns", "del", path.name, check=False)


def find_free_subnet() -> str:
    """Return a network of 24 bits below 10.213.0.0/16 that no interface of this machine touches.

    Raises:
        Unavailable: All are taken.
    """
    taken = [
        ipaddress.IPv4Interface(f"{one['local']}/{one['prefixlen']}").network
        for link in json.loads(run_ip("-j", "-4", "addr"))
        for one in link.get("addr_info", ())
        if "local" in one
    ]
    for network in ipaddress.IPv4Network("10.213.0.0/16").subnets(new_prefix=24):
        if not any(network.overlaps(other) for other in taken):
            return str(network)
    raise Unavailable("There is no free network for the demo cluster.", why="All of 10.213.0.0/16 is taken.")
