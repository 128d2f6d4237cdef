"""``portico ssh``: a key and a certificate for it, which a person confirms in the browser (RFC 8628).

The private key is made here by ssh-keygen and never leaves this machine. A key and certificate from before stay as they
are until new ones are whole.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import webbrowser
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from portico.cli import show
from portico.cli.client import Client, Target, check_url
from portico.cli.show import AsJson
from portico.errors import Conflict, Forbidden, Invalid, TooMany, Unavailable
from portico.ssh.authority import Listing, compute_fingerprint, read_certificate
from portico.ssh.client import CERTIFIED, LOGIN, render_login

ssh = typer.Typer(no_args_is_help=True, help="SSH certificates.")
certificates = typer.Typer(no_args_is_help=True, help="Your SSH certificates.")
ssh.add_typer(certificates, name="certificates")

COMMENT: Final = "portico-ssh-login"
"""Stands in keys that this command made: no other key is ever written over."""
PROGRAM_TIMEOUT_S: Final = 60.0
"""Of ssh-keygen and ssh-add; an agent may ask its person."""
COLUMNS: Final = {
    "Serial": "serial", "Ends": "expires", "Good from": "sources", "Made": "created", "Last used": "last_used",
    "From": "last_address", "Fingerprint": "fingerprint",
}  # fmt: skip


@ssh.command("login")
def login(
    context: typer.Context,
    agent: Annotated[bool, typer.Option("--agent", help="Give them to the SSH agent; no file is written.")] = False,
    file: Annotated[Path, typer.Option("--file", help="Where the key goes; -cert.pub beside it.")] = Path(CERTIFIED),
    print_url: Annotated[bool, typer.Option("--print-url", help="Open no browser here.")] = False,
    url: Annotated[str, typer.Option("--url", help="Another machine's Portico; no token is needed.")] = "",
) -> None:
    """Get a key and a certificate for SSH that is good for hours; you confirm it in the browser."""
    target = Target(url=check_url(url)) if url else context.obj
    path = file.expanduser().absolute()
    if agent and not os.environ.get("SSH_AUTH_SOCK"):
        raise Invalid("No SSH agent runs here.", hint='Start one: eval "$(ssh-agent)", or leave out --agent.')
    if not agent:
        _check_file(path)
    client = Client(target, signs_in=False)
    try:
        # In the folder where the files go: they are renamed in one step each. TemporaryDirectory makes it 0700.
        with tempfile.TemporaryDirectory(prefix=".portico-", dir=None if agent else path.parent) as folder:
            key = Path(folder) / "key"
            _run_program(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", COMMENT, "-f", str(key)])
            public_key = (Path(folder) / "key.pub").read_text().strip()
            answer = _ask_person(client, target, public_key, print_url)
            listing = _check_certificate(str(answer.get("certificate", "")), public_key)
            (Path(folder) / "key-cert.pub").write_text(f"{answer['certificate']}\n")
            if agent:
                _add_to_agent(key, listing)
            else:
                for end in ("", ".pub", "-cert.pub"):
                    os.replace(f"{key}{end}", f"{path}{end}")
                if path == Path(CERTIFIED).expanduser():
                    named = Path(folder) / LOGIN
                    named.write_text(render_login())
                    named.chmod(0o600)  # ssh takes no file that others may write
                    os.replace(named, path.parent / LOGIN)
    except KeyboardInterrupt:
        show.tell("\nNothing was kept.")
        raise typer.Exit(130) from None
    finally:
        client.close()
    where = "Your SSH agent has it" if agent else f"It is in {path}; use it with: ssh -i {path}"
    assert listing.valid_until
    ends = show.render_time(listing.valid_until, datetime.now(UTC))
    show.tell(
        f"Your certificate is for {listing.principals[0]} and ends {ends}, at "
        f"{listing.valid_until.astimezone():%Y-%m-%d %H:%M %Z}. {where}"
    )


def _check_file(path: Path) -> None:
    """Make the key's folder, and look whether the key may be written.

    Raises:
        Conflict: There is a key that this command did not make.
        Unavailable: There can be no file.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.path.lexists(path):
            return
        public = Path(f"{path}.pub")
        made_here = public.exists() and public.read_text().rstrip().endswith(f" {COMMENT}")
    except (OSError, ValueError) as error:
        raise Unavailable(f"{path} can't be written.", why=str(error)) from error
    if not made_here:
        raise Conflict(f"{path} is a key from elsewhere.", hint="It is not written over; name another with --file.")


