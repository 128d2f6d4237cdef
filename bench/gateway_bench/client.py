"""What the load says and hears: blocking sockets, plain or TLS, as they are or as a WebSocket's (RFC 6455).

A client does as little as it can, because what it costs is taken from the bridge where cores are few.
"""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import ssl
import struct
from collections.abc import Callable
from typing import Final, Protocol

from gateway_bench import rfb
from gateway_bench.app import BLOCK

Address = str | tuple[str, int]

TIMEOUT_S: Final = 60
BULK_READ_BYTES: Final = 1 << 18

_MASK: Final = b"\x37\xfa\x21\x3d"
_HEADER_BYTES: Final = 10  # the longest that a server sends


class Client(Protocol):
    """A stream to the app, after everything that opens it."""

    sock: socket.socket

    def say(self, data: bytes) -> None:
        """Send a message."""

    def read(self, size: int) -> bytes:
        """Return exactly so many of the app's bytes."""

    def skip(self, size: int) -> None:
        """Read and drop so many of the app's bytes, or a few less: the last thing that is done with a client."""


def make_tls() -> ssl.SSLContext:
    """Return a client's context that trusts everybody: the certificate is the bench's own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def connect(address: Address, tls: ssl.SSLContext | None = None, source: str = "") -> socket.socket:
    """Return a connection; ``source`` is the address that it comes from."""
    if isinstance(address, str):
        sock = socket.socket(socket.AF_UNIX)
    else:
        sock = socket.socket(socket.AF_INET)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if source:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_BIND_ADDRESS_NO_PORT, 1)
            sock.bind((source, 0))
    # Not settimeout(), which would cost a poll(2) for each read.
    for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
        sock.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", TIMEOUT_S, 0))
    try:
        sock.connect(address)
        return tls.wrap_socket(sock) if tls else sock
    except OSError:
        sock.close()
        raise


class PlainClient:
    """Bytes as they are."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.say = sock.sendall

    def read(self, size: int) -> bytes:
        """Return exactly so many bytes."""
        return _read_exactly(self.sock, size)

    def skip(self, size: int) -> None:
        """Read and drop so many bytes."""
        _skip(self.sock, size)


class WebSocketClient:
    """The binary messages of a WebSocket.

    Args:
        sock: A connection to a server, owned from now on.
        host: What the Host header says.
        path: Of the handshake.
        headers: More headers of the handshake, complete lines.
        protocol: Subprotocol to ask for; empty for none.
    """

    def __init__(self, sock: socket.socket, host: str, path: str, headers: str = "", protocol: str = "binary") -> None:
        self.sock = sock
        self._said = b""
        self._payload = b""
        key = base64.b64encode(os.urandom(16)).decode()
        wanted = f"Sec-WebSocket-Protocol: {protocol}\r\n" if protocol else ""
        sock.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n{wanted}{headers}\r\n".encode()
        )
        head = b""
        while b"\r\n\r\n" not in head:
            if not (data := sock.recv(4096)):
                raise ConnectionError(f"closed in the handshake: {head!r}")
            head += data
        head, _, self._said = head.partition(b"\r\n\r\n")
        accept = base64.b64encode(hashlib.sha1(key.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        if not head.startswith(b"HTTP/1.1 101 ") or accept not in head:
            raise ConnectionError(f"no WebSocket: {head[:300]!r}")

    def say(self, data: bytes) -> None:
        """Send a short message, masked."""
        self.sock.sendall(render_frame(2, data))

    def read(self, size: int) -> bytes:
        """Return exactly so many of the app's bytes; pings are answered.

        Raises:
            ConnectionError: It is closed.
        """
        while len(self._payload) < size:
            frame, self._said = parse_frame(self._said)
            if frame is None:
                if not (data := self.sock.recv(65536)):
                    raise ConnectionError("closed")
                self._said += data
                continue
            kind, payload = frame
            if kind == 2:
                self._payload += payload
            elif kind == 9:
                self.sock.sendall(render_frame(10, payload))
            elif kind == 8:
                raise ConnectionError(f"closed: {payload!r}")
        data, self._payload = self._payload[:size], self._payload[size:]
        return data

    def skip(self, size: int) -> None:
        """Read and drop so many bytes, headers among them."""
        _skip(self.sock, size - len(self._said) - len(self._payload))


def render_frame(kind: int, data: bytes) -> bytes:
    """Return a client's frame of at most 125 bytes (5.2)."""
    mask = int.from_bytes((_MASK * 32)[: len(data)], "big")
    masked = (int.from_bytes(data, "big") ^ mask).to_bytes(len(data), "big")
    return bytes((0x80 | kind, 0x80 | len(data))) + _MASK + masked


def parse_frame(data: bytes) -> tuple[tuple[int, bytes] | None, bytes]:
    """Return the first of a server's frames as (kind, payload), None where it is not complete, and the rest."""
    if len(data) < 2:
        return None, data
    size, at = data[1], 2
    if size == 126:
        at, size = 4, int.from_bytes(data[2:4], "big")
    elif size == 127:
        at, size = 10, int.from_bytes(data[2:10], "big")
    if len(data) < at or len(data) < at + size:
        return None, data
    return (data[0] & 15, data[at : at + size]), data[at + size :]


def _read_exactly(sock: socket.socket, size: int) -> bytes:
    data = sock.recv(size)
    while len(data) < size:
        if not (more := sock.recv(size - len(data))):
            raise ConnectionError("closed")
        data += more
    return data


def _skip(sock: socket.socket, size: int) -> None:
    """Drop what comes in the kernel, TLS undecrypted: a client elsewhere would cost this machine nothing either."""
    buffer = bytearray(BULK_READ_BYTES)
    flags = socket.MSG_TRUNC if sock.family == socket.AF_INET else 0  # tcp(7); a Unix socket has no such thing
    while size > 0:
        if not (got := socket.socket.recv_into(sock, buffer, 0, flags)):  # below SSLSocket's own
            raise ConnectionError(f"closed with {size} bytes to come")
        size -= got


def check_bulk(client: Client, mib: int) -> None:
    """Ask for bulk and look whether it is what the app has sent.

    Raises:
        ValueError: It is not.
    """
    client.say(rfb.render_bulk_request(mib))
    for _ in range(mib * rfb.MIB // len(BLOCK)):
        if client.read(len(BLOCK)) != BLOCK:
            raise ValueError("the bridge has changed what the app sent")


Opening = Callable[[], Client]
