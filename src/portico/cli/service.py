"""``portico up``, ``status``, ``reload``, ``stop``, ``backup`` and ``admin-link``: Portico itself, on this machine."""

from __future__ import annotations

import asyncio
import os
import pwd
import signal
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from portico.cli import show
from portico.cli.client import Client, Target
from portico.cli.place import Lock
from portico.cli.serve import Service
from portico.cli.show import AsJson
from portico.config import Config, load_config
from portico.errors import Invalid, NotFound, Unavailable, from_wire
from portico.model import USER_NAME

CONFIG_FILE = "/etc/portico/portico.toml"
STOP_TIMEOUT_S = 30.0
RELOAD_TIMEOUT_S = 120.0

StateDir = Annotated[str | None, typer.Option("--state-dir", help="Folder of the database and logs.")]
RunDir = Annotated[str | None, typer.Option("--run-dir", help="Folder of the sockets.")]


def up(
    admin: Annotated[
        str | None, typer.Option(metavar="NAME", help="Who may manage users; gets a one-time link.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port of the portal (8000).", min=1, max=65535)] = None,
    host: Annotated[str | None, typer.Option(help="Name by which browsers reach Portico (localhost).")] = None,
    bind: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    apps_port: Annotated[
        int | None, typer.Option(help="Port of the apps' own origin (port + 1).", min=1, max=65535)
    ] = None,
    apps_domain: Annotated[str | None, typer.Option(help="Wildcard domain for apps.")] = None,
    ssh_port: Annotated[int | None, typer.Option(help="Port of sshd (2222); 0 for none.", min=0, max=65535)] = None,
    tls_certificate: Annotated[str | None, typer.Option(help="PEM file with the certificate chain.")] = None,
    tls_key: Annotated[str | None, typer.Option(help="PEM file with its private key.")] = None,
    public_url: Annotated[str | None, typer.Option(help="The portal's URL where a front server changes it.")] = None,
    gateways: Annotated[int | None, typer.Option(help="Gateway processes side by side (1).", min=1)] = None,
    config: Annotated[Path | None, typer.Option(help=f"Settings (TOML); {CONFIG_FILE} where it exists.")] = None,
    state_dir: StateDir = None,
    run_dir: RunDir = None,
    install_dir: Annotated[str | None, typer.Option(help="Folder of what was installed.")] = None,
    instance: Annotated[
        str | None, typer.Option(help="Name of this installation, where a machine has several.")
    ] = None,
    no_install: Annotated[
        bool, typer.Option("--no-install", help="Start what is installed, look for nothing new.")
    ] = False,
) -> None:
    """Start Portico and keep it running; Ctrl-C stops it, and no session with it.

    From a clone, ./portico up installs what is missing first.
    """
    if config is not None and not config.exists():
        raise Invalid(f"There is no file {config}.", hint="Leave --config away for defaults.")
    path = (config or Path(CONFIG_FILE)).absolute()

    def read_config() -> Config:
        return load_config(
            path, host=host, bind=bind, port=port, apps_port=apps_port, apps_domain=apps_domain, gateways=gateways,
            ssh_port=ssh_port,
            tls_certificate=_absolute(tls_certificate), tls_key=_absolute(tls_key), public_url=public_url,
            state_dir=_absolute(state_dir), run_dir=_absolute(run_dir), install_dir=_absolute(install_dir),
            instance=instance,
        )  # fmt: skip

    name = choose_admin(read_config(), admin)
    if not asyncio.run(Service(read_config, name).run()):
        raise SystemExit(1)


def _absolute(path: str | None) -> str | None:
    return os.path.abspath(path) if path else path


def choose_admin(config: Config, wanted: str | None) -> str:
    """Return the admin's name: the one who starts Portico in single-user mode, else the wanted one or ``admin``.

    Raises:
        Invalid: It can't be a user's name.

    """
    own = pwd.getpwuid(os.getuid()).pw_name
    name = (wanted or "admin") if config.multi_user else own
    if not config.multi_user and wanted not in (None, own):
        raise Invalid(
            f"Without root Portico serves you alone: the admin is {own}, not {wanted}.",
            hint="Start it as root for several users.",
        )
    if not USER_NAME.match(name) or name == "root":
        raise Invalid(
            f"{name!r} can't be a user's name.", why="Lower-case letters, digits, _ and -, at most 32; not root."
        )
    return name