def _ask_person(client: Client, target: Target, public_key: str, print_url: bool) -> dict[str, Any]:
    """Begin a login, and wait until its person has confirmed it; return the answer with the certificate.

    Raises:
        Forbidden: The person refused.
        Unavailable: Nobody confirmed in time, or Portico can't be reached.
    """
    begun = client.ask("POST", "/ssh/login", {"public_key": public_key})
    page = f"{target.url}{begun['verification_path']}" if target.url else str(begun["verification_uri"])
    code = str(begun["user_code"])
    show.tell(f"Your code is {show.render_value('', code)}\nConfirm it at   {show.render_value('', page)}")
    if not print_url and _has_browser():
        webbrowser.open(f"{page}#{code}")  # behind the #, a browser sends it to nobody
    show.tell("Waiting for you to confirm…")
    interval = max(float(begun["interval"]), 0.1)
    deadline = time.monotonic() + float(begun["expires_in"])
    while time.monotonic() < deadline:
        time.sleep(interval)
        try:
            answer: dict[str, Any] = client.ask("POST", "/ssh/login/collect", {"device_code": begun["device_code"]})
        except (TooMany, Unavailable) as error:
            # RFC 8628, 3.5. A portal that starts anew comes back.
            interval = max(interval, error.retry_after_s or 0) + 5
            continue
        if answer["state"] == "refused":
            raise Forbidden("You refused it in the browser.", hint="Nothing was signed.")
        if answer["state"] == "expired":
            break
        if answer["state"] == "done":
            return answer
    raise Unavailable("Nobody confirmed it in time.", hint="Begin again: portico ssh login")


def _has_browser() -> bool:
    """Return whether a browser can open beside this terminal; one inside it would hide the code."""
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def _check_certificate(text: str, public_key: str) -> Listing:
    """Return what is in the certificate, if it is one of this key, for one person, and with an end.

    Raises:
        Unavailable: It is not.
    """
    try:
        listing = read_certificate(text)
    except Invalid as error:
        raise Unavailable("What Portico sent is not a certificate.", why=error.message) from error
    is_of_key = listing.fingerprint == compute_fingerprint(public_key.split(" ")[1])
    if not is_of_key or len(listing.principals) != 1 or listing.valid_until is None:
        raise Unavailable("What Portico sent is not a certificate of this key, for one person and some hours.")
    return listing


def _add_to_agent(key: Path, listing: Listing) -> None:
    """Give a key with its certificate to the agent, until the certificate ends."""
    assert listing.valid_until
    life_s = int((listing.valid_until - datetime.now(UTC)).total_seconds())
    if life_s < 1:
        raise Unavailable("The certificate has ended already.", hint="Is this machine's clock right?")
    _run_program(["ssh-add", "-q", "-t", str(life_s), str(key)])  # which takes key-cert.pub too


def _run_program(argv: Sequence[str]) -> None:
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=PROGRAM_TIMEOUT_S, check=False
        )
    except FileNotFoundError as error:
        raise Unavailable(f"{argv[0]} is not installed.", hint="It is part of OpenSSH's client.") from error
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"{argv[0]} can't be run.", why=str(error)) from error
    if done.returncode:
        raise Unavailable(f"{argv[0]} failed.", why=done.stderr.strip()[:300])


@certificates.command("list")
def list_certificates(context: typer.Context, as_json: AsJson = False) -> None:
    """List your certificates that are good."""
    data = Client(context.obj).ask("GET", "/ssh/certificates")
    show.show(data, as_json, COLUMNS, empty="You have no SSH certificates. Get one: portico ssh login")


@certificates.command("revoke")
def revoke_certificate(
    context: typer.Context,
    serial: Annotated[int, typer.Argument(help="As `portico ssh certificates list` shows.", min=1)],
) -> None:
    """Take a certificate back; connections that live by it end."""
    Client(context.obj).ask("DELETE", f"/ssh/certificates/{serial}")
    show.tell(f"Certificate {serial} no longer works.")
