"""``portico job`` and what is known of clusters."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Annotated, Any

import typer

from portico.cli import show
from portico.cli.client import Client
from portico.cli.demo import cluster
from portico.cli.show import AsJson
from portico.errors import Invalid, NotFound

job = typer.Typer(no_args_is_help=True, help="Batch jobs on a cluster.")

Id = Annotated[str, typer.Argument(help="The job's id, as `portico job list` shows.", metavar="JOB")]
On = Annotated[
    str,
    typer.Option("--cluster", "-M", help="Which cluster; by default this machine only where there is no other."),
]

LIST_COLUMNS = {
    "Id": "shown_id", "Name": "name", "User": "user_name", "State": "word", "Partition": "partition", "Cores": "cores",
    "Waits for": "waiting_for", "Nodes": "node_names", "Submitted": "submitted",
}  # fmt: skip
ONE_COLUMNS = LIST_COLUMNS | {
    "Account": "account", "QOS": "qos", "Started": "started", "Ends": "ends", "Limit (s)": "limit_s",
    "Used (s)": "used_s", "Core-hours": "core_hours", "At the limit": "core_hours_at_limit", "Reason": "reason",
    "Detail": "detail", "Can": "actions",
}  # fmt: skip
HISTORY_COLUMNS = {
    "Id": "shown_id", "Name": "name", "State": "word", "Partition": "partition", "Cores": "cores",
    "Used (s)": "used_s", "Core-hours": "core_hours", "Ended": "ends",
}  # fmt: skip
CLUSTER_COLUMNS = {"Name": "name", "Title": "title", "Kind": "kind", "Takes jobs": "jobs"}
NODE_COLUMNS = {
    "Name": "name", "State": "word", "Cores": "cores", "Held": "cores_held", "Memory": "memory_bytes",
    "Load": "load", "Partitions": "partitions", "Why": "why",
}  # fmt: skip
OFFER_COLUMNS = {
    "Partition": "partition", "Accounts": "accounts", "Time (s)": "max_time_s", "Nodes": "max_nodes",
    "Cores a node": "max_cores_per_node", "Memory a node": "max_memory_per_node_bytes", "Devices": "gres",
    "Reservations": "reservations", "Closed": "closed",
}  # fmt: skip
TAIL_S = 2.0


def _find_cluster(client: Client, name: str) -> str:
    """Return the path of a cluster in the API.

    Raises:
        Invalid: No cluster takes jobs.
    """
    if name:
        return f"/clusters/{name}"
    found = [one for one in client.ask("GET", "/clusters") if one["jobs"]]
    if not found:
        raise Invalid("No cluster here takes jobs.", hint="An administrator adds one: docs/configuration.md")
    return f"/clusters/{min(found, key=lambda one: bool(one['kind'] == 'local'))['name']}"


@job.command("list")
def list_jobs(
    context: typer.Context,
    on: On = "",
    everyone: Annotated[bool, typer.Option("--everyone", help="Everybody's (for admins).")] = False,
    state: Annotated[str, typer.Option(help="queued, running or ended.")] = "",
    text: Annotated[str, typer.Option(help="Words that must be in it.")] = "",
    limit: Annotated[int, typer.Option(min=1, max=500, help="How many at most.")] = 100,
    as_json: AsJson = False,
) -> None:
    """List your jobs that wait, run, or ended lately."""
    client = Client(context.obj)
    more: dict[str, Any] = {"everyone": "true" if everyone else None, "state": state or None, "text": text or None}
    data = client.ask("GET", f"{_find_cluster(client, on)}/jobs", limit=str(limit), **more)
    if as_json:
        show.show(data, True, {})
        return
    show.show(data["jobs"], False, LIST_COLUMNS, empty="No jobs. Submit one: portico job submit FILE")
    if data["trouble"]:
        show.tell(f"{data['trouble']['message']} This is as of {data['as_of']}.")


@job.command("show")
def show_job(context: typer.Context, id: Id, on: On = "", as_json: AsJson = False) -> None:
    """Show one job."""
    client = Client(context.obj)
    show.show(client.ask("GET", f"{_find_cluster(client, on)}/jobs/{id}"), as_json, ONE_COLUMNS)


@job.command("submit")
def submit(
    context: typer.Context,
    script: Annotated[str, typer.Argument(help="The script; - for standard input.", metavar="FILE")],
    on: On = "",
    name: Annotated[str, typer.Option(help="The job's name.")] = "",
    partition: Annotated[str, typer.Option("--partition", "-p", help="Partition.")] = "",
    account: Annotated[str, typer.Option("--account", "-A", help="Account to charge.")] = "",
    qos: Annotated[str, typer.Option(help="Quality of service.")] = "",
    nodes: Annotated[int, typer.Option("--nodes", "-N", help="Nodes.")] = 0,
    tasks: Annotated[int, typer.Option("--tasks", "-n", help="Tasks.")] = 0,
    cores: Annotated[float, typer.Option("--cores", "-c", help="Cores for each task.")] = 0,
    memory_gb: Annotated[float, typer.Option("--memory-gb", help="Memory on each node, GB.")] = 0,
    hours: Annotated[float, typer.Option(help="Time limit, hours.")] = 0,
    array: Annotated[str, typer.Option("--array", "-a", help="Task numbers, 1-100%5.")] = "",
    after: Annotated[list[str] | None, typer.Option(help="Begin when this job has succeeded; repeatable.")] = None,
    dependency: Annotated[str, typer.Option("--dependency", "-d", help="As sbatch has it, afterany:12.")] = "",
    gres: Annotated[str, typer.Option(help="Devices, gpu:1.")] = "",
    constraint: Annotated[str, typer.Option("--constraint", "-C", help="Features of nodes.")] = "",
    reservation: Annotated[str, typer.Option(help="Reservation to run in.")] = "",
    folder: Annotated[str, typer.Option("--chdir", "-D", help="Folder to begin in; by default your home.")] = "",
    output: Annotated[str, typer.Option("--output", "-o", help="File for its output.")] = "",
    error: Annotated[str, typer.Option("--error", "-e", help="File for its errors.")] = "",
    hold: Annotated[bool, typer.Option("--hold", help="Hold it until it is released.")] = False,
    notify: Annotated[bool, typer.Option("--notify", help="Tell me, in the portal and by mail, when it ends.")] = False,
    as_json: AsJson = False,
) -> None:
    """Submit a script. What stands here counts for more than the script's own #SBATCH lines."""
    client = Client(context.obj)
    try:
        text = sys.stdin.read() if script == "-" else Path(script).read_text()
    except (OSError, UnicodeDecodeError) as problem:
        raise Invalid(f"The script {script} can't be read.", why=str(problem)) from None
    if after:
        dependency = ",".join([*([dependency] if dependency else []), "afterok:" + ":".join(after)])
    wanted: dict[str, Any] = {
        "script": text, "name": name, "partition": partition, "account": account, "qos": qos, "nodes": nodes,
        "tasks": tasks, "cores": cores, "memory_gb": memory_gb, "hours": hours, "array": array,
        "dependency": dependency, "gres": gres, "constraint": constraint,
        "reservation": reservation, "folder": folder, "output": output,
        "error": error, "held": hold, "notify": notify,
    }  # fmt: skip
    made = client.ask("POST", f"{_find_cluster(client, on)}/jobs", {key: one for key, one in wanted.items() if one})
    _show_submitted(made, as_json)