def status(context: typer.Context, run_dir: RunDir = None, as_json: AsJson = False) -> None:
    """Show whether Portico runs here; exit status 1 if not."""
    facts = _read_facts(context, run_dir)
    show.show(
        facts, as_json,
        {"Address": "url", "Supervisor": "pid", "Processes": "processes", "State folder": "state_dir",
         "Run folder": "run_dir", "Since": "since", "Ready": "ready", "Draining": "draining"},
    )  # fmt: skip


def reload(context: typer.Context, run_dir: RunDir = None) -> None:
    """Read settings and the TLS certificate again. New gateways take over; open desktops and terminals go on."""
    facts = _read_facts(context, run_dir)
    lock = Lock(_locate(context, run_dir))
    if "reloads" not in facts:  # one of an earlier version, which SIGHUP would end
        raise Unavailable("The Portico that runs is older than this command.", hint="portico stop, then portico up")
    _signal(facts, signal.SIGHUP, "reload")
    deadline = time.monotonic() + RELOAD_TIMEOUT_S
    while (now := lock.read()) and now["reloads"] == facts["reloads"]:
        if time.monotonic() > deadline:
            raise Unavailable(
                f"Portico has not reloaded within {RELOAD_TIMEOUT_S:g} s.", hint=f"Logs: {facts['state_dir']}/log"
            )
        time.sleep(0.05)
    if now is None:
        raise Unavailable("Portico has stopped instead of reloading.", hint=f"Logs: {facts['state_dir']}/log")
    if error := now.get("reload_error"):
        raise from_wire(error)
    show.tell(f"Reloaded. Earlier gateways that finish what they have: {len(now['draining'])} (`portico status`).")
    if kept := now.get("reload_kept"):
        show.tell(f"Only a new start changes {', '.join(kept)}.")


def stop(context: typer.Context, run_dir: RunDir = None) -> None:
    """Stop Portico. Sessions go on, and are found again at the next start."""
    facts = _read_facts(context, run_dir)
    lock = Lock(_locate(context, run_dir))
    _signal(facts, signal.SIGTERM, "stop")
    deadline = time.monotonic() + STOP_TIMEOUT_S
    while (now := lock.read()) and now["pid"] == facts["pid"]:
        if time.monotonic() > deadline:
            raise Unavailable(
                f"Portico has not stopped within {STOP_TIMEOUT_S:g} s.",
                hint=f"Its supervisor is process {facts['pid']}.",
            )
        time.sleep(0.05)
    show.tell("Portico has stopped. Sessions go on.")


def backup(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="Where to write the copy; must not exist.")],
    state_dir: StateDir = None,
) -> None:
    """Write a consistent copy of the database, while Portico runs or not.

    To go back to it: stop, copy it over portico.db, remove portico.db-wal and portico.db-shm, start.
    """
    from portico.cli.backup import write_backup

    location = _locate(context, None)
    running = Lock(location).read()
    folder = state_dir or (running or {}).get("state_dir") or location.state_dir
    size = write_backup(Path(folder) / "portico.db", file)
    show.tell(f"Wrote {file} ({size / 1e6:.2g} MB).")


def admin_link(context: typer.Context, name: Annotated[str, typer.Argument(help="The admin's name.")]) -> None:
    """Print a new one-time link for an admin who can't sign in any more (for root, on the machine)."""
    client = Client(context.obj)
    try:
        found = client.ask("GET", f"/users/{name}")
    except NotFound:
        found = client.ask("POST", "/users", {"name": name, "role": "admin"})
        show.show({"link": found.get("link", "")}, False, {"": "link"})
        return
    if found.get("role") != "admin":
        raise Invalid(f"{name} is not an admin.", hint=f"portico user role {name} admin, or: portico user link {name}")
    show.show({"link": client.ask("POST", f"/users/{name}/code").get("link", "")}, False, {"": "link"})


def _signal(facts: dict[str, Any], number: signal.Signals, what: str) -> None:
    try:
        os.kill(facts["pid"], number)
    except PermissionError as error:
        raise Unavailable(
            f"You may not {what} Portico.", why=f"Process {facts['pid']} is not yours.", hint="Ask root."
        ) from error


def _locate(context: typer.Context, run_dir: str | None) -> Config:
    target: Target = context.obj
    return load_config(None, run_dir=run_dir or target.run_dir or None)


def _read_facts(context: typer.Context, run_dir: str | None) -> dict[str, Any]:
    location = _locate(context, run_dir)
    facts = Lock(location).read()
    if facts is None:
        raise Unavailable(
            "Portico is not running.", why=f"Nobody holds {location.run_dir}/up.lock.", hint="Start it: portico up"
        )
    return facts
