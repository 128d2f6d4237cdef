"""What is behind every bridge: a small RFB server, and a WebSocket server that says one byte; a process of its own.

    python -m gateway_bench.app --folder FOLDER --port PORT --tls-port PORT --certificate FILE --key FILE

It listens on the Unix socket ``rfb.sock``, on TCP, and on TLS for what a client alone reaches; the WebSocket server on
``websocket.sock``. An RFB client's input event comes back as it is; a request for an update brings as many MiB as its
width says. One thread serves all: bulk goes to one client at a time.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import random
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from gateway_bench import rfb

BLOCK: Final = random.Random(1).randbytes(1 << 16)
"""Bulk is this block again and again: it stays in the cache, and a client can tell whether what comes is whole."""

GREETING: Final = b"\x82\x01!"
"""The WebSocket server's first message: a frame with one byte."""

_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3
_SEND_TIMEOUT: Final = struct.pack("ll", 60, 0)


class RfbGuest:
    """One connection of an RFB client, and how far it has come."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._said = b""
        self._steps = [(len(rfb.VERSION), rfb.SECURITY_TYPES), (1, rfb.SECURITY_OK), (1, rfb.SERVER_INIT)]
        sock.sendall(rfb.VERSION)

    def hear(self, data: bytes) -> None:
        """Answer what came."""
        self._said += data
        while self._steps and len(self._said) >= self._steps[0][0]:
            size, answer = self._steps.pop(0)
            self._said = self._said[size:]
            self._sock.sendall(answer)
        while not self._steps and self._said and len(self._said) >= (size := rfb.MESSAGE_BYTES[self._said[0]]):
            message, self._said = self._said[:size], self._said[size:]
            if message[0] == rfb.POINTER[0]:
                self._sock.sendall(message)
            else:
                self._send_bulk(rfb.parse_bulk_request(message))

    def _send_bulk(self, mib: int) -> None:
        for _ in range(mib * rfb.MIB // len(BLOCK)):
            self._sock.sendall(BLOCK)


class WebSocketGuest:
    """One connection of a WebSocket client: it is greeted, and then ignored."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._head = b""

    def hear(self, data: bytes) -> None:
        """Answer the handshake (RFC 6455, 4.2.2)."""
        self._head += data
        if self._head.endswith(b"\r\n\r\n"):
            lines = (line.partition(b":") for line in self._head.split(b"\r\n"))
            key = next(value.strip() for name, _, value in lines if name.lower() == b"sec-websocket-key")
            accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())
            self._sock.sendall(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n" + GREETING
            )
            self._head = b""


Guest = RfbGuest | WebSocketGuest


def serve(listeners: dict[socket.socket, Callable[[socket.socket], Guest]]) -> None:
    """Serve for ever. Sockets block: only one whose turn it is, is read or written."""
    epoll = select.epoll()
    waiting = {sock.fileno(): (sock, make) for sock, make in listeners.items()}
    guests: dict[int, tuple[socket.socket, Guest]] = {}
    for fd in waiting:
        epoll.register(fd, select.EPOLLIN)
    while True:
        for fd, _ in epoll.poll():
            data = b""
            with contextlib.suppress(OSError):
                if fd in waiting:
                    listener, make = waiting[fd]
                    sock, _ = listener.accept()
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _SEND_TIMEOUT)
                    if sock.family == socket.AF_INET:
                        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    guests[sock.fileno()] = sock, make(sock)
                    epoll.register(sock.fileno(), select.EPOLLIN)
                    continue
                if data := guests[fd][0].recv(65536):
                    guests[fd][1].hear(data)
            if not data and fd in guests:
                guests.pop(fd)[0].close()  # which takes it out of the epoll too


def serve_tls(listener: socket.socket, context: ssl.SSLContext) -> None:
    """Serve RFB over TLS for ever, one client after the other."""
    while True:
        sock, _ = listener.accept()
        with contextlib.suppress(OSError), context.wrap_socket(sock, server_side=True) as wrapped:
            guest = RfbGuest(wrapped)
            while data := wrapped.recv(65536):
                guest.hear(data)


def main() -> None:
    """Listen and serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--tls-port", type=int, required=True)
    parser.add_argument("--certificate", required=True)
    parser.add_argument("--key", required=True)
    options = parser.parse_args()
    listeners: dict[socket.socket, Callable[[socket.socket], Guest]] = {}
    makes: dict[str, Callable[[socket.socket], Guest]] = {"rfb.sock": RfbGuest, "websocket.sock": WebSocketGuest}
    for name, make in makes.items():
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(options.folder / name))
        sock.listen(4096)
        listeners[sock] = make
    listeners[socket.create_server(("127.0.0.1", options.port), backlog=4096)] = RfbGuest
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(options.certificate, options.key)
    tls = socket.create_server(("127.0.0.1", options.tls_port))
    threading.Thread(target=serve_tls, args=(tls, context), daemon=True).start()
    serve(listeners)


if __name__ == "__main__":
    main()
