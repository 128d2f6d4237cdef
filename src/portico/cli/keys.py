"""``portico keys``: one's own public keys for SSH."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from portico.cli import show
from portico.cli.client import Client
from portico.cli.show import AsJson
from portico.errors import Invalid, NotFound
from portico.ssh.keys import TEXT_LIMIT, decode_key_file, parse_public_key

keys = typer.Typer(no_args_is_help=True, help="Your public keys for SSH.")

DEFAULT_NAMES: Final = ("id_ed25519.pub", "id_ecdsa.pub", "id_rsa.pub")
COLUMNS: Final = {
    "Id": "id", "Label": "label", "Kind": "kind", "Bits": "bits", "Fingerprint": "fingerprint", "From": "sources",
    "Expires": "expires", "Last used": "last_used", "By": "last_address",
}  # fmt: skip


@keys.command("list")
def list_keys(context: typer.Context, as_json: AsJson = False) -> None:
    """List your keys: from where and until when each is good, when it was last used, and from which address."""
    data = Client(context.obj).ask("GET", "/keys")
    shown = data if as_json else [_name_sources(key) for key in data]
    show.show(shown, as_json, COLUMNS, empty="You have no keys. Add one: portico keys add")


@keys.command("add")
def add_key(
    context: typer.Context,
    file: Annotated[
        str, typer.Argument(help="The public key's file; - for standard input. By default the one in ~/.ssh.")
    ] = "",
    label: Annotated[str, typer.Option(help="What you call it; by default the comment in the key.")] = "",
    sources: Annotated[
        list[str] | None,
        typer.Option("--from", metavar="CIDR", help="Good from this network or address only; repeatable."),
    ] = None,
    days: Annotated[int, typer.Option(min=0, help="Good for this many days; 0 for no end.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Add a public key; it is good at once."""
    text = _read_key(file or str(find_default_key()))
    parse_public_key(text)  # a private half goes nowhere, not even to Portico
    body = {"key": text, "label": label, "sources": sources or [], "days": days}
    made = Client(context.obj).ask("POST", "/keys", body)
    if not as_json:
        show.tell("Added.")
    show.show(made if as_json else _name_sources(made), as_json, COLUMNS)


def _name_sources(key: dict[str, Any]) -> dict[str, Any]:
    return key | {"sources": key["sources"] or ["everywhere"]}


def find_default_key() -> Path:
    """Return the public key that ssh-keygen makes by default, the best kind first; say which it is.

    Raises:
        NotFound: There is none.
    """
    folder = Path.home() / ".ssh"
    for path in (folder / name for name in DEFAULT_NAMES):
        if path.is_file():
            show.tell(f"Taking {path}.")
            return path
    raise NotFound(
        f"There is no public key in {folder}.",
        why=f"Looked for {', '.join(DEFAULT_NAMES)}.",
        hint="Make one with ssh-keygen -t ed25519, or name a file: portico keys add FILE",
    )


def _read_key(file: str) -> str:
    try:
        if file == "-":
            return decode_key_file(sys.stdin.buffer.read(4 * TEXT_LIMIT))
        with Path(file).open("rb") as stream:
            return decode_key_file(stream.read(4 * TEXT_LIMIT))
    except OSError as problem:
        raise Invalid(f"The key {file} can't be read.", why=problem.strerror or str(problem)) from None


@keys.command("remove")
def remove_key(
    context: typer.Context, id: Annotated[int, typer.Argument(help="As `portico keys list` shows.")]
) -> None:
    """Remove a key. Connections that came in with it end."""
    Client(context.obj).ask("DELETE", f"/keys/{id}")
    show.tell(f"Key {id} no longer works.")
