"""The rendezvous and the real relay: streams over TLS, tokens, nonces, and what is refused."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import ssl
import sys
import time
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from portico import wire
from portico.cli.relay_files import RelayTls, read_certificate, read_secret
from portico.config import Config
from portico.errors import Forbidden, PorticoError, Unavailable
from portico.gateway.lines import LINE_BYTES, Hello, LineReader, NotUnderstood, parse_first
from portico.gateway.plane import PlaneLoop
from portico.gateway.rendezvous import Rendezvous

SESSION = "kabcdefghij1"
RELAY = Path(__file__).parents[3] / "src/portico/relay/relay.py"


def run(work: Coroutine[Any, Any, None]) -> None:
    async def main() -> None:
        async with asyncio.timeout(40):
            await work

    with asyncio.Runner(loop_factory=PlaneLoop) as runner:
        runner.run(main())


class Hub:
    """A rendezvous with a portal that knows one token, in this process."""

    def __init__(self, folder: Path) -> None:
        (folder / "state").mkdir()
        self.config = Config(state_dir=str(folder / "state"), run_dir=str(folder))
        self.folder = folder
        self.token = "right"
        self.later_s = 0.0
        self.gone: list[str] = []
        self.hellos: list[list[Any]] = []
        self.channel: wire.Channel | None = None

    async def handle(self, op: str, args: dict[str, Any], fds: list[int]) -> wire.Answer | None:
        if op == "relay":
            if args["token"] != self.token:
                raise Forbidden("This relay has no right to serve this session.")
            return {}, ()
        if op == "hello":
            self.hellos.append(args["relays"])
        if op == "relay_gone":
            self.gone.append(args["session"])
        return None

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Hub]:
        path = str(self.folder / "relays.sock")
        listener = wire.listen(path)
        listener.setblocking(False)
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.port = self.tcp.getsockname()[1]
        self.hub = Rendezvous(path)
        tasks = [
            asyncio.create_task(self.hub.listen(self.tcp, RelayTls(self.config, lambda: time.time() + self.later_s))),
            asyncio.create_task(self.hub.run()),
            asyncio.create_task(self.hub.sweep()),
        ]
        sock, _ = await asyncio.get_running_loop().sock_accept(listener)
        self.channel = wire.Channel(sock, self.handle, name="rendezvous")
        try:
            yield self
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self.hub.close()
            self.channel.close()
            listener.close()
            self.tcp.close()

    async def dial(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        context = ssl.create_default_context(cadata=read_certificate(self.config))
        context.check_hostname = False
        return await asyncio.open_connection("127.0.0.1", self.port, ssl=context)

    async def ask(self, op: str, **args: Any) -> wire.Packet:
        assert self.channel
        return await self.channel.ask(op, {"session": SESSION, **args})

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return a stream to the app, as a gateway gets it."""
        packet = await self.ask("relay_open")
        return await asyncio.open_unix_connection(sock=socket.socket(fileno=packet.fds[0]))


@contextlib.asynccontextmanager
async def relaying(hub: Hub, folder: Path, script: str, **changes: Any) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run the real relay, as a job would."""
    job = folder / "job.sh"
    job.write_text(f"#!/bin/sh\n{script}\n")
    job.chmod(0o700)
    settings = {
        "hosts": [["127.0.0.1", hub.port]],
        "certificate": read_certificate(hub.config),
        "token": "right",
        **changes,
    }
    path = folder / "relay.json"
    path.touch(0o600)
    path.write_text(json.dumps(settings))
    env = {"PATH": os.environ["PATH"], "PORTICO_SESSION": SESSION, "PORTICO_SESSION_DIR": str(folder), "HOME": "/"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", str(RELAY), env=env | {"TMPDIR": "/tmp", "PY": sys.executable},
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
        async with asyncio.timeout(10):
            await process.communicate()


ECHO = """exec "$PY" -I -c '
import asyncio, os
async def echo(r, w):
    w.write(b"HEY\\n")
    while data := await r.read(65536):
        w.write(data); await w.drain()
    w.close()
async def main():
    server = await asyncio.start_unix_server(echo, os.environ["PORTICO_SOCKET"])
    await server.serve_forever()
