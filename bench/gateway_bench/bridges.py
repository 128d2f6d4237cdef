"""The ways from a client to the app that are compared: none, a bare one, HAProxy, websockify, Portico; TLS too."""

from __future__ import annotations

import contextlib
import resource
import ssl
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from gateway_bench import client, rfb
from gateway_bench.client import Address, Client
from gateway_bench.processes import Cores, Running, find_free_port, started, started_module, wait_for

NONE: Final = "none"
BARE: Final = "bare splice"
HAPROXY: Final = "HAProxy"
WEBSOCKIFY: Final = "websockify"
PORTICO: Final = "Portico"


@dataclass(frozen=True)
class Bridge:
    """One way to the app.

    Args:
        name: Of the peer.
        address: Where it listens.
        running: Its processes; None where there is no bridge.
        websocket: Whether it speaks WebSocket.
        tls: A client's context, where it speaks TLS.
        tcp: Whether it reaches the app by TCP instead of its Unix socket.
    """

    name: str
    address: Address
    running: Running | None = None
    websocket: bool = False
    tls: ssl.SSLContext | None = None
    tcp: bool = False

    def open(self, number: int = 0, source: str = "") -> Client:
        """Open a desktop's stream and do the RFB handshake.

        Args:
            number: Of the desktop, where the bridge tells them apart.
            source: Address that the client comes from.
        """
        sock = client.connect(self.address, self.tls, source)
        try:
            opened: Client = client.PlainClient(sock)
            if self.websocket:
                path = f"/{'tcp' if self.tcp else 'stream'}/{number}"
                opened = client.WebSocketClient(sock, f"localhost:{self.address[1]}", path)
            rfb.shake_hands(opened.say, opened.read)
            return opened
        except OSError:
            sock.close()
            raise

    def read_cpu_s(self) -> float:
        """Return the CPU time that the bridge has used so far."""
        return self.running.read_cpu_s() if self.running else 0.0

    def read_pss_bytes(self) -> int:
        """Return the bridge's memory."""
        return self.running.read_pss_bytes() if self.running else 0


@dataclass(frozen=True)
class Certificate:
    """A self-signed certificate and its key, as files."""

    certificate: Path
    key: Path
    both: Path


@dataclass(frozen=True)
class Place:
    """Where a run has its files and its app.

    Args:
        folder: Short, because sockets are in it.
        cores: What runs where.
        certificate: For TLS.
        port: The app's, on TCP.
        tls_port: The app's, on TLS.
        tools: Programs that are not on PATH, by name.
        missing: Why a peer is not there, by name.
    """

    folder: Path
    cores: Cores
    certificate: Certificate
    port: int
    tls_port: int
    tools: dict[str, list[str]] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def app(self) -> str:
        """The app's Unix socket."""
        return str(self.folder / "rfb.sock")


def make_certificate(folder: Path) -> Certificate:
    """Make a certificate for localhost with openssl."""
    certificate, key, both = (folder / name for name in ("tls.crt", "tls.key", "tls.pem"))
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-subj", "/CN=localhost", "-days", "2", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    both.write_bytes(certificate.read_bytes() + key.read_bytes())
    return Certificate(certificate, key, both)


@contextlib.contextmanager
def app_started(place: Place) -> Iterator[Running]:
    """Run the app."""
    sockets = ("--rfb", place.app, "--websocket", str(place.folder / "websocket.sock"))
    files = ("--certificate", str(place.certificate.certificate), "--key", str(place.certificate.key))
    ports = ("--port", str(place.port), "--tls-port", str(place.tls_port))
    log = place.folder / "app.log"
    with started_module("app", *sockets, *ports, *files, log=log, cores=place.cores.load) as running:
        wait_for(lambda: client.connect(("127.0.0.1", place.tls_port)).close(), "the app", running)
        yield running


@contextlib.contextmanager
def portal_started(place: Place, site: str = "") -> Iterator[None]:
    """Run the portal that lets everybody in."""
    log = place.folder / "portal.log"
    args = ("--folder", str(place.folder), "--port", str(place.port), "--site", site)
    with started_module("portal", *args, log=log, cores=place.cores.load):
        yield


@contextlib.contextmanager
def gateway_started(place: Place, tls: bool = False) -> Iterator[tuple[int, Running]]:
    """Run Portico's gateway; the apps' port is the one behind the portal's, which is returned."""
    port = find_free_port()
    files = ("--certificate", str(place.certificate.certificate), "--key", str(place.certificate.key)) if tls else ()
    log = place.folder / f"gateway{port}.log"
    args = ("--folder", str(place.folder), "--port", str(port), *files)
    with started_module("gateway_process", *args, log=log, cores=place.cores.bridge) as running:
        wait_for(lambda: client.connect(("127.0.0.1", port)).close(), "Portico's gateway", running)
        yield port, running


