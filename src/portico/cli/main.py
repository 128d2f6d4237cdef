"""The ``portico`` command: its groups, the options common to all, and how it fails.

Exit status: 0 done, 1 an error that was told on stderr, 2 wrong usage, 130 interrupted.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer

from portico.cli import demo, desktop, events, jobs, keys, people, service, show, ssh, ssh_config, work
from portico.cli.client import Target, check_url

app = typer.Typer(
    no_args_is_help=True,
    help="The front door of an HPC system: sign in once, and be at work.",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(people.user, name="user")
app.add_typer(work.session, name="session")
app.add_typer(work.app, name="app")
app.add_typer(people.token, name="token")
app.add_typer(keys.keys, name="keys")
app.add_typer(jobs.job, name="job")
app.add_typer(demo.cluster, name="cluster")
app.add_typer(desktop.desktop, name="desktop")
ssh.ssh.command("config")(ssh_config.config)
ssh.ssh.command("drop-in")(ssh_config.drop_in)
app.add_typer(ssh.ssh, name="ssh")
app.add_typer(events.event, name="event")
app.command("audit")(people.read_audit)
app.command("whoami")(people.whoami)
app.command("login")(people.login)
app.command("logout")(people.logout)
app.command("up")(service.up)
app.command("status")(service.status)
app.command("reload")(service.reload)
app.command("stop")(service.stop)
app.command("backup")(service.backup)
app.command("admin-link")(service.admin_link)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"portico {version('portico')}")
        raise typer.Exit


@app.callback()
def choose_target(
    context: typer.Context,
    url: Annotated[
        str, typer.Option("--url", envvar="PORTICO_URL", help="Another machine's Portico; see `portico login`.")
    ] = "",
    run_dir: Annotated[
        str, typer.Option("--run-dir", envvar="PORTICO_RUN_DIR", help="Run folder of a Portico of this machine.")
    ] = "",
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Choose which Portico is meant, before any command."""
    context.obj = Target(url=check_url(url) if url else "", run_dir=run_dir)


def run() -> None:
    """Run the command line."""
    with show.errors_told():
        app()
