"""``portico user``, ``token``, ``audit``, ``whoami``, ``login``, ``logout``: people and how they prove who they are."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from portico.cli import show
from portico.cli.client import Client, Target, check_url, keep_token
from portico.cli.show import AsJson
from portico.errors import Invalid

user = typer.Typer(no_args_is_help=True, help="Portal accounts (for admins).")
token = typer.Typer(no_args_is_help=True, help="Your API tokens.")

Name = Annotated[str, typer.Argument(help="The user's name.", metavar="NAME")]

USER_COLUMNS = {"Name": "name", "Role": "role", "State": "state", "Created": "created"}
TOKEN_COLUMNS = {"Id": "id", "Label": "label", "Created": "created", "Expires": "expires", "Last used": "last_used"}
AUDIT_COLUMNS = {"When": "at", "Who": "actor", "Did": "action", "To": "target", "Detail": "detail", "From": "address"}


@user.command("list")
def list_users(context: typer.Context, as_json: AsJson = False) -> None:
    """List the users."""
    show.show(Client(context.obj).ask("GET", "/users"), as_json, USER_COLUMNS, empty="There are no users yet.")


@user.command("add")
def add_user(
    context: typer.Context,
    name: Name,
    admin: Annotated[bool, typer.Option("--admin", help="May manage users and see everybody's sessions.")] = False,
    as_json: AsJson = False,
) -> None:
    """Add a user, and print the one-time link with which they set their password."""
    made = Client(context.obj).ask("POST", "/users", {"name": name, "role": "admin" if admin else "user"})
    _show_link(made, as_json, f"Added {name}.")


@user.command("link")
def renew_link(context: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """Print a new one-time link, with which a user sets a new password (a forgotten one)."""
    _show_link(
        Client(context.obj).ask("POST", f"/users/{name}/code"),
        as_json,
        f"A new link for {name}; earlier ones no longer work.",
    )


def _show_link(made: dict[str, Any], as_json: bool, sentence: str) -> None:
    if not as_json:
        show.tell(f"{sentence} Give them this link; it works once, within 7 days:")
    show.show(made if as_json else {"link": made.get("link", "")}, as_json, {"": "link"})


@user.command("role")
def set_role(
    context: typer.Context,
    name: Name,
    role: Annotated[str, typer.Argument(help="user, organiser, monitor or admin")],
    as_json: AsJson = False,
) -> None:
    """Make a user an admin, or an admin a user."""
    show.show(Client(context.obj).ask("PATCH", f"/users/{name}", {"role": role}), as_json, USER_COLUMNS)


@user.command("lock")
def lock_user(context: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """Lock a user out at once: every sign-in, stream and the POSIX account. Sessions go on."""
    show.show(Client(context.obj).ask("POST", f"/users/{name}/lock"), as_json, USER_COLUMNS)


@user.command("unlock")
def unlock_user(context: typer.Context, name: Name, as_json: AsJson = False) -> None:
    """Let a locked user in again."""
    show.show(Client(context.obj).ask("POST", f"/users/{name}/unlock"), as_json, USER_COLUMNS)


@user.command("remove")
def remove_user(
    context: typer.Context,
    name: Name,
    remove_home: Annotated[
        bool, typer.Option("--remove-home", help="Delete the home folder too. There is no way back.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Don't ask.")] = False,
) -> None:
    """Remove a user: their sessions end, their account goes. The home stays unless --remove-home is given."""
    if not yes:
        if not sys.stdin.isatty():
            raise Invalid("Nobody is there to confirm.", hint="Add --yes.")
        typer.confirm(f"Remove {name}{' and everything in their home' if remove_home else ''}?", abort=True, err=True)
    Client(context.obj).ask("DELETE", f"/users/{name}", remove_home=str(remove_home).lower())
    show.tell(f"Removed {name}.")


@token.command("list")
def list_tokens(context: typer.Context, as_json: AsJson = False) -> None:
    """List your API tokens (never the tokens themselves: only their hashes are kept)."""
    show.show(Client(context.obj).ask("GET", "/tokens"), as_json, TOKEN_COLUMNS, empty="You have no tokens.")


@token.command("make")
def make_token(
    context: typer.Context,
    label: Annotated[str, typer.Argument(help="What it is for; only for you to read.")],
    days: Annotated[int, typer.Option(help="It works for this many days.", min=1)] = 30,
    as_json: AsJson = False,
) -> None:
    """Make an API token and print it, once."""
    made = Client(context.obj).ask("POST", "/tokens", {"label": label, "days": days})
    if not as_json:
        show.tell("This is shown once. Keep it like a password:")
    show.show(made, as_json, {"": "token"})


@token.command("revoke")
def revoke_token(
    context: typer.Context, id: Annotated[int, typer.Argument(help="As `portico token list` shows.")]
) -> None:
    """Revoke an API token."""
    Client(context.obj).ask("DELETE", f"/tokens/{id}")
    show.tell(f"Token {id} no longer works.")


def read_audit(
    context: typer.Context,
    limit: Annotated[int, typer.Option(help="How many entries.", min=1, max=1000)] = 50,
    before: Annotated[int | None, typer.Option(help="Only entries older than the one with this id.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show the audit log, newest first (for admins)."""
    data = Client(context.obj).ask("GET", "/audit", limit=limit, before_id=before)
    show.show(data, as_json, AUDIT_COLUMNS, empty="The audit log is empty.")


def whoami(context: typer.Context, as_json: AsJson = False) -> None:
    """Show who Portico takes you for, and how it knows."""
    show.show(Client(context.obj).ask("GET", "/me"), as_json, {"Name": "name", "Role": "role", "Known by": "via"})


def login(
    context: typer.Context,
    url: Annotated[str, typer.Argument(help="Address of the Portico, e.g. https://hpc.example.org")] = "",
) -> None:
    """Keep an API token (made on the account page) for another machine's Portico; asks for it, or reads stdin."""
    url = url or context.obj.url
    if not url:
        raise Invalid("No address was given.", hint="portico login https://hpc.example.org")
    origin = check_url(url)
    if sys.stdin.isatty():
        show.tell(f"Make a token on {origin}/account and paste it here; it is not shown.")
        text = typer.prompt("Token", hide_input=True, err=True)
    else:
        text = sys.stdin.readline()
    path = keep_token(origin, text.strip())
    try:
        me = Client(Target(url=origin)).ask("GET", "/me")
    except BaseException:
        keep_token(origin, None)
        raise
    show.tell(f"Signed in to {origin} as {me.get('name', '')}; the token is in {path}. Use: portico --url {origin} …")


def logout(context: typer.Context, url: Annotated[str, typer.Argument(help="Address of the Portico.")] = "") -> None:
    """Forget the token for another machine's Portico. Revoke it as well with `portico token revoke`."""
    origin = check_url(url or context.obj.url)
    keep_token(origin, None)
    show.tell(f"The token for {origin} is forgotten.")