@contextlib.contextmanager
def none(place: Place) -> Iterator[list[Bridge]]:
    """No bridge: the client is connected to the app."""
    bridge = Bridge(NONE, place.app)
    tls = replace(bridge, address=("127.0.0.1", place.tls_port), tls=client.make_tls())
    yield [bridge, replace(bridge, address=("127.0.0.1", place.port), tcp=True), tls]


@contextlib.contextmanager
def bare(place: Place) -> Iterator[list[Bridge]]:
    """Run the least that a bridge can be."""
    port, tcp_port = find_free_port(), find_free_port()
    args = ("--app", place.app, "--port", str(port), "--app-port", str(place.port), "--tcp-port", str(tcp_port))
    with started_module("bare", *args, log=place.folder / "bare.log", cores=place.cores.bridge) as running:
        bridge = Bridge(BARE, ("127.0.0.1", port), running)
        yield from _ready([bridge, replace(bridge, address=("127.0.0.1", tcp_port), tcp=True)])


@contextlib.contextmanager
def haproxy(place: Place) -> Iterator[list[Bridge]]:
    """HAProxy in TCP mode, one thread, splice where it thinks that splice serves."""
    port, tcp_port = find_free_port(), find_free_port()
    bridges = [
        Bridge(HAPROXY, ("127.0.0.1", port)),
        Bridge(HAPROXY, ("127.0.0.1", tcp_port), tcp=True),
        Bridge(HAPROXY, ("127.0.0.1", port + 1), tls=client.make_tls()),
    ]
    config = place.folder / "haproxy.cfg"
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    config.write_text(
        f"global\n nbthread 1\n maxconn {limit // 3}\ndefaults\n mode tcp\n option splice-auto\n timeout connect 5s\n"
        " timeout client 1h\n timeout server 1h\n"
        f"listen unix\n bind 127.0.0.1:{port}\n bind 127.0.0.1:{port + 1} ssl crt {place.certificate.both}\n"
        f" server app unix@{place.app}\n"
        f"listen tcp\n bind 127.0.0.1:{tcp_port}\n server app 127.0.0.1:{place.port}\n"
    )
    log = place.folder / "haproxy.log"
    with started([*place.tools["haproxy"], "-db", "-f", str(config)], log, place.cores.bridge) as running:
        yield from _ready([replace(one, running=running) for one in bridges])


@contextlib.contextmanager
def websockify(place: Place) -> Iterator[list[Bridge]]:
    """Run websockify, which has a process for each connection."""
    port, tcp_port = find_free_port(), find_free_port()
    tool, log = place.tools["websockify"], place.folder / "websockify.log"
    unix = [*tool, f"--unix-target={place.app}", f"127.0.0.1:{port}"]
    tcp = [*tool, f"127.0.0.1:{tcp_port}", f"127.0.0.1:{place.port}"]
    with (
        started(unix, log, place.cores.bridge, with_children=True) as first,
        started(tcp, place.folder / "websockify-tcp.log", place.cores.bridge, with_children=True) as second,
    ):
        bridges = [
            Bridge(WEBSOCKIFY, ("127.0.0.1", port), first, websocket=True),
            Bridge(WEBSOCKIFY, ("127.0.0.1", tcp_port), second, websocket=True, tcp=True),
        ]
        yield from _ready(bridges)


@contextlib.contextmanager
def portico(place: Place) -> Iterator[list[Bridge]]:
    """Portico's gateway, once plain and once with TLS, and a portal that lets everybody in."""
    with (
        portal_started(place),
        gateway_started(place) as (port, plain),
        gateway_started(place, tls=True) as (tls_port, tls),
    ):
        bridge = Bridge(PORTICO, ("127.0.0.1", port), plain, websocket=True)
        encrypted = replace(bridge, address=("127.0.0.1", tls_port), running=tls, tls=client.make_tls())
        yield from _ready([bridge, replace(bridge, tcp=True), encrypted])


def _ready(bridges: list[Bridge]) -> Iterator[list[Bridge]]:
    """Yield them once a stream can be opened through each."""
    for bridge in bridges:
        assert bridge.running
        wait_for(lambda: bridge.open().sock.close(), bridge.name, bridge.running)  # noqa: B023
    yield bridges


BRIDGES: Final[dict[str, Callable[[Place], contextlib.AbstractContextManager[list[Bridge]]]]] = {
    NONE: none,
    BARE: bare,
    HAPROXY: haproxy,
    WEBSOCKIFY: websockify,
    PORTICO: portico,
}


@contextlib.contextmanager
def all_started(place: Place) -> Iterator[list[Bridge]]:
    """Run every bridge that is there, side by side."""
    with contextlib.ExitStack() as stack:
        bridges = []
        for name, start in BRIDGES.items():
            if name.lower() not in place.missing:
                bridges += stack.enter_context(start(place))
        yield bridges
