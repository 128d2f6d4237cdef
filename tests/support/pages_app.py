"""A small app that speaks HTTP, for tests: tells what it was sent, answers in two halves, and echoes on WebSockets."""

from __future__ import annotations

from pathlib import Path

APP = r"""
import asyncio, base64, hashlib, json, os

go = asyncio.Event()

async def echo_frames(reader, writer):
    while True:
        first, size = await reader.readexactly(2)
        mask = await reader.readexactly(4)
        payload = bytes(byte ^ mask[at % 4] for at, byte in enumerate(await reader.readexactly(size & 0x7F)))
        writer.write(bytes([first, len(payload)]) + payload)
        if first & 0x0F == 8:
            return

async def serve(reader, writer):
    try:
        while True:
            request, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").rstrip().split("\r\n")
            path = request.split(" ")[1].rpartition("/")[2]
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            if "upgrade" in headers:
                key = headers["sec-websocket-key"].encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
                accept = base64.b64encode(hashlib.sha1(key).digest())
                writer.write(b"HTTP/1.1 101 S\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n")
                writer.write(b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")
                await echo_frames(reader, writer)
                break
            digest, left = hashlib.sha256(), int(headers.get("content-length", 0))
            while left:
                data = await reader.read(min(left, 1 << 16))
                digest.update(data)
                left -= len(data)
            if path == "slow":
                writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\none \r\n")
                await writer.drain()
                await go.wait()
                go.clear()
                writer.write(b"3\r\ntwo\r\n0\r\n\r\n")
                continue
            if path == "go":
                go.set()
            body = json.dumps({"headers": headers, "sha256": digest.hexdigest()}).encode()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
    except (OSError, asyncio.IncompleteReadError):
        pass
    finally:
        writer.close()

async def main():
    os.umask(0o077)
    server = await asyncio.start_unix_server(serve, os.environ["PORTICO_SOCKET"])
    await server.serve_forever()

asyncio.run(main())
"""


def write_pages_app(folder: Path) -> None:
    """Put the app ``pages`` into a catalog folder, which users can read then.

    ``slow`` answers ``one``, and ``two`` only after a request for ``go``; any upgrade echoes small messages; everything
    else answers the request's headers and the hash of its body.
    """
    app = folder / "pages"
    app.mkdir()
    for path in (folder, app):
        path.chmod(0o755)
    (app / "app.toml").write_text('name = "Pages"\nreach = "http"\n[ready]\npath = "hello"\n')
    (app / "job.sh").write_text(f"#!/bin/sh\nexec \"$PORTICO_PYTHON\" -I - <<'END'\n{APP}\nEND\n")
