"""``portico reload``, and several gateways: new settings and certificates without a restart, and nobody is refused."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from person import TerminalClient
from running import INSTALL_DIR, RunningPortico, find_free_ports, wait_for_exit, wait_until
from websockets.exceptions import ConnectionClosed

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def make_certificate(folder: Path, name: str) -> None:
    """Make, or renew, certificate.pem and key.pem for localhost; ``name`` tells one from the next."""
    try:
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-days", "2", "-subj", f"/O={name}/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
             "-out", str(folder / "certificate.pem"), "-keyout", str(folder / "key.pem")],
            check=True, capture_output=True,
        )  # fmt: skip
    except FileNotFoundError:
        pytest.skip("openssl is not installed")


def read_presented_name(port: int) -> str:
    """Return the organisation in the certificate that a new connection gets."""
    pem = ssl.get_server_certificate(("127.0.0.1", port), timeout=20)
    done = subprocess.run(
        ["openssl", "x509", "-noout", "-subject"], input=pem, text=True, capture_output=True, check=True
    )
    return done.stdout


def read_status(portico: RunningPortico) -> dict[str, Any]:
    status: dict[str, Any] = json.loads(portico.cli("status", "--json").stdout)
    return status


class Knocker:
    """A client that connects anew again and again, as others would while something is going on."""

    def __init__(self, portico: RunningPortico) -> None:
        self._url = f"{portico.url}/api/v1/health"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.answers = 0
        self.failures: list[str] = []

    def _run(self) -> None:
        while not self._ended.is_set():
            try:
                with httpx.Client(trust_env=False, timeout=20) as client:
                    answer = client.get(self._url)
            except httpx.HTTPError as error:
                self.failures.append(repr(error))
            else:
                self.answers += 1
                if answer.status_code != 200:
                    self.failures.append(str(answer.status_code))

    def __enter__(self) -> Knocker:
        self._thread.start()
        wait_until(lambda: self.answers, 20, "the first answer")
        return self

    def __exit__(self, *_: object) -> None:
        before = self.answers
        wait_until(lambda: self.answers > before + 1 or self.failures, 20, "an answer afterwards")
        self._ended.set()
        self._thread.join(30)


def test_a_renewed_certificate_is_served_after_a_reload(
    portico_factory: Callable[..., RunningPortico], tmp_path: Path
) -> None:
    make_certificate(tmp_path, "First")
    files = ["--tls-certificate", str(tmp_path / "certificate.pem"), "--tls-key", str(tmp_path / "key.pem")]
    portico = portico_factory(options=tuple(files))
    assert "First" in read_presented_name(portico.port)
    before = portico.pids
    make_certificate(tmp_path, "Second")
    assert "First" in read_presented_name(portico.port)
    assert "Reloaded." in portico.cli("reload").stderr
    for port in (portico.port, portico.apps_port):
        assert "Second" in read_presented_name(port)
    after = portico.pids
    assert after["gateway"] != before["gateway"]
    assert {name: after[name] for name in ("supervisor", "broker", "portal")} == {
        name: before[name] for name in ("supervisor", "broker", "portal")
    }
    wait_for_exit(before["gateway"], 20)  # nothing is open in it
    (tmp_path / "key.pem").write_text("this is no key")
    failed = portico.cli("reload", check=False)
    assert failed.returncode == 1
    assert "The TLS certificate and key can't be used." in failed.stderr
    assert "Traceback" not in failed.stderr
    assert "Second" in read_presented_name(portico.port)
    assert portico.pids["gateway"] == after["gateway"]
    os.kill(after["gateway"], signal.SIGKILL)  # what is started again has the last good pair
    wait_until(lambda: portico.pids.get("gateway") not in (None, after["gateway"]), 20, "a new gateway")
    assert "Second" in read_presented_name(portico.port)


def test_nobody_is_refused_during_reloads(portico_factory: Callable[..., RunningPortico]) -> None:
    portico = portico_factory(settings={"gateways": 2})
    with Knocker(portico) as knocker:
        for _ in range(3):
            portico.cli("reload")
    assert not knocker.failures
    assert read_status(portico)["processes"].keys() == {"broker", "portal", "gateway-1", "gateway-2"}
    wait_until(lambda: not read_status(portico)["draining"], 20, "the end of all earlier gateways")
    log = (portico.state_dir / "log" / "gateway-1.log").read_text()
    assert log.count("[supervisor] replaced; finishes what it has") == 3
    assert log.count("[supervisor] ended with status 0") == 3


def test_changed_settings_hold_after_a_reload(portico_factory: Callable[..., RunningPortico]) -> None:
    portico = portico_factory(settings={"max_hours": 10.0})
    alice = portico.user("alice")
    assert alice.http.get("/api/v1/apps/terminal").json()["hours"]["maximum"] == 10.0
    before = portico.pids
    portico.config.write_text("max_hours = 3.0\ngateways = 2\nport = 1\napps_domain = 'apps.example.org'\n")
    with Knocker(portico) as knocker:  # broker and portal start anew, too
        done = portico.cli("reload")
    assert not knocker.failures
    assert "Only a new start changes apps_domain" in done.stderr  # the port is an option, which wins over the file
    assert alice.http.get("/api/v1/apps/terminal").json()["hours"]["maximum"] == 3.0
    after = portico.pids
    assert after["supervisor"] == before["supervisor"]
    assert "gateway-2" in after
    portico.config.write_text("max_hours = 'many'\n")
    failed = portico.cli("reload", check=False)
    assert failed.returncode == 1
    assert "max_hours must be a float" in failed.stderr
    assert portico.pids == after
    assert alice.http.get("/api/v1/apps/terminal").json()["hours"]["maximum"] == 3.0
    portico.config.write_text("max_hours = 3.0\n")
    portico.cli("reload")
    wait_until(lambda: "gateway-2" not in portico.pids, 20, "one gateway")
    nobody = portico.cli("reload", user="nobody", check=False)
    assert nobody.returncode == 1
    assert "You may not reload Portico." in nobody.stderr


def find_holder(portico: RunningPortico, client_port: int) -> str:
    """Return the name of the gateway that has the connection from this port."""
    inode = ""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        columns = line.split()
        ends = [int(columns[at].rpartition(":")[2], 16) for at in (1, 2)]
        if ends == [portico.port, client_port]:
            inode = f"socket:[{columns[9]}]"
    for name, pid in portico.pids.items():
        if name.startswith("gateway"):
            for path in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    if os.readlink(path) == inode:
                        return name
    raise AssertionError(f"nobody has the connection from port {client_port}")


def test_the_death_of_one_gateway_disturbs_only_its_own_streams(
    portico_factory: Callable[..., RunningPortico],
) -> None:
    portico = portico_factory(settings={"gateways": 3})
    alice = portico.user("alice")
    session = alice.wait(alice.start("terminal", memory_gb=0.25)["id"])["id"]
    held: dict[str, list[tuple[TerminalClient, Any]]] = {}

    def open_one() -> bool:
        connection = alice.open_stream(f"/sessions/{session}/stream")
        client_port = connection.socket.getsockname()[1]
        held.setdefault(find_holder(portico, client_port), []).append((TerminalClient(connection), connection))
        return len(held) >= 2 and sum(map(len, held.values())) >= 6

    wait_until(open_one, 60, "streams on two gateways")
    victim, *others = held
    os.kill(portico.pids[victim], signal.SIGKILL)
    for _, connection in held[victim]:
        with pytest.raises(ConnectionClosed):
            while True:
                connection.recv(timeout=10)
    typist = held[others[0]][0][0]
    typist.type("echo undisturbed-$((40+2))\n")
    for other in others:
        for terminal, _ in held[other]:
            terminal.wait(lambda text: "undisturbed-42" in text)
    again = TerminalClient(alice.open_stream(f"/sessions/{session}/stream"))
    again.wait(lambda text: "undisturbed-42" in text)
    wait_until(lambda: len(read_status(portico)["processes"]) == 5, 20, "the third gateway again")
    # A cut reaches the streams of every gateway.
    assert alice.http.post("/sign-out").status_code == 303
    for connection in [again._connection, *(one for other in others for _, one in held[other])]:
        with pytest.raises(ConnectionClosed):
            while True:
                connection.recv(timeout=2)


@pytest.fixture
def terminal_window() -> Iterator[tuple[int, int]]:
    """A pseudo-terminal: the window's end and the program's end."""
    window, program = pty.openpty()
    yield window, program
    for descriptor in (window, program):
        with contextlib.suppress(OSError):
            os.close(descriptor)


def test_a_closed_terminal_ends_portico_instead_of_reloading_it(
    portico: RunningPortico, terminal_window: tuple[int, int]
) -> None:
    window, program = terminal_window
    folders = [f"{portico.run_dir}-5", f"{portico.state_dir}-5"]
    port = find_free_ports()[0]
    argv = [
        "setsid", "--ctty", *portico.get_command(), "up", "--no-install", "--admin", f"{portico.prefix}other",
        "--port", str(port), "--run-dir", folders[0], "--state-dir", folders[1],
        "--install-dir", str(INSTALL_DIR), "--instance", f"{portico.instance}b",
    ]  # fmt: skip
    said: list[bytes] = []
    closing = threading.Event()

    def read() -> None:
        while not closing.is_set():
            if select.select([window], [], [], 0.05)[0]:
                with contextlib.suppress(OSError):
                    said.append(os.read(window, 4096))

    def hear_hangups() -> None:  # whoever started the tests may have had them ignored (nohup(1))
        signal.signal(signal.SIGHUP, signal.SIG_DFL)

    process = subprocess.Popen(
        argv, stdin=program, stdout=program, stderr=program, env=portico.get_env(), preexec_fn=hear_hangups
    )
    os.close(program)
    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        wait_until(lambda: b"Ctrl-C stops Portico" in b"".join(said) or process.poll() is not None, 60, "ready")
        assert process.poll() is None, b"".join(said).decode()
        os.kill(process.pid, signal.SIGHUP)  # with the terminal there it is a wish
        wait_until(lambda: b"Reloaded." in b"".join(said), 30, "the reload")
        closing.set()
        reader.join()
        os.close(window)
        process.wait(30)
    finally:
        closing.set()
        process.kill()
        process.wait()
        subprocess.run(["rm", "-rf", *folders], check=True)
