"""``portico session`` and ``portico app``: what people run."""

from __future__ import annotations

import time
import webbrowser
from typing import Annotated, Any

import typer
from rich.text import Text

from portico.cli import show
from portico.cli.client import Client
from portico.cli.show import AsJson
from portico.errors import Invalid, PorticoError, Unavailable

session = typer.Typer(no_args_is_help=True, help="Running apps.")
app = typer.Typer(no_args_is_help=True, help="What can be started.")

Id = Annotated[str, typer.Argument(help="The session's id, as `portico session list` shows.", metavar="SESSION")]

LIST_COLUMNS = {
    "Id": "id", "App": "app_id", "User": "user_name", "State": "state", "Waits for": "waiting_for", "Ends": "ends",
    "Cores": "cores", "Memory": "memory_bytes",
}  # fmt: skip
ONE_COLUMNS = LIST_COLUMNS | {
    "Title": "title",
    "Cluster": "cluster",
    "Node": "node_name",
    "Started": "started",
    "Ended": "ended",
    "Reason": "ended_because",
    "Hint": "hint",
}
APP_COLUMNS = {"Id": "id", "Name": "name", "Summary": "summary", "Missing": "missing"}
SHARE_COLUMNS = {
    "Id": "id", "Session": "session_id", "With": "viewer_name", "Since": "created", "Controls until": "control_until",
}  # fmt: skip


@session.command("list")
def list_sessions(
    context: typer.Context,
    everyone: Annotated[bool, typer.Option("--everyone", help="Everybody's (for admins).")] = False,
    as_json: AsJson = False,
) -> None:
    """List your sessions."""
    data = Client(context.obj).ask("GET", "/sessions", everyone="true" if everyone else None)
    show.show(data, as_json, LIST_COLUMNS, empty="No sessions. Start one: portico session start APP")


@session.command("start")
def start_session(
    context: typer.Context,
    app_id: Annotated[str, typer.Argument(help="As `portico app list` shows.", metavar="APP")],
    cores: Annotated[float | None, typer.Option(help="Cores; by default what the app says.")] = None,
    memory_gb: Annotated[float | None, typer.Option("--memory-gb", help="Memory in GB.")] = None,
    hours: Annotated[float | None, typer.Option(help="Time limit in hours.")] = None,
    title: Annotated[str, typer.Option(help="A name for you to recognise it by.")] = "",
    cluster: Annotated[str, typer.Option(help="Where; by default this machine.")] = "",
    partition: Annotated[str, typer.Option(help="Partition of the cluster.")] = "",
    account: Annotated[str, typer.Option(help="Account to charge there.")] = "",
    qos: Annotated[str, typer.Option(help="Quality of service there.")] = "",
    reservation: Annotated[str, typer.Option(help="Reservation there to run in.")] = "",
    set_: Annotated[list[str] | None, typer.Option("--set", help="A field of the app's form, NAME=VALUE.")] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until it is ready, showing what it waits for.")] = False,
    as_json: AsJson = False,
) -> None:
    """Start a session."""
    values = dict(_parse_assignment(text) for text in set_ or [])
    wanted = {"cores": cores, "memory_gb": memory_gb, "hours": hours}
    placement = {"partition": partition, "account": account, "qos": qos, "reservation": reservation}
    client = Client(context.obj)
    body = {
        "app_id": app_id,
        "values": values,
        "title": title,
        "cluster": cluster,
        "placement": {name: value for name, value in placement.items() if value},
        **{name: value for name, value in wanted.items() if value is not None},
    }
    made = client.ask("POST", "/sessions", body)
    if wait:
        made = _wait_until_ready(client, made, quiet=as_json)
    show.show(made, as_json, ONE_COLUMNS)