asyncio.run(main())'"""


async def until_connected(hub: Hub) -> None:
    for _ in range(400):
        if SESSION in hub.hub._relays:
            return
        await asyncio.sleep(0.02)
    raise TimeoutError("no relay came")


async def open_soon(hub: Hub) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    for _ in range(200):
        try:
            return await hub.open()
        except Unavailable:
            await asyncio.sleep(0.05)
    raise TimeoutError("the app does not listen")


def test_streams_go_through_the_relay(tmp_path: Path) -> None:
    async def test() -> None:
        async with Hub(tmp_path).serving() as hub, relaying(hub, tmp_path, ECHO):
            await until_connected(hub)
            streams = [await open_soon(hub) for _ in range(5)]
            data = os.urandom(300_000)
            for reader, writer in streams:
                assert await reader.readexactly(4) == b"HEY\n"
                writer.write(data)
            for reader, writer in streams:
                assert await reader.readexactly(len(data)) == data
                writer.close()
            answer = (await hub.ask("relay_probe", reach="pty", path="")).body
            assert answer["ready"] is True
            answer = (await hub.ask("relay_probe", reach="rfb", path="")).body
            assert answer["ready"] is False and "greet" in answer["waiting_for"]

    run(test())


def test_a_slow_reader_holds_back_the_app(tmp_path: Path) -> None:
    flood = ECHO.replace('w.write(b"HEY\\n")', "w.write(bytes(64 << 20))")

    async def test() -> None:
        async with Hub(tmp_path).serving() as hub, relaying(hub, tmp_path, flood):
            await until_connected(hub)
            reader, writer = await open_soon(hub)
            await asyncio.sleep(1)
            kept = [len(one.out) for stream in hub.hub._all for one in _find_ends(stream) if one.out is not None]
            assert sum(kept) < 1 << 20
            assert len(await reader.readexactly(64 << 20)) == 64 << 20
            writer.close()

    run(test())


def _find_ends(stream: Any) -> list[Any]:
    return [getattr(stream, name) for name in ("_remote", "_near") if hasattr(stream, name)]


def test_the_job_ends_with_the_app_and_leaves_nothing(tmp_path: Path) -> None:
    async def test() -> None:
        script = 'echo "$PORTICO_SOCKET" >"$PORTICO_SESSION_DIR/where"; exit 7'
        async with Hub(tmp_path).serving() as hub, relaying(hub, tmp_path, script) as process:
            assert await process.wait() == 7
            assert not Path((tmp_path / "where").read_text().strip()).parent.exists()

    run(test())


def test_the_app_hears_of_the_end(tmp_path: Path) -> None:
    async def test() -> None:
        script = 'trap "echo told >$PORTICO_SESSION_DIR/told; exit 3" TERM; touch "$PORTICO_SESSION_DIR/on"\nwhile :; do sleep 0.05; done'
        async with Hub(tmp_path).serving() as hub, relaying(hub, tmp_path, script) as process:
            while not (tmp_path / "on").exists():
                await asyncio.sleep(0.02)
            process.terminate()
            assert await process.wait() == 3
            assert (tmp_path / "told").exists()

    run(test())


def test_many_ssh_keys_do_not_cost_the_relay_its_connection(tmp_path: Path) -> None:
    async def test() -> None:
        files = {"sshd_config": "this is none\n", "authorized_keys": "ssh-rsa AAAA\n" * 8000}
        async with Hub(tmp_path).serving() as hub, relaying(hub, tmp_path, ECHO):
            await until_connected(hub)
            with contextlib.suppress(Unavailable):  # no sshd here
                packet = await hub.ask("relay_open", ssh=files)
                reader, writer = await asyncio.open_unix_connection(sock=socket.socket(fileno=packet.fds[0]))
                assert await reader.read() == b""  # sshd does not take what it is given
                writer.close()
            assert not hub.gone
            reader, writer = await open_soon(hub)
            assert await reader.readexactly(4) == b"HEY\n"
            writer.close()

    run(test())


