"""A real front server before a Portico, with the configuration that docs/front-servers.md tells people to copy."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import ssl
import subprocess
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import websockets.sync.client
from person import Person
from running import INSTALL_DIR, ROOT, RunningPortico, wait_until

PAGE = ROOT / "docs/front-servers.md"
HOST = "hpc.example.org"


def read_sample(language: str, variant: str) -> str:
    """Return a sample of the page: ``toml``, ``nginx`` or ``caddyfile``; ``wildcard`` or ``port``."""
    found = re.findall(rf"^```{language} {variant}\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(found) == 1, f"{PAGE} has {len(found)} samples {language} {variant}"
    return str(found[0])


def replace_all(text: str, changes: dict[str, str]) -> str:
    """Return ``text`` with each of ``changes``, which must be there."""
    for old, new in changes.items():
        assert old in text, f"{old!r} is not in the sample"
        text = text.replace(old, new)
    return text


def read_settings(variant: str, port: int, apps_port: int) -> dict[str, Any]:
    """Return the sample's settings of Portico; what browsers see is on ``port`` and ``apps_port`` instead."""
    settings = tomllib.loads(read_sample("toml", variant))
    for name in ("port", "apps_port"):
        settings.pop(name, None)  # the test's own, by option
    assert settings["public_url"] == f"https://{HOST}"
    settings["public_url"] += f":{port}"
    if "apps_url" in settings:
        assert settings["apps_url"] == f"https://{HOST}:8443"
        settings["apps_url"] = f"https://{HOST}:{apps_port}"
    return settings


def make_pair(folder: Path) -> tuple[Path, Path]:
    """Make a certificate for all of the samples' names; return it and its key.

    Raises:
        FileNotFoundError: openssl is not installed.
    """
    certificate, key = folder / "hpc.pem", folder / "hpc.key"
    argv = [
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
        "-days", "2", "-subj", f"/CN={HOST}", "-addext", f"subjectAltName=DNS:{HOST},DNS:*.apps.example.org",
        "-out", str(certificate), "-keyout", str(key),
    ]  # fmt: skip
    subprocess.run(argv, check=True, capture_output=True)
    return certificate, key


def find_program(name: str) -> str:
    """Return the path of a front server's program; empty where there is none."""
    for folder in ("usr/sbin", "usr/bin"):
        if (path := INSTALL_DIR / "servers" / folder / name).exists():
            return str(path)
    return shutil.which(name, path="/usr/sbin:/usr/bin:/usr/local/bin") or ""


@contextlib.contextmanager
def running_server(argv: list[str], port: int, folder: Path, env: dict[str, str]) -> Iterator[None]:
    """Run a server until the block ends; it listens on ``port`` when the block begins."""
    with open(folder / "output", "w+") as output:
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=env, cwd=folder)
        try:

            def listens() -> bool:
                assert process.poll() is None, (folder / "output").read_text()
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                    return True
                return False

            wait_until(listens, 20, f"{argv[0]} on port {port}")
            yield
        finally:
            process.terminate()
            try:
                process.wait(1)
            except subprocess.TimeoutExpired:  # Caddy waits for open connections
                process.kill()
                process.wait()


def run_nginx(
    program: str, variant: str, portico: RunningPortico, ports: tuple[int, int], pair: tuple[Path, Path], folder: Path
) -> contextlib.AbstractContextManager[None]:
    """Run nginx with the sample."""
    changes = {
        "listen 443 ssl": f"listen 127.0.0.1:{ports[0]} ssl",
        "127.0.0.1:8000": f"127.0.0.1:{portico.port}",
        "/etc/ssl/hpc.pem": str(pair[0]),
        "/etc/ssl/private/hpc.key": str(pair[1]),
    }
    if variant == "port":
        changes |= {
            "listen 8443 ssl": f"listen 127.0.0.1:{ports[1]} ssl",
            "127.0.0.1:8001": f"127.0.0.1:{portico.apps_port}",
        }
    sample = replace_all(read_sample("nginx", variant), changes)
    temporary = "".join(
        f"{name}_temp_path {folder}/{name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off;\npid {folder}/pid;\nerror_log {folder}/error.log;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{temporary}{sample}}}\n"
    )
    argv = [program, "-p", str(folder), "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf"]
    return running_server(argv, ports[0], folder, {})


