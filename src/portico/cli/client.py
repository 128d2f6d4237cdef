"""The REST API as the command line uses it: over ``api.sock`` on the machine itself, else over HTTP(S) with a token.

On the machine the kernel says who asks (SO_PEERCRED), so there is nothing to sign in to. Tokens are kept 0600 in the
user's own configuration folder, and are never an argument, a variable's default or part of a message.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from portico.config import load_config
from portico.errors import Invalid, NotSignedIn, PorticoError, Unavailable, from_wire

TIMEOUT_S = 30.0
STREAM_TIMEOUT_S = 600.0
"""Of silence, while something is being packed."""


@dataclass(frozen=True)
class Target:
    """Which Portico is meant: ``url`` is empty for the one on this machine, whose sockets are in ``run_dir``."""

    url: str = ""
    run_dir: str = ""


class Client:
    """Asks one Portico.

    Args:
        target: Which one.
        signs_in: Whether a token is sent to that URL; what is asked before there is any needs none.

    Raises:
        Unavailable: The one on this machine is not running.
        NotSignedIn: There is no token for that URL.

    """

    def __init__(self, target: Target, *, signs_in: bool = True) -> None:
        self._target = target
        if target.url and not signs_in:
            # The portal takes what comes without a token from its own pages alone (portal/guard.py).
            self._http = httpx.Client(
                base_url=target.url, headers={"Origin": str(httpx.URL(target.url))}, timeout=TIMEOUT_S, trust_env=False
            )
            return
        if target.url:
            token = read_token(target.url)
            if not token:
                raise NotSignedIn(f"There is no token for {target.url}.", hint=f"portico --url {target.url} login")
            self._http = httpx.Client(
                base_url=target.url, headers={"Authorization": f"Bearer {token}"}, timeout=TIMEOUT_S, trust_env=False
            )
            return
        path = find_socket(target.run_dir)
        self._http = httpx.Client(
            base_url="http://localhost", transport=httpx.HTTPTransport(uds=path), timeout=TIMEOUT_S
        )

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None, **query: Any) -> Any:
        """Return what the API answers: an object, a list, or text.

        Raises:
            PorticoError: As the API says; Unavailable where it can't be reached.

        """
        params = {name: value for name, value in query.items() if value is not None}
        try:
            answer = self._http.request(method, f"/api/v1{path}", json=body, params=params)
        except httpx.TimeoutException as error:
            raise Unavailable("Portico does not answer.", why=f"Nothing came within {TIMEOUT_S:g} s.") from error
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unavailable(
                "Portico can't be reached.", why=str(error), hint="`portico status` tells whether it runs."
            ) from error
        kind = answer.headers.get("content-type", "")
        if not answer.content and answer.is_success:  # 204
            return None
        if not kind.startswith("application/json"):
            if answer.is_success:
                return answer.text
            raise Unavailable(f"Portico answered with status {answer.status_code}.", why=answer.text[:200].strip())
        data = answer.json()
        if not answer.is_success:
            raise parse_error(data, answer.status_code)
        return data

    def stream(self, path: str, query: Mapping[str, Any]) -> Iterator[bytes]:
        """Yield what the API sends, as it comes.

        Raises:
            PorticoError: As the API says; Unavailable where it breaks off, and what was yielded is a part.

        """
        try:
            with self._http.stream("GET", f"/api/v1{path}", params=dict(query), timeout=STREAM_TIMEOUT_S) as answer:
                if not answer.is_success:
                    answer.read()
                    with contextlib.suppress(ValueError):
                        raise parse_error(answer.json(), answer.status_code)
                    raise Unavailable(f"Portico answered with status {answer.status_code}.")
                yield from answer.iter_raw()
        except httpx.HTTPError as error:
            raise Unavailable(
                "It was broken off.", why=str(error) or type(error).__name__, hint="Try again."
            ) from error

    def close(self) -> None:
        """Close the connection."""
        self._http.close()


def parse_error(data: Any, status: int) -> PorticoError:
    """Return the error that an answer tells; one that is not ours (a front server's) still says its status."""
    wire = data.get("error", data) if isinstance(data, dict) else {}
    if isinstance(wire, dict) and "message" in wire:
        return from_wire(wire)
    if status == 422 and isinstance(data, dict):
        return Invalid("The request was not understood.", why=json.dumps(data.get("detail", data))[:500])
    return Unavailable(f"Portico answered with status {status}.", why=json.dumps(data)[:200])


def find_socket(run_dir: str) -> str:
    """Return the path of this machine's ``api.sock``: of ``run_dir``, or one's own, or the system's.

    Raises:
        Unavailable: Nobody listens there; the folder of one that was killed has its socket still.

    """
    folders = [run_dir] if run_dir else [load_config(None).run_dir, "/run/portico"]
    paths = [os.path.join(folder, "api.sock") for folder in dict.fromkeys(folders)]
    for path in paths:
        with socket.socket(socket.AF_UNIX) as attempt, contextlib.suppress(OSError):
            attempt.settimeout(TIMEOUT_S)
            attempt.connect(path)
            return path
    raise Unavailable(
        "Portico is not running on this machine.",
        why=f"Nobody listens at {' or '.join(paths)}.",
        hint="Start it with `portico up`, or name another machine's: portico --url https://… (after `portico login`).",
    )


def check_url(url: str) -> str:
    """Return ``url`` as an origin.

    Raises:
        Invalid: It is none, or would send a token unencrypted over a network.

    """
    parts = urlsplit(url)
    local = parts.hostname in ("localhost", "127.0.0.1", "::1")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/") or parts.query:
        raise Invalid(f"{url} is not the address of a Portico.", hint="For example https://hpc.example.org")
    if parts.scheme == "http" and not local:
        raise Invalid(
            "A token never goes unencrypted over a network.", why=f"{url} begins with http://.", hint="Use https://."
        )
    return f"{parts.scheme}://{parts.netloc}"


def _find_token_file() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "portico" / "tokens.json"


def read_token(url: str) -> str:
    """Return the token kept for ``url``, or an empty string."""
    return _read_tokens().get(url, "")


def _read_tokens() -> dict[str, str]:
    try:
        tokens = json.loads(_find_token_file().read_text())
    except (OSError, ValueError):
        return {}
    return {str(url): str(token) for url, token in tokens.items()} if isinstance(tokens, dict) else {}


def keep_token(url: str, token: str | None) -> Path:
    """Keep ``token`` for ``url``, or forget it where it is None; return the file."""
    path = _find_token_file()
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    tokens = _read_tokens()
    tokens.pop(url, None)
    if token is not None:
        tokens[url] = token
    descriptor, name = tempfile.mkstemp(dir=path.parent)  # 0600 from its first moment
    with open(descriptor, "w") as file:
        json.dump(tokens, file, indent=1)
    os.replace(name, path)
    return path
