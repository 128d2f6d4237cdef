"""A real TigerVNC and a real JupyterLab behind the gateway, as their clients see them."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import shutil
import struct
import subprocess
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import websockets.sync.client
from gateway_rig import SESSION, Rig, echo_bytes, until
from rfb import RfbClient, WebSocketStream
from running import INSTALL_DIR

pytestmark = pytest.mark.system

JUPYTER = INSTALL_DIR / "jupyter/bin/jupyter-lab"
SECRET = "correct horse battery staple"
CAPABILITIES, PROVIDE = 1 << 24, 1 << 28
NOTICE = struct.pack(">I", 1 << 27 | 1)
"""Messages of the extended clipboard; one that tells capabilities names them with the same bits."""


def run(body: Callable[[Rig], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(120), Rig() as rig:
            await body(rig)

    asyncio.run(main())


@contextlib.contextmanager
def started(argv: list[str], **more: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program, and end it."""
    process = subprocess.Popen(argv, start_new_session=True, stdin=subprocess.DEVNULL, **more)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture
def desktop(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A TigerVNC server: its socket and its display."""
    if not shutil.which("Xtigervnc"):
        pytest.skip("Xtigervnc is not installed")
    path = tmp_path / "app.sock"
    reading, writing = os.pipe()
    argv = [
        "Xtigervnc", "-displayfd", str(writing), "-rfbport", "-1", "-rfbunixpath", str(path), "-rfbunixmode", "0600",
        "-SecurityTypes", "None", "-nolisten", "tcp", "-geometry", "640x480", "-depth", "24",
    ]  # fmt: skip
    with started(argv, pass_fds=(writing,), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        os.close(writing)
        with os.fdopen(reading, "rb") as display:
            name = f":{display.readline().decode().strip()}"
        yield path, name


@contextlib.contextmanager
def viewing(rig: Rig) -> Iterator[RfbClient]:
    """Open a desktop's stream as noVNC does."""
    with websockets.sync.client.connect(
        f"ws://localhost:{rig.port}/stream", subprotocols=["binary"], compression=None, max_size=None  # type: ignore[list-item]
    ) as connection:  # fmt: skip
        yield RfbClient(WebSocketStream(connection))


async def route_desktop(rig: Rig, path: Path, *, view_only: bool) -> None:
    if SESSION not in rig.portal.apps:
        await rig.route_stream(echo_bytes)
        rig.portal.apps[SESSION] = path
    rig.portal.way = rig.portal.way | {"view_only": view_only}


def test_a_picture_arrives_and_a_viewers_keys_do_not(desktop: tuple[Path, str], tmp_path: Path) -> None:
    path, display = desktop
    if not shutil.which("xev"):
        pytest.skip("xev is not installed")
    log = tmp_path / "xev.log"

    async def story(rig: Rig) -> None:
        def owner_and_viewer() -> None:
            loop_call(rig, route_desktop(rig, path, view_only=False))
            with viewing(rig) as owner:
                owner.wait(lambda client: client.count_colours() > 0, 10)
                loop_call(rig, route_desktop(rig, path, view_only=True))
                with viewing(rig) as viewer:
                    viewer.wait(lambda client: client.count_colours() > 0, 10)
                    deadline = time.monotonic() + 20
                    while b"(keysym 0x61, a)" not in log.read_bytes():
                        assert time.monotonic() < deadline
                        viewer.type("b")
                        viewer.point(5, 5, 1)
                        viewer.cut("from a viewer")
                        viewer.wait(lambda client: True, 10)  # so the server has taken all that came before
                        owner.type("a")
                        time.sleep(0.05)
                    assert b"(keysym 0x62, b)" not in log.read_bytes()

        with log.open("wb") as out, started(
            ["stdbuf", "-oL", "xev", "-root", "-event", "keyboard"], stdout=out, stderr=subprocess.DEVNULL,
            env=os.environ | {"DISPLAY": display},
        ):  # fmt: skip
            rig.loop = asyncio.get_running_loop()  # type: ignore[attr-defined]
            await asyncio.to_thread(owner_and_viewer)

    run(story)


def has_content(client: RfbClient) -> bool:
    """Return whether any extended clipboard message carried text."""
    kinds = [struct.unpack(">I", message[:4])[0] for message in client.clipboard_messages]
    return any(kind & PROVIDE and not kind & CAPABILITIES for kind in kinds)


def loop_call(rig: Rig, coroutine: Any) -> Any:
    """Run a coroutine in the rig's loop, from another thread."""
    return asyncio.run_coroutine_threadsafe(coroutine, rig.loop).result(10)  # type: ignore[attr-defined]


@pytest.mark.parametrize("view_only", [True, False])
def test_what_the_owner_copies_stays_away_from_viewers(desktop: tuple[Path, str], view_only: bool) -> None:
    path, display = desktop
    if not shutil.which("xterm"):
        pytest.skip("xterm is not installed")
    copy = f"printf '\\033]52;c;{base64.b64encode(SECRET.encode()).decode()}\\a'; sleep 60"  # xterm's own way to copy

    async def story(rig: Rig) -> None:
        rig.loop = asyncio.get_running_loop()  # type: ignore[attr-defined]

        def look() -> None:
            loop_call(rig, route_desktop(rig, path, view_only=False))
            with viewing(rig) as owner:
                loop_call(rig, route_desktop(rig, path, view_only=view_only))
                with viewing(rig) as viewer, started(
                    ["xterm", "-xrm", "XTerm*disallowedWindowOps:", "-e", "sh", "-c", copy],
                    env=os.environ | {"DISPLAY": display},
                ):  # fmt: skip
                    deadline = time.monotonic() + 20
                    while SECRET.encode() not in owner.clipboard:
                        assert time.monotonic() < deadline
                        owner.wait(lambda client: True, 10)
                        time.sleep(0.02)
                    for _ in range(3):  # what was sent to the viewer before is read now
                        viewer.wait(lambda client: True, 10)
                    seen = viewer.clipboard + viewer.clipboard_messages
                    if not view_only:  # the check itself can see it
                        assert SECRET.encode() in viewer.clipboard
                        return
                    assert not viewer.clipboard, seen
                    assert NOTICE in viewer.clipboard_messages and not has_content(viewer), seen
                    # What noVNC would do next: ask for it. It must not get it.
                    viewer._stream.sendall(struct.pack(">B3xiI", 6, -4, 1 << 25 | 1))
                    for _ in range(3):
                        viewer.wait(lambda client: True, 10)
                    assert not viewer.clipboard and not has_content(viewer)

        await asyncio.to_thread(look)

    run(story)


@pytest.mark.skipif(not JUPYTER.exists(), reason=f"{JUPYTER} is not there")
def test_a_notebook_kernel_computes_through_the_gateway(tmp_path: Path) -> None:
    path, base = tmp_path / "app.sock", f"/s/{SESSION}/"
    argv = [
        str(JUPYTER), "--no-browser", "--allow-root", f"--ServerApp.sock={path}", "--ServerApp.sock_mode=0600",
        f"--ServerApp.base_url={base}", "--IdentityProvider.token=", "--ServerApp.allow_origin_pat=http://localhost:.*",
        "--ServerApp.disable_check_xsrf=True", f"--ServerApp.root_dir={tmp_path}",
    ]  # fmt: skip
    env = os.environ | {"HOME": str(tmp_path), "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime")}

    async def story(rig: Rig) -> None:
        await rig.route_http(echo_bytes, cache_s=30)
        rig.portal.apps[SESSION] = path
        origin = f"http://localhost:{rig.apps_port}"

        async def ask(method: str, target: str, body: bytes = b"") -> tuple[int, bytes]:
            head = f"{method} {base}{target} HTTP/1.1\r\nHost: HOST\r\nOrigin: {origin}\r\nConnection: close\r\n"
            data = head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body
            async with rig.exchange(data, apps=True) as raw:
                reply = await raw.answer(30)
                return reply.status, reply.body

        await until(path.exists, 30, "JupyterLab listening")
        deadline = time.monotonic() + 30
        while (found := await ask("GET", "api"))[0] != 200:
            assert time.monotonic() < deadline, found
            await asyncio.sleep(0.1)
        status, page = await ask("GET", "lab")
        assert status == 200 and b"JupyterLab" in page
        status, made = await ask("POST", "api/kernels", b"{}")
        assert status == 201, made
        kernel = json.loads(made)["id"]
        async with rig.websocket(
            f"{base}api/kernels/{kernel}/channels", apps=True, subprotocols=None, origin=origin
        ) as ws:
            header = {"msg_id": uuid.uuid4().hex, "msg_type": "execute_request", "username": "", "session": "s",
                      "version": "5.3", "date": "2026-11-20T00:00:00Z"}  # fmt: skip
            content = {"code": "print(6 * 7, 'x' * 1_000_000)", "silent": False, "store_history": False,
                       "user_expressions": {}, "allow_stdin": False}  # fmt: skip
            message = {"header": header, "parent_header": {}, "metadata": {}, "content": content, "channel": "shell"}
            await ws.send(json.dumps(message))
            printed = ""
            while len(printed) < 1_000_000:
                got = json.loads(await asyncio.wait_for(ws.recv(), 30))
                if got["msg_type"] == "stream":
                    printed += got["content"]["text"]
            assert printed.startswith("42 xxx")
        assert (await ask("DELETE", f"api/kernels/{kernel}"))[0] == 204

    with started(argv, env=env, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
        run(story)
