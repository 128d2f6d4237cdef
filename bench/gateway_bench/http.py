"""Part ``http``: plain requests to an app on a Unix socket, keep-alive, by wrk; one worker or thread for each proxy."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from gateway_bench import client
from gateway_bench.bridges import PORTICO, Place, gateway_started, portal_started
from gateway_bench.figures import Figure, find_spread, interleave, pick
from gateway_bench.processes import Running, find_free_port, started, wait_for
from gateway_bench.run import Run

DIRECT: Final = "none"
NGINX: Final = "nginx"
CHP: Final = "configurable-http-proxy"
CONNECTIONS: Final = 32
BODIES: Final = {"small": 128, "large": 64 * 1024}

_CHANGING: Final = """
local n = 0
request = function()
  n = n + 1
  wrk.headers["X-Request"] = tostring(n)
  return wrk.format(nil, wrk.path .. "?n=" .. n)
end
"""
"""What a proxy made of a connection's last request is of no use for the next one then."""

_BROWSER: Final = """
local n = 0
wrk.headers["User-Agent"] = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140"
wrk.headers["Accept"] = "*/*"
wrk.headers["Accept-Encoding"] = "gzip, deflate, br, zstd"
wrk.headers["Accept-Language"] = "en-US,en;q=0.9"
wrk.headers["Connection"] = "keep-alive"
wrk.headers["Cookie"] = "_xsrf=2|0123abcd|0123456789abcdef0123456789abcdef; username-localhost-8888=2|1:0|10:17"
wrk.headers["Referer"] = "http://localhost:8888/s/site/lab/tree/notebook.ipynb"
wrk.headers["Sec-Fetch-Dest"] = "empty"
wrk.headers["Sec-Fetch-Mode"] = "cors"
wrk.headers["Sec-Fetch-Site"] = "same-origin"
wrk.headers["X-XSRFToken"] = "2|0123abcd|0123456789abcdef0123456789abcdef|1700000000"
request = function()
  n = n + 1
  wrk.headers["If-None-Match"] = '"' .. n .. '"'
  return wrk.format(nil, wrk.path .. "?" .. n)
end
"""
"""What Chromium says for JupyterLab's pages: thirteen fields, of which one is new each time."""
_UNITS: Final = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 6e4}
_NGINX: Final = (
    "daemon off;\nworker_processes 1;\npid {folder}/{name}.pid;\nerror_log stderr;\n{user}"
    "events {{ worker_connections 1024; }}\nhttp {{\n access_log off;\n keepalive_requests 100000000;\n"
    " client_body_temp_path {folder}/body;\n proxy_temp_path {folder}/proxy;\n fastcgi_temp_path {folder}/fastcgi;\n"
    " uwsgi_temp_path {folder}/uwsgi;\n scgi_temp_path {folder}/scgi;\n{rest}}}\n"
)


@dataclass(frozen=True)
class Proxy:
    """One way to the site."""

    name: str
    url: str
    running: Running


class Load(NamedTuple):
    """One round of one proxy."""

    per_s: float
    p50_ms: float
    p99_ms: float
    busy: float


def parse_wrk(text: str) -> tuple[float, float, float]:
    """Return requests/s and the latencies' p50 and p99 in milliseconds.

    Raises:
        ValueError: Not every request was answered well; the text tells more.
    """
    if "Non-2xx" in text or "Socket errors" in text:
        raise ValueError(text)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    latencies = [re.search(rf"\s{percent}%\s+([\d.]+)([a-z]+)", text) for percent in (50, 99)]
    if not rate or not all(latencies):
        raise ValueError(text)
    p50, p99 = (float(found[1]) * _UNITS[found[2]] for found in latencies if found)
    return float(rate[1]), p50, p99


def measure_load(wrk: str, proxy: Proxy, body: str, seconds: int, script: Path | None = None) -> Load:
    """Let wrk ask for so many seconds."""
    cpu_s = proxy.running.read_cpu_s()
    more = ["-s", str(script)] if script else []
    done = subprocess.run(
        [wrk, "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency", *more, proxy.url + body],
        capture_output=True, text=True, timeout=seconds + 30, check=True,
    )  # fmt: skip
    return Load(*parse_wrk(done.stdout), (proxy.running.read_cpu_s() - cpu_s) / seconds)


def _write_nginx(place: Place, name: str, rest: str) -> Path:
    config = place.folder / f"{name}.conf"
    user = "user root;\n" if os.geteuid() == 0 else ""
    config.write_text(_NGINX.format(folder=place.folder, name=name, user=user, rest=rest))
    return config


@contextlib.contextmanager
def site_started(place: Place) -> Iterator[tuple[str, Proxy]]:
    """Run the app: an nginx with two files, on a Unix socket (its path is returned) and on TCP."""
    root, path, port = place.folder / "www", str(place.folder / "site.sock"), find_free_port()
    (root / "s/site").mkdir(parents=True)
    for name, size in BODIES.items():
        (root / "s/site" / name).write_bytes(b"x" * size)
    rest = (
        " sendfile on;\n open_file_cache max=10;\n"
        f" server {{ listen unix:{path}; listen 127.0.0.1:{port}; root {root}; }}\n"
    )
    config, log = _write_nginx(place, "site", rest), place.folder / "site.log"
    with started([*place.tools["nginx"], "-c", str(config)], log, place.cores.load, with_children=True) as running:
        wait_for(lambda: client.connect(path).close(), "the site", running)
        yield path, Proxy(DIRECT, f"http://localhost:{port}/s/site/", running)