def run_caddy(
    program: str, variant: str, portico: RunningPortico, ports: tuple[int, int], pair: tuple[Path, Path], folder: Path
) -> contextlib.AbstractContextManager[None]:
    """Run Caddy with the sample; it makes the portal's certificate itself, by an authority of its own."""
    changes = {"127.0.0.1:8000": f"127.0.0.1:{portico.port}"}
    if variant == "port":
        changes |= {f"{HOST}:8443": f"{HOST}:{ports[1]}", "127.0.0.1:8001": f"127.0.0.1:{portico.apps_port}"}
    else:
        changes |= {"/etc/ssl/apps.pem": str(pair[0]), "/etc/ssl/private/apps.key": str(pair[1])}
    sample = replace_all(read_sample("caddyfile", variant), changes)
    (folder / "Caddyfile").write_text(
        f"{{\n\tadmin off\n\thttps_port {ports[0]}\n\tauto_https disable_redirects\n\tdefault_bind 127.0.0.1\n"
        f"\tlocal_certs\n\tskip_install_trust\n}}\n{sample}"
    )
    argv = [program, "run", "--config", f"{folder}/Caddyfile", "--adapter", "caddyfile"]
    env = {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    return running_server(argv, ports[0], folder, env)


@contextlib.contextmanager
def running_front(
    name: str, variant: str, portico: RunningPortico, ports: tuple[int, int], pair: tuple[Path, Path]
) -> Iterator[None]:
    """Run ``nginx`` or ``caddy`` before a Portico while the block runs."""
    run = {"nginx": run_nginx, "caddy": run_caddy}[name]
    with tempfile.TemporaryDirectory(prefix="pt-front-") as folder:
        Path(folder).chmod(0o755)
        with run(find_program(name), variant, portico, ports, pair, Path(folder)):
            yield


class DistantPerson(Person):
    """A person whose connections come from an address of their own, by HTTPS."""

    def __init__(self, url: str, address: str) -> None:
        super().__init__(url)
        self.address = address
        self.tls = ssl.create_default_context()
        self.tls.check_hostname, self.tls.verify_mode = False, ssl.CERT_NONE  # test authorities of two kinds
        self.http.close()
        self.http = self.make_client(url)

    def make_client(self, url: str, **headers: str) -> httpx.Client:
        """Return a browser for another origin."""
        transport = httpx.HTTPTransport(verify=self.tls, local_address=self.address)
        return httpx.Client(base_url=url, headers={"Origin": url} | headers, timeout=30, transport=transport)

    def open_stream(self, path: str, **headers: str) -> websockets.sync.client.ClientConnection:
        """Open a WebSocket on the portal as its pages do."""
        return self.open_socket(self.url, path, self.http, ["binary"], **headers)

    def open_socket(
        self, url: str, path: str, http: httpx.Client, subprotocols: list[str], **headers: str
    ) -> websockets.sync.client.ClientConnection:
        """Open a WebSocket with the cookies of a browser."""
        parts = urlsplit(url)
        cookie = "; ".join(f"{name}={value}" for name, value in http.cookies.items())
        connecting = websockets.sync.client.connect(
            url.replace("http", "ws", 1) + path,
            sock=socket.create_connection((parts.hostname, parts.port), 20, (self.address, 0)),
            ssl=self.tls,
            additional_headers={"Cookie": cookie, **headers},
            origin=url,  # type: ignore[arg-type]
            subprotocols=subprotocols or None,  # type: ignore[arg-type]
            compression=None,
            max_size=None,
            open_timeout=20,
        )
        return self._streams.enter_context(connecting)
