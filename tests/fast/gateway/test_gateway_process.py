"""The gateway as a process of its own, and over TLS."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faults import HONEST, Line, Reset
from gateway_rig import SESSION, App, Portal, Raw, Rig, answering, echo_bytes, read_request, until
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

SERVE = """
import asyncio, json, logging, socket, sys
from portico.config import load_config
from portico.gateway import process
logging.basicConfig(level=logging.INFO)
config = load_config(None, run_dir=sys.argv[1], state_dir="/x", install_dir="/x", port=int(sys.argv[4]))
listeners = {"listen-portal": socket.socket(fileno=int(sys.argv[2])), "listen-apps": socket.socket(fileno=int(sys.argv[3]))}
tls = process.make_tls(sys.argv[5], sys.argv[6]) if len(sys.argv) > 5 else None
process.run(config, listeners, tls)
"""


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("tls")
    names = str(folder / "certificate.pem"), str(folder / "key.pem")
    argv = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
    ]
    argv += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-out", names[0], "-keyout", names[1]]
    try:
        subprocess.run(argv, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    return names


def make_client_context(certificate: str) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=certificate)


@contextlib.asynccontextmanager
async def tls_raw(rig: Rig, context: ssl.SSLContext, apps: bool = False):  # type: ignore[no-untyped-def]
    port = rig.apps_port if apps else rig.port
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=context, server_hostname="localhost", limit=1 << 22
    )
    raw = Raw(reader, writer, f"localhost:{port}")
    try:
        yield raw
    finally:
        await raw.close()


def run_tls(certificate: tuple[str, str], body) -> None:  # type: ignore[no-untyped-def]
    from portico.gateway.process import make_tls

    async def main() -> None:
        async with asyncio.timeout(60), Rig(tls=make_tls(*certificate)) as rig:
            await body(rig, make_client_context(certificate[0]))

    asyncio.run(main())


def test_pages_and_large_answers_over_tls(certificate: tuple[str, str]) -> None:
    big = bytes(range(256)) * 40_000

    async def body(rig: Rig, context: ssl.SSLContext) -> None:
        await rig.route_http(answering(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(big) + big))
        async with tls_raw(rig, context, apps=True) as raw:
            for _ in range(2):
                raw.send(f"GET /s/{SESSION}/ HTTP/1.1\r\nHost: HOST\r\n\r\n".encode())
                assert (await raw.answer(20)).body == big
        async with tls_raw(rig, context) as raw:
            raw.send(b"GET / HTTP/1.1\r\nHost: HOST\r\n\r\n")
            assert b"X-Forwarded-Proto: https\r\n" in (await raw.answer()).body

    run_tls(certificate, body)


def test_streams_over_tls(certificate: tuple[str, str]) -> None:
    async def body(rig: Rig, context: ssl.SSLContext) -> None:
        app = await rig.route_stream(echo_bytes)
        async with connect(
            f"wss://localhost:{rig.port}/stream", ssl=context, subprotocols=["binary"], compression=None, max_size=None
        ) as ws:  # fmt: skip
            data = os.urandom(3_000_000)
            sending = asyncio.create_task(ws.send([data[at : at + 500_000] for at in range(0, len(data), 500_000)]))
            got = b""
            while len(got) < len(data):
                got += await asyncio.wait_for(ws.recv(), 5)
            assert got == data
            await sending
            assert await rig.portal.cut("user:alice") == 1
            with pytest.raises(ConnectionClosed):
                await asyncio.wait_for(ws.recv(), 1)
            assert ws.close_code == 4001
        await until(lambda: app.open == 0)

    run_tls(certificate, body)


def test_a_client_that_leaves_is_noticed_over_tls(certificate: tuple[str, str]) -> None:
    async def thinking(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await reader.read()

    async def body(rig: Rig, context: ssl.SSLContext) -> None:
        app = await rig.route_http(thinking)
        async with tls_raw(rig, context, apps=True) as raw:
            raw.send(f"GET /s/{SESSION}/ HTTP/1.1\r\nHost: HOST\r\n\r\n".encode())
            await until(lambda: app.open)
        await until(lambda: app.open == 0, 2)

    run_tls(certificate, body)


def test_plain_http_and_noise_on_a_tls_port_disturb_nobody(certificate: tuple[str, str]) -> None:
    async def body(rig: Rig, context: ssl.SSLContext) -> None:
        for data in (b"GET / HTTP/1.1\r\nHost: HOST\r\n\r\n", b"\x16\x03\x01\xff\xff", b""):
            async with rig.exchange(data) as raw:
                if data:
                    raw.writer.write_eof()
                    await raw.rest()
        await until(lambda: not rig.gateway._clients)
        async with tls_raw(rig, context) as raw:
            raw.send(b"GET / HTTP/1.1\r\nHost: HOST\r\n\r\n")
            assert (await raw.answer()).status == 200

    run_tls(certificate, body)


@pytest.mark.parametrize("turns", [0, 20])
def test_a_tls_connection_that_breaks_at_any_byte_leaves_nothing(certificate: tuple[str, str], turns: int) -> None:
    page = b"GET / HTTP/1.1\r\nHost: HOST\r\n\r\n"

    async def body(rig: Rig, context: ssl.SSLContext) -> None:
        async def try_once(line: Line) -> bool:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(
                    "127.0.0.1", line.port, ssl=context, server_hostname="localhost"
                )
                raw = Raw(reader, writer, f"localhost:{rig.port}")
                try:
                    raw.send(page)
                    return (await raw.answer()).status == 200
                except asyncio.IncompleteReadError:
                    return False
                finally:
                    await raw.close()
            return False

        async with tls_raw(rig, context) as other, Line(rig.port) as line:
            assert await try_once(line)
            await line.drop()
            there, back = line.passed
            for direction, size in (("there", there), ("back", back)):
                for at in range(size):
                    if at % 100 == 0:  # the other must not be found idle
                        other.send(page)
                        assert (await other.answer()).status == 200
                    line.there = line.back = HONEST
                    setattr(line, direction, Reset(at, turns))
                    await try_once(line)
                    await line.drop()
                    await until(lambda: len(rig.gateway._clients) == 1, what="all but the other are gone")
                    assert len(rig.gateway.plane._served) <= 5  # listeners, the other, and a connection to the portal
            other.send(page)
            assert (await other.answer()).status == 200

    run_tls(certificate, body)


def is_refused(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) != 0


def test_the_process_drains_on_sigterm_and_ends_on_sigint(tmp_path: Path) -> None:
    """It starts before the portal does; at SIGTERM it accepts nothing more, what is live goes on and what is idle ends;
    at SIGINT it ends streams with 1001, finishes a request, and leaves in time. It logs no secret.
    """

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await asyncio.sleep(0.5)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()

    async def main() -> None:
        run_dir = Path(f"/tmp/gwp{os.getpid()}")
        run_dir.mkdir()
        sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
        port = sockets[0].getsockname()[1]
        fds = [sock.fileno() for sock in sockets]
        log = tmp_path / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [sys.executable, "-c", SERVE, str(run_dir), *map(str, fds), str(port)],
                pass_fds=fds,
                stderr=out,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
            )
        for sock in sockets:
            sock.close()
        portal = Portal(run_dir)
        try:
            await asyncio.sleep(0.1)
            await portal.start()
            await until(lambda: portal.hellos, 10)
            portal.respond = slow
            app_socket = run_dir / "app.sock"
            app = App(app_socket, echo_bytes)
            await app.start()
            portal.apps["k"], portal.app = app_socket, "k"
            portal.way = {"kind": "stream", "protocol": "rfb", "view_only": False, "tags": ["user:alice"]}
            async with connect(f"ws://localhost:{port}/stream?ticket=planted1", compression=None) as ws:
                await ws.send(b"x")
                assert await ws.recv() == b"x"
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                raw = Raw(reader, writer, f"localhost:{port}")
                raw.send(b"GET /a?t=planted2 HTTP/1.1\r\nHost: evil\r\nCookie: portico=planted3\r\nX: planted4\r\n\r\n")
                assert (await raw.answer()).status == 421
                raw.send(b"GET /a?t=planted5 HTTP/1.1\r\nHost: HOST\r\n\r\n")
                await until(lambda: portal.http_connections)
                idle = Raw(*await asyncio.open_connection("127.0.0.1", port), f"localhost:{port}")
                process.send_signal(signal.SIGTERM)
                await until(lambda: is_refused(port), what="nothing more is accepted")
                await ws.send(b"y")
                assert await ws.recv() == b"y"
                idle.send(b"GET / HTTP/1.1\r\nHost: evil\r\n\r\n")
                assert (await idle.answer()).all("connection") == ["close"]
                await idle.close()
                begin = time.monotonic()
                process.send_signal(signal.SIGINT)
                with pytest.raises(ConnectionClosed):
                    await asyncio.wait_for(ws.recv(), 2)
                assert ws.close_code == 1001
                assert (await raw.answer()).body == b"ok"
                await raw.close()
            assert await asyncio.to_thread(process.wait, 5) == 0
            assert time.monotonic() - begin < 3
            await app.stop()
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            await portal.stop()
            for path in run_dir.iterdir():
                path.unlink()
            run_dir.rmdir()
        text = log.read_text()
        assert re.search(r"refused 127.0.0.1: 421", text) and "planted" not in text and "Traceback" not in text, text

    asyncio.run(main())


def test_a_flood_of_refusals_is_no_flood_of_lines(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with Rig() as rig:
            caplog.set_level("INFO")
            for _ in range(5):
                await asyncio.gather(*(refuse(rig) for _ in range(60)))
            assert 5 < len([line for line in caplog.messages if line.startswith("refused")]) < 150
            assert "evil" not in caplog.text and "\x1b" not in caplog.text

    async def refuse(rig: Rig) -> None:
        async with rig.exchange(b"GET /\x1b[2Jevil HTTP/1.1\r\nHost: evil\r\n\r\n") as raw:
            assert (await raw.answer()).status == 400

    asyncio.run(main())