def _parse_assignment(text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not sign or not name:
        raise Invalid(f"{text!r} is not NAME=VALUE.", field="set")
    return name, value


def _wait_until_ready(client: Client, made: dict[str, Any], *, quiet: bool) -> dict[str, Any]:
    """Follow a session until it is ready.

    Raises:
        Unavailable: It ended instead; the message has its log's last lines.

    """
    with show.err.status("queued", spinner="dots") as status:
        shown = ""
        while made["state"] in ("queued", "starting"):
            line = f"{made['state']}: {made['waiting_for']}" if made.get("waiting_for") else str(made["state"])
            if line != shown:
                shown = line
                status.update(Text(line))
                if not show.err.is_terminal and not quiet:
                    show.tell(line)
            time.sleep(0.3)
            made = client.ask("GET", f"/sessions/{made['id']}")
    if made["state"] == "ended":
        try:
            log = _read_log_text(client, made["id"], 10)
        except PorticoError:
            log = ""
        raise Unavailable(
            f"The session {made['id']} ended. {made.get('ended_because') or ''}".strip(),
            why=log.strip(),
            hint=str(made.get("hint") or ""),
        )
    return made


@session.command("show")
def show_session(context: typer.Context, id: Id, as_json: AsJson = False) -> None:
    """Show one session."""
    show.show(Client(context.obj).ask("GET", f"/sessions/{id}"), as_json, ONE_COLUMNS)


@session.command("stop")
def stop_session(context: typer.Context, id: Id, as_json: AsJson = False) -> None:
    """Stop a session."""
    show.show(Client(context.obj).ask("POST", f"/sessions/{id}/stop"), as_json, ONE_COLUMNS)


@session.command("extend")
def extend_session(context: typer.Context, id: Id, as_json: AsJson = False) -> None:
    """Give a session more time."""
    show.show(Client(context.obj).ask("POST", f"/sessions/{id}/extend"), as_json, ONE_COLUMNS)


@session.command("forget")
def forget_session(context: typer.Context, id: Id) -> None:
    """Remove an ended session from the list, and its folder."""
    Client(context.obj).ask("DELETE", f"/sessions/{id}")
    show.tell(f"Forgot {id}.")


@session.command("log")
def read_log(
    context: typer.Context,
    id: Id,
    lines: Annotated[int, typer.Option("--lines", "-n", help="How many of the last lines.", min=1, max=500)] = 40,
    as_json: AsJson = False,
) -> None:
    """Print the last lines of what a session's job wrote."""
    text = _read_log_text(Client(context.obj), id, lines)
    show.show({"id": id, "text": text}, as_json, {"": "text"})


def _read_log_text(client: Client, id: str, lines: int) -> str:
    answer = client.ask("GET", f"/sessions/{id}/log", lines=lines)
    return str(answer["text"] if isinstance(answer, dict) else answer)


@session.command("share")
def share_session(
    context: typer.Context,
    id: Id,
    viewer: Annotated[str, typer.Argument(help="Who may look.")],
    control: Annotated[bool, typer.Option("--control", help="They may type and point as well, for a while.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let a colleague look at a desktop or terminal, view only unless you let them control it."""
    body = {"viewer_name": viewer, "control": control}
    show.show(Client(context.obj).ask("POST", f"/sessions/{id}/shares", body), as_json, SHARE_COLUMNS)


@session.command("shares")
def list_shares(context: typer.Context, id: Id, as_json: AsJson = False) -> None:
    """List who may look at a session."""
    show.show(Client(context.obj).ask("GET", f"/sessions/{id}/shares"), as_json, SHARE_COLUMNS, empty="Nobody.")


@session.command("control")
def allow_control(
    context: typer.Context,
    id: Id,
    share: Annotated[int, typer.Argument(help="Id of the share.")],
    end: Annotated[bool, typer.Option("--end", help="Take it back; they go on looking.")] = False,
    as_json: AsJson = False,
) -> None:
    """Let somebody who looks type and point as well, for a while; or no more."""
    client, path = Client(context.obj), f"/sessions/{id}/shares/{share}/control"
    if end:
        client.ask("DELETE", path)
        show.tell(f"Share {share} is view only again.")
    else:
        show.show(client.ask("POST", path), as_json, SHARE_COLUMNS)


@session.command("unshare")
def unshare_session(
    context: typer.Context, id: Id, share: Annotated[int, typer.Argument(help="Id of the share.")]
) -> None:
    """Take a share back; whoever looks is disconnected at once."""
    Client(context.obj).ask("DELETE", f"/sessions/{id}/shares/{share}")
    show.tell(f"Took share {share} back.")


@session.command("open")
def open_session(
    context: typer.Context,
    id: Id,
    only_print: Annotated[
        bool, typer.Option("--print", help="Print the address instead of opening a browser.")
    ] = False,
) -> None:
    """Open a session in your browser, where you sign in as yourself."""
    client = Client(context.obj)
    client.ask("GET", f"/sessions/{id}")  # a clear refusal here rather than in the browser
    origin = context.obj.url or client.ask("GET", "/me").get("portal_origin", "")
    address = f"{origin}/sessions/{id}"
    if only_print or not webbrowser.open(address):
        show.show({"url": address}, False, {"": "url"})


@app.command("list")
def list_apps(context: typer.Context, as_json: AsJson = False) -> None:
    """List the apps."""
    show.show(Client(context.obj).ask("GET", "/apps"), as_json, APP_COLUMNS, empty="There are no apps.")


@app.command("show")
def show_app(
    context: typer.Context, id: Annotated[str, typer.Argument(metavar="APP")], as_json: AsJson = False
) -> None:
    """Show one app: its limits and form fields."""
    columns = APP_COLUMNS | {
        "Cores": "cores",
        "Memory (GB)": "memory_gb",
        "Hours": "hours",
        "Fields": "fields",
        "Install": "install_hint",
    }
    show.show(Client(context.obj).ask("GET", f"/apps/{id}"), as_json, columns)