def test_a_relay_that_was_killed_is_there_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with Hub(tmp_path).serving() as hub, relaying(hub, tmp_path, ECHO) as process:
            await until_connected(hub)
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
            carrier = next(pid for pid in children if b"carry" in Path(f"/proc/{pid}/cmdline").read_bytes())
            os.kill(int(carrier), 9)
            while not hub.gone:
                await asyncio.sleep(0.02)
            await until_connected(hub)
            reader, writer = await open_soon(hub)
            assert await reader.readexactly(4) == b"HEY\n"
            writer.close()

    run(test())


def test_a_rendezvous_that_was_away_is_dialled_again(tmp_path: Path) -> None:
    async def test() -> None:
        async with Hub(tmp_path).serving() as hub, relaying(hub, tmp_path, ECHO):
            await until_connected(hub)
            for relay in list(hub.hub._relays.values()):
                relay.close()
            await until_connected(hub)

    run(test())


def test_a_wrong_token_gets_nowhere(tmp_path: Path) -> None:
    async def test() -> None:
        async with Hub(tmp_path).serving() as hub, relaying(hub, tmp_path, ECHO, token="wrong") as process:
            assert process.stderr
            line = await asyncio.wait_for(process.stderr.readline(), 10)
            assert b"no right" in line and b"wrong" not in line
            assert not hub.hub._relays
            with pytest.raises(PorticoError, match="not connected"):
                await hub.ask("relay_open")

    run(test())


def test_another_ones_certificate_is_not_trusted(tmp_path: Path) -> None:
    async def test() -> None:
        other = tmp_path / "other"
        other.mkdir()
        forged = read_certificate(Config(state_dir=str(other), run_dir=str(other)))
        async with Hub(tmp_path).serving() as hub, relaying(hub, tmp_path, ECHO, certificate=forged) as process:
            assert process.stderr
            line = await asyncio.wait_for(process.stderr.readline(), 10)
            assert b"certificate" in line.lower()
            assert not hub.hub._relays

    run(test())


def test_settings_that_others_can_read_are_refused(tmp_path: Path) -> None:
    async def test() -> None:
        async with Hub(tmp_path).serving() as hub, relaying(hub, tmp_path, "exit 0") as process:
            await process.wait()
        os.chmod(tmp_path / "relay.json", 0o644)
        env = {"PATH": "/usr/bin:/bin", "PORTICO_SESSION": SESSION, "PORTICO_SESSION_DIR": str(tmp_path)}
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", str(RELAY), env=env, stderr=asyncio.subprocess.PIPE
        )
        _, said = await process.communicate()
        assert process.returncode == 1 and b"not this user's alone" in said

    run(test())


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        b'{"stream": "' + b"0" * 32 + b'"}\n',
        b'{"stream": 7}\n',
        b'{"hello": 1, "session": "../../etc", "token": "right", "node": "n"}\n',
        b'{"hello": 1, "session": "kabcdefghij1"}\n',
        b"[]\n",
        b"x" * (LINE_BYTES + 1),
        b"[" * 4000 + b"\n",
        b"\xff\xfe\n",
    ],
)
def test_who_speaks_otherwise_is_let_go(tmp_path: Path, said: bytes) -> None:
    async def test() -> None:
        async with Hub(tmp_path).serving() as hub:
            reader, writer = await hub.dial()
            writer.write(said)
            with contextlib.suppress(OSError):
                assert await asyncio.wait_for(reader.read(), 5) == b""
            writer.close()
            assert not hub.hub._all and not hub.hub._relays

    run(test())


def test_who_says_nothing_is_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("portico.gateway.rendezvous.FIRST_LINE_S", 0.5)

    async def test() -> None:
        async with Hub(tmp_path).serving() as hub:
            plain = [await asyncio.open_connection("127.0.0.1", hub.port) for _ in range(20)]
            silent = [await hub.dial() for _ in range(20)]
            for reader, writer in plain + silent:
                with contextlib.suppress(OSError):
                    assert await asyncio.wait_for(reader.read(), 8) == b""
                writer.close()
            assert not hub.hub._all and not hub.hub._arrivals

    run(test())


