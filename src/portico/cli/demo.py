"""``portico cluster demo``: a real Slurm on this machine, for trying Portico with one."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path
from typing import Annotated

import typer

from portico.cli import packages, show
from portico.cli.show import AsJson
from portico.demo import DemoCluster
from portico.demo.cluster import DEFAULT_FOLDER
from portico.errors import Unavailable

cluster = typer.Typer(no_args_is_help=True, help="Clusters besides this machine.")
demo = typer.Typer(no_args_is_help=True, help="A real Slurm on this machine, for trying.")
cluster.add_typer(demo, name="demo")

Folder = Annotated[Path, typer.Option(help="Where all of it is; a cluster for each folder.")]


@demo.command("up")
def up(
    nodes: Annotated[int, typer.Option(min=1, max=16, help="Nodes that are always there.")] = 3,
    elastic: Annotated[int, typer.Option(min=0, max=16, help="Nodes that boot on demand.")] = 3,
    folder: Folder = DEFAULT_FOLDER,
    as_json: AsJson = False,
) -> None:
    """Start it: controller, accounting, nodes. Installs Debian's packages where they are missing."""
    packages.install([packages.SLURM], _run, show.tell)
    prefix = "pdemo" if folder == DEFAULT_FOLDER else f"p{hashlib.sha256(bytes(folder)).hexdigest()[:5]}"
    running = DemoCluster(folder, prefix=prefix, nodes=nodes, elastic=elastic, tell=lambda step: show.tell(f"… {step}"))
    running.up()
    facts = running.describe()
    if as_json:
        show.show(facts, True, {})
        return
    show.tell("")
    show.tell(f"The demo cluster is up. Look at it: SLURM_CONF={running.conf} sinfo")
    show.tell("For Portico, at the end of /etc/portico/portico.toml:")
    show.tell("")
    typer.echo(
        f'[clusters.demo]\ntitle = "Demo cluster"\nconf = "{running.conf}"\nrelay_host = "{running.host_address}"'
    )
    show.tell("")
    show.tell("Who may submit jobs: portico cluster demo user NAME")


@demo.command("down")
def down(folder: Folder = DEFAULT_FOLDER) -> None:
    """End it and remove all of it, whatever is left of it."""
    running = DemoCluster(folder)
    if not running.exists:
        show.tell("There is no demo cluster.")
        return
    running.down()
    show.tell("The demo cluster is gone.")


@demo.command("status")
def status(folder: Folder = DEFAULT_FOLDER, as_json: AsJson = False) -> None:
    """Say whether it is up, and what runs."""
    columns = {"State": "state", "Folder": "folder", "SLURM_CONF": "conf", "Nodes": "nodes", "Elastic": "elastic"}
    show.show(DemoCluster(folder).describe(), as_json, columns)


@demo.command("user")
def add_user(name: Annotated[str, typer.Argument(help="A POSIX account.")], folder: Folder = DEFAULT_FOLDER) -> None:
    """Let a user submit jobs there, charged to the account demo."""
    running = DemoCluster(folder)
    if not running.exists:
        raise Unavailable("There is no demo cluster.", hint="Start it: portico cluster demo up")
    running.add_user(name)
    show.tell(f"{name} may submit jobs.")


def _run(what: str, argv: list[str], env: dict[str, str]) -> None:
    show.tell(f"… {what}")
    done = subprocess.run(argv, env={**os.environ, **env}, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise Unavailable(f"{what.capitalize()} could not be had.", why="\n".join(lines[-5:]))
