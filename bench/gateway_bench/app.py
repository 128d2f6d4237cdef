"""What is behind every bridge: a small RFB server, and a WebSocket server that says one byte; a process of its own.

    python -m gateway_bench.app [--rfb PATH] [--websocket PATH] [--port PORT]
                                [--tls-port PORT --certificate FILE --key FILE]

The RFB server listens on a Unix socket, on TCP, and with TLS for what a client alone reaches. An RFB client's input
event comes back as it is; a request for an update brings as many MiB as its width says. The WebSocket server listens on
a Unix socket and answers plain requests too, with nothing. One thread serves all: bulk goes to one client at a time.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import os
import random
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from typing import Final

from gateway_bench import rfb

BLOCK: Final = random.Random(1).randbytes(1 << 16)
"""Bulk is this block again and again: it stays in the cache, and a client can tell whether what comes is whole."""

GREETING: Final = b"\x82\x01!"
"""The WebSocket server's first message: a frame with one byte."""

BACKLOG: Final = 4096

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
    """One connection of a WebSocket client: it is greeted, and then ignored; a plain request is answered 204."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._head = b""

    def hear(self, data: bytes) -> None:
        """Answer the handshake (RFC 6455, 4.2.2)."""
        self._head += data
        if self._head.endswith(b"\r\n\r\n"):
            lines = (line.partition(b":") for line in self._head.split(b"\r\n"))
            keys = [value.strip() for name, _, value in lines if name.lower() == b"sec-websocket-key"]
            self._head = b""
            if not keys:
                self._sock.sendall(b"HTTP/1.1 204 No Content\r\n\r\n")
                return
            accept = base64.b64encode(hashlib.sha1(keys[0] + _GUID).digest())
            self._sock.sendall(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n" + GREETING
            )


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
    parser.add_argument("--rfb")
    parser.add_argument("--websocket")
    parser.add_argument("--port", type=int)
    parser.add_argument("--tls-port", type=int)
    parser.add_argument("--certificate")
    parser.add_argument("--key")
    options = parser.parse_args()
    listeners: dict[socket.socket, Callable[[socket.socket], Guest]] = {}
    if options.rfb:
        listeners[listen(options.rfb)] = RfbGuest
    if options.websocket:
        listeners[listen(options.websocket)] = WebSocketGuest
    if options.port:
        listeners[socket.create_server(("127.0.0.1", options.port), backlog=BACKLOG)] = RfbGuest
    if options.tls_port:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(options.certificate, options.key)
        tls = socket.create_server(("127.0.0.1", options.tls_port), backlog=BACKLOG)
        threading.Thread(target=serve_tls, args=(tls, context), daemon=True).start()
    serve(listeners)


def listen(path: str) -> socket.socket:
    """Return a Unix socket that listens, for its owner alone."""
    os.umask(0o177)
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(path)
    sock.listen(BACKLOG)
    return sock


if __name__ == "__main__":
    main()