def test_a_nonce_is_good_once_and_only_for_its_relay(tmp_path: Path) -> None:
    async def test() -> None:
        async with Hub(tmp_path).serving() as hub:
            control, say = await hub.dial()
            say.write(json.dumps({"hello": 1, "session": SESSION, "token": "right", "node": "n"}).encode() + b"\n")
            assert json.loads(await control.readline()) == {"ok": 1}
            asking = asyncio.create_task(hub.ask("relay_open"))
            nonce = json.loads(await control.readline())["open"]
            _, first_say = await hub.dial()
            first_say.write(json.dumps({"stream": nonce}).encode() + b"\nhello")
            packet = await asking
            with socket.socket(fileno=packet.fds[0]) as sock:
                sock.settimeout(5)
                assert await asyncio.to_thread(sock.recv, 5) == b"hello"
                again, again_say = await hub.dial()
                again_say.write(json.dumps({"stream": nonce}).encode() + b"\n")
                with contextlib.suppress(OSError):
                    assert await asyncio.wait_for(again.read(), 5) == b""
            for writer in (say, first_say, again_say):
                writer.close()

    run(test())


def test_an_app_that_does_not_listen_is_told(tmp_path: Path) -> None:
    async def test() -> None:
        async with Hub(tmp_path).serving() as hub, relaying(hub, tmp_path, "sleep 30"):
            await until_connected(hub)
            with pytest.raises(Unavailable, match="does not answer"):
                await hub.open()

    run(test())


@given(st.binary(max_size=3 * LINE_BYTES), st.integers(1, 97))
def test_lines_are_found_wherever_they_are_cut(data: bytes, step: int) -> None:
    def read(chunks: list[bytes]) -> Any:
        reader = LineReader()
        for at, chunk in enumerate(chunks):
            try:
                found = reader.take(chunk)
            except NotUnderstood as error:
                return str(error)
            if found:
                return found[0], found[1] + b"".join(chunks[at + 1 :])
        return None

    assert read([data[at : at + step] for at in range(0, len(data), step)]) == (read([data]) if data else None)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(["hello", "session", "token", "node", "stream", "x"]), st.one_of(
    st.integers(), st.text(max_size=40), st.none(), st.just(SESSION), st.just(1), st.lists(st.integers()))))  # fmt: skip
def test_a_first_line_is_understood_or_refused(message: dict[str, Any]) -> None:
    try:
        found = parse_first(message)
    except NotUnderstood:
        return
    assert isinstance(found, Hello) or len(found) == 32
    if isinstance(found, Hello):
        assert found.session == SESSION and found.node.isprintable()


def test_secrets_are_made_once_and_are_the_portals_alone(tmp_path: Path) -> None:
    config = Config(state_dir=str(tmp_path), run_dir=str(tmp_path))
    assert read_secret(config) == read_secret(config) and len(read_secret(config)) == 32
    assert read_certificate(config) == read_certificate(config)
    assert "PRIVATE" not in read_certificate(config)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "relay").iterdir()}
    assert modes == {"secret": 0o600, "relay.pem": 0o600, "next.pem": 0o600}


def test_a_renewed_certificate_cuts_nobody(tmp_path: Path) -> None:
    async def test() -> None:
        async with Hub(tmp_path).serving() as hub, relaying(hub, tmp_path, ECHO):
            await until_connected(hub)
            reader, writer = await open_soon(hub)
            assert await reader.readexactly(4) == b"HEY\n"
            before = read_certificate(hub.config)
            in_use, following = (f"-----BEGIN{pem}" for pem in before.split("-----BEGIN")[1:])
            for days, renewed in ((20, False), (364, False), (366, True), (367, True)):
                hub.later_s = days * 86400.0
                _, other = await hub.dial()  # somebody comes, and the rendezvous looks at the time
                shown = other.get_extra_info("ssl_object").getpeercert(binary_form=True)
                assert ssl.DER_cert_to_PEM_cert(shown).strip() == (following if renewed else in_use).strip()
                other.close()
            after = read_certificate(hub.config)
            assert after.startswith(following) and in_use not in after
            writer.write(b"still\n")  # the stream that was open
            assert await reader.readline() == b"still\n"
            again, second = await open_soon(hub)  # and a new one of the same relay, which has both
            assert await again.readexactly(4) == b"HEY\n"
            writer.close()
            second.close()

    run(test())
