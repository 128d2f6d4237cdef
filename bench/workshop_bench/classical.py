"""The classical set-up: a websockify for each seat, behind one nginx that finds the seat's by the token in the path."""

from __future__ import annotations

import contextlib
import secrets
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gateway_bench.processes import Running, find_free_port, started, wait_for

from workshop_bench.connection import Way
from workshop_bench.desktops import Seat

_NGINX = """daemon off;
worker_processes auto;
pid {folder}/pid;
error_log {folder}/nginx-errors;
events {{ worker_connections 4096; }}
http {{
access_log off;
{temporary}
types {{ text/html html; text/javascript js; }}
server {{
location /novnc/ {{ alias {novnc}/; }}
location /page/ {{ alias {folder}/page/; }}
listen 127.0.0.1:{port};
{locations}
}}
}}
"""
_LOCATION = """location = /{token}/websockify {{
proxy_pass http://127.0.0.1:{port};
proxy_http_version 1.1;
proxy_set_header Upgrade $http_upgrade;
proxy_set_header Connection "upgrade";
proxy_buffering off;
proxy_read_timeout 1h;
}}"""

_PAGE = """<!doctype html><title>noVNC</title><body style="margin:0;height:100vh;display:flex;flex-direction:column">
<span data-link>connecting</span><div class="screen" style="flex:1;min-height:0"></div>
<script type="module">
import RFB from "/novnc/core/rfb.js";
const said = document.querySelector("[data-link]");
function connect() {{
  const screen = document.querySelector(".screen");
  screen.replaceChildren();
  const url = `ws://${{location.host}}/{token}/websockify`;
  const rfb = new RFB(screen, url, {{ shared: true, wsProtocols: ["binary"] }});
  rfb.scaleViewport = true;
  rfb.addEventListener("connect", () => {{ said.className = "up"; rfb.focus(); }});
  rfb.addEventListener("disconnect", () => {{ said.className = ""; setTimeout(connect, 1000); }});
}}
connect();
</script>
"""
"""What such a set-up serves beside its sockets: noVNC with its defaults, from the same nginx."""


@dataclass
class Classical:
    """What is running: its processes, and each seat's way."""

    running: list[Running]
    ways: list[Way]


@contextlib.contextmanager
def classical_started(
    seats: list[Seat], browsers: int, tools: dict[str, list[str]], folder: Path, novnc: Path
) -> Iterator[Classical]:
    """Run it until the block ends.

    Args:
        seats: With desktops.
        browsers: How many of them have a real one.
        tools: Argv of ``nginx`` and ``websockify``.
        folder: For files, the run's own.
        novnc: The same noVNC as Portico's.
    """
    with contextlib.ExitStack() as stack:
        for shown in (folder, folder / "page"):  # nginx's workers are nobody
            shown.mkdir(exist_ok=True)
            shown.chmod(0o711)
        running, ways, locations, port = [], [], [], find_free_port()
        for seat in seats:
            own, token = find_free_port(), secrets.token_hex(16)
            argv = [*tools["websockify"], f"--unix-target={seat.socket}", f"127.0.0.1:{own}"]
            log = folder / f"websockify-{seat.number}.log"
            running.append(stack.enter_context(started(argv, log, with_children=True)))
            locations.append(_LOCATION.format(token=token, port=own))
            page = f"http://localhost:{port}/page/{token}.html" if seat.number < browsers else ""
            if page:
                (folder / f"page/{token}.html").write_text(_PAGE.format(token=token))
            ways.append(Way(port, f"/{token}/websockify", page=page))
        names = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        temporary = "".join(f"{name}_temp_path {folder}/{name};" for name in names)
        conf = folder / "nginx.conf"
        conf.write_text(
            _NGINX.format(folder=folder, port=port, temporary=temporary, novnc=novnc, locations="\n".join(locations))
        )
        argv = [*tools["nginx"], "-p", str(folder), "-e", f"{folder}/nginx-errors", "-c", str(conf)]
        nginx = stack.enter_context(started(argv, folder / "nginx.log", with_children=True))
        running.append(nginx)
        wait_for(lambda: socket.create_connection(("127.0.0.1", port), 5).close(), "nginx", nginx)
        yield Classical(running, ways)