@contextlib.contextmanager
def nginx_started(place: Place, site: str) -> Iterator[list[Proxy]]:
    """Run nginx as a proxy, one worker, with connections to the site kept alive."""
    port, files = find_free_port(), place.certificate
    rest = (
        f" upstream app {{ server unix:{site}; keepalive 64; keepalive_requests 100000000; }}\n"
        f" ssl_certificate {files.certificate};\n ssl_certificate_key {files.key};\n"
        f" server {{\n  listen 127.0.0.1:{port};\n  listen 127.0.0.1:{port + 1} ssl;\n"
        '  location / { proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection "";'
        " proxy_set_header Host $http_host; proxy_set_header X-Forwarded-For $remote_addr; }\n }\n"
    )
    config, log = _write_nginx(place, "proxy", rest), place.folder / "proxy.log"
    with started([*place.tools["nginx"], "-c", str(config)], log, place.cores.bridge, with_children=True) as running:
        wait_for(lambda: client.connect(("127.0.0.1", port)).close(), NGINX, running)
        yield [
            Proxy(NGINX, f"http://localhost:{port}/s/site/", running),
            Proxy(NGINX, f"https://localhost:{port + 1}/s/site/", running),
        ]


@contextlib.contextmanager
def chp_started(place: Place, site: str) -> Iterator[list[Proxy]]:
    """Run configurable-http-proxy, JupyterHub's default, once plain and once with TLS.

    It reaches the site by TCP, as JupyterHub has it: to a Unix socket it keeps no connection and is slower.
    """
    tool, files = place.tools[CHP], place.certificate
    proxies = []
    with contextlib.ExitStack() as stack:
        for scheme, more in (
            ("http", []),
            ("https", ["--ssl-cert", str(files.certificate), "--ssl-key", str(files.key)]),
        ):
            port = find_free_port()
            argv = [*tool, "--ip=127.0.0.1", f"--port={port}", "--api-ip=127.0.0.1", f"--api-port={port + 1}",
                    f"--default-target={site}", "--log-level=error", *more]  # fmt: skip
            log = place.folder / f"chp-{scheme}.log"
            running = stack.enter_context(started(argv, log, place.cores.bridge, {"CONFIGPROXY_AUTH_TOKEN": "bench"}))
            wait_for(lambda: client.connect(("127.0.0.1", port)).close(), CHP, running)  # noqa: B023
            proxies.append(Proxy(CHP, f"{scheme}://localhost:{port}/s/site/", running))
        yield proxies


@contextlib.contextmanager
def portico_started(place: Place, site: str) -> Iterator[list[Proxy]]:
    """Run Portico's gateway, once plain and once with TLS; a decision of the portal is kept, so it is asked once."""
    with (
        portal_started(place, site),
        gateway_started(place) as (port, plain),
        gateway_started(place, tls=True) as (tls_port, tls),
    ):
        yield [
            Proxy(PORTICO, f"http://localhost:{port + 1}/s/site/", plain),
            Proxy(PORTICO, f"https://localhost:{tls_port + 1}/s/site/", tls),
        ]


def measure(run: Run) -> list[Figure]:
    """Measure all proxies, interleaved."""
    place = run.place
    if "wrk" in place.missing or "nginx" in place.missing:
        run.notes.append("http: left out, for it needs wrk and nginx.")
        return []
    rounds, seconds = (2, 1) if run.quick else (7, 2)
    figures = []
    with site_started(place) as (site, direct), contextlib.ExitStack() as stack:
        proxies = [direct, *stack.enter_context(nginx_started(place, site))]
        if CHP not in place.missing:
            tcp = direct.url.removesuffix("/s/site/").replace("localhost", "127.0.0.1")
            proxies += stack.enter_context(chp_started(place, tcp))
        proxies += stack.enter_context(portico_started(place, site))
        wrk = place.tools["wrk"][0]
        changing, browser = place.folder / "changing.lua", place.folder / "browser.lua"
        changing.write_text(_CHANGING)
        browser.write_text(_BROWSER)
        for body, scheme, kind, script in (
            ("small", "http", f"body of {BODIES['small']} bytes", None),
            ("small", "http", f"body of {BODIES['small']} bytes, another head each time", changing),
            ("small", "http", f"body of {BODIES['small']} bytes, a browser's head", browser),
            ("large", "http", "body of 64 KiB", None),
            ("small", "https", f"TLS, body of {BODIES['small']} bytes", None),
            ("large", "https", "TLS, body of 64 KiB", None),
        ):
            peers = [one for one in proxies if one.url.startswith(f"{scheme}:")]
            for one in peers if body == "small" else ():
                wait_for(lambda: _warm(wrk, one, body), one.name, one.running)  # noqa: B023
            results = interleave(
                peers,
                rounds,
                lambda one: measure_load(wrk, one, body, seconds, script),  # noqa: B023
                lambda one: one.name,
            )
            target = {CHP: 3.0} if (body, scheme) == ("small", "http") else {}
            figures += [
                Figure("http", kind, "requests/s", pick(results, lambda one: one.per_s), True, target),
                Figure("http", f"{kind}, p50", "ms", pick(results, lambda one: one.p50_ms), digits=2),
                Figure("http", f"{kind}, p99", "ms", pick(results, lambda one: one.p99_ms), digits=2),
            ]
            busy = {
                name: find_spread([one.busy for one in found]).median
                for name, found in results.items()
                if name != DIRECT
            }
            told = ", ".join(f"{name} {share:.0%}" for name, share in busy.items())
            run.notes.append(
                f"http, {kind}: share of its core that the proxy used (100%: it was the bottleneck): {told}."
            )
    return figures


def _warm(wrk: str, proxy: Proxy, body: str) -> None:
    try:
        measure_load(wrk, proxy, body, 1)
    except (ValueError, subprocess.CalledProcessError) as error:
        raise OSError(str(error)) from error