def _show_submitted(made: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show.show(made, True, {})
    elif made["id"]:
        show.tell("Submitted.")
        typer.echo(made["id"])
    else:
        show.tell("It is kept, and given to the cluster when that answers again: portico job list")


@job.command("again")
def submit_again(
    context: typer.Context,
    id: Id,
    on: On = "",
    name: Annotated[str, typer.Option(help="Another name.")] = "",
    partition: Annotated[str, typer.Option("--partition", "-p", help="Another partition.")] = "",
    nodes: Annotated[int, typer.Option("--nodes", "-N", help="Another number of nodes.")] = 0,
    cores: Annotated[float, typer.Option("--cores", "-c", help="Cores for each task.")] = 0,
    memory_gb: Annotated[float, typer.Option("--memory-gb", help="Memory on each node, GB.")] = 0,
    hours: Annotated[float, typer.Option(help="Another time limit, hours.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Submit a job's script once more, with what it asked for, or with changes."""
    client = Client(context.obj)
    path = _find_cluster(client, on)
    before = client.ask("GET", f"{path}/jobs/{id}")
    wanted: dict[str, Any] = {
        "script": client.ask("GET", f"{path}/jobs/{id}/script")["text"],
        "name": name or ("" if before["name"].startswith("portico-") else before["name"]),
        "partition": partition or before["partition"],
        "account": before["account"],
        "qos": "" if partition else before["qos"],
        "nodes": nodes or before["nodes"],
        "cores": cores,
        "memory_gb": memory_gb,
        "hours": hours or (before["limit_s"] or 0) / 3600,
    }
    _show_submitted(client.ask("POST", f"{path}/jobs", {key: one for key, one in wanted.items() if one}), as_json)


@job.command("tail")
def tail(
    context: typer.Context,
    id: Id,
    on: On = "",
    error: Annotated[bool, typer.Option("--error", help="Its errors instead of its output.")] = False,
    lines: Annotated[int, typer.Option("--lines", "-n", min=1, max=2000, help="How many lines.")] = 40,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on while it runs.")] = False,
) -> None:
    """Print the end of what a job has written."""
    client = Client(context.obj)
    path = f"{_find_cluster(client, on)}/jobs/{id}"

    def read(count: int) -> str:
        return str(client.ask("GET", f"{path}/output", lines=str(count), error="true" if error else None)["text"])

    shown = read(lines)
    typer.echo(shown)
    while follow:
        runs = client.ask("GET", path)["state"] == "running"
        text = read(2000)
        if new := find_new(shown, text):
            typer.echo(new)
        shown = text
        if not runs:
            return
        time.sleep(TAIL_S)


def find_new(before: str, after: str) -> str:
    """Return what is in the end of a file now and was not in the end of it before."""
    last = before[-2000:]
    at = after.rfind(last) if last else 0
    return after[at + len(last) :].lstrip("\n") if at >= 0 else after


@job.command("template")
def print_template(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Which; without one they are listed.")] = "",
    as_json: AsJson = False,
) -> None:
    """Print a script to begin a job with: portico job template serial > job.sh."""
    found = Client(context.obj).ask("GET", "/job-templates")
    if not name:
        show.show(found, as_json, {"Name": "name", "What it is": "title"})
        return
    script = next((one["script"] for one in found if one["name"] == name), None)
    if script is None:
        raise NotFound("There is no such template.", hint="portico job template lists them.")
    typer.echo(script, nl=False)


@job.command("script")
def read_script(context: typer.Context, id: Id, on: On = "") -> None:
    """Print a job's script."""
    client = Client(context.obj)
    typer.echo(client.ask("GET", f"{_find_cluster(client, on)}/jobs/{id}/script")["text"], nl=False)


@job.command("limit")
def change_limit(
    context: typer.Context, id: Id, hours: Annotated[float, typer.Argument(help="Hours.")], on: On = ""
) -> None:
    """Change a job's time limit."""
    client = Client(context.obj)
    client.ask("PATCH", f"{_find_cluster(client, on)}/jobs/{id}", {"hours": hours})
    show.tell("Changed.")


@job.command("history")
def show_history(
    context: typer.Context,
    on: On = "",
    days: Annotated[float, typer.Option(help="How far back.")] = 7,
    as_json: AsJson = False,
) -> None:
    """List your jobs that ended, from the accounting."""
    client = Client(context.obj)
    data = client.ask("GET", f"{_find_cluster(client, on)}/history", days=str(days))
    show.show(data, as_json, HISTORY_COLUMNS, empty="Nothing ended in that time.")


def _add_action(name: str, help: str) -> None:
    def act(context: typer.Context, id: Id, on: On = "") -> None:
        client = Client(context.obj)
        client.ask("POST", f"{_find_cluster(client, on)}/jobs/{id}/{name}")
        show.tell("Done.")

    job.command(name, help=help)(act)


for _name, _help in (
    ("cancel", "Take a job out of the queue, or end it."),
    ("hold", "Keep a waiting job from starting."),
    ("release", "Let a job start that is on hold."),
    ("suspend", "Stop a running job for a while."),
    ("resume", "Let a suspended job go on."),
    ("requeue", "Put a running job back into the queue, to begin again."),
):
    _add_action(_name, _help)


@cluster.command("list")
def list_clusters(context: typer.Context, as_json: AsJson = False) -> None:
    """List the clusters."""
    show.show(Client(context.obj).ask("GET", "/clusters"), as_json, CLUSTER_COLUMNS)


@cluster.command("nodes")
def list_nodes(context: typer.Context, on: On = "", as_json: AsJson = False) -> None:
    """List a cluster's nodes."""
    client = Client(context.obj)
    show.show(client.ask("GET", f"{_find_cluster(client, on)}/nodes"), as_json, NODE_COLUMNS)


@cluster.command("offers")
def list_offers(context: typer.Context, on: On = "", as_json: AsJson = False) -> None:
    """Say what you may ask for."""
    client = Client(context.obj)
    show.show(client.ask("GET", f"{_find_cluster(client, on)}/offers"), as_json, OFFER_COLUMNS)
