"""Who may call what: every route of the portal has a row here, and a route without one fails.

The routes are listed from the routers themselves. Each row says the least that somebody must be; the test then asks as
nobody, as a stranger, as the owner, as a viewer, as an admin, with an API token and as a process of this machine.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx
import pytest
from person import Person
from running import PASSWORD, RunningPortico

from portico.portal import api, pages

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

PUBLIC, SELF, OWN, VIEW, ADMIN, APPS = "public", "self", "own", "view", "admin", "apps"
"""PUBLIC: anybody. SELF: whoever is signed in, about themselves. OWN: the session's user; an admin only where READS or
STOPS says so. VIEW: whom it is shared with. ADMIN: administrators. APPS: the apps' own origin, with a ticket."""

MATRIX = {
    # pages
    ("GET", "/sign-in"): PUBLIC,
    ("POST", "/sign-in"): PUBLIC,
    ("GET", "/enrol"): PUBLIC,
    ("POST", "/enrol"): PUBLIC,
    ("POST", "/_portico/enter"): APPS,
    ("POST", "/sign-out"): SELF,
    ("GET", "/"): SELF,
    ("GET", "/events"): SELF,
    ("GET", "/account"): SELF,
    ("POST", "/account/password"): SELF,
    ("POST", "/account/tokens"): SELF,
    ("POST", "/account/tokens/{token_id}/revoke"): OWN,
    ("POST", "/sign-ins/{sign_in_id}/revoke"): OWN,
    ("GET", "/apps/{app_id}"): SELF,
    ("POST", "/apps/{app_id}"): SELF,
    ("GET", "/apps/{app_id}/icon"): SELF,
    ("GET", "/sessions/{session_id}"): OWN,
    ("GET", "/sessions/{session_id}/log"): OWN,
    ("POST", "/sessions/{session_id}/connect"): OWN,
    ("POST", "/sessions/{session_id}/extend"): OWN,
    ("POST", "/sessions/{session_id}/share"): OWN,
    ("GET", "/sessions/{session_id}/share"): OWN,
    ("POST", "/sessions/{session_id}/unshare"): OWN,
    ("POST", "/sessions/{session_id}/stop"): OWN,
    ("POST", "/sessions/{session_id}/forget"): OWN,
    ("GET", "/shared/{session_id}"): VIEW,
    ("GET", "/admin/users"): ADMIN,
    ("POST", "/admin/users"): ADMIN,
    ("POST", "/admin/users/{name}/link"): ADMIN,
    ("POST", "/admin/users/{name}/role"): ADMIN,
    ("POST", "/admin/users/{name}/lock"): ADMIN,
    ("POST", "/admin/users/{name}/unlock"): ADMIN,
    ("GET", "/admin/users/{name}/remove"): ADMIN,
    ("POST", "/admin/users/{name}/remove"): ADMIN,
    ("GET", "/admin/sessions"): ADMIN,
    ("GET", "/admin/audit"): ADMIN,
    # REST API
    ("GET", "/api/v1/health"): PUBLIC,
    ("GET", "/api/v1/me"): SELF,
    ("POST", "/api/v1/me/password"): SELF,
    ("GET", "/api/v1/apps"): SELF,
    ("GET", "/api/v1/apps/{app_id}"): SELF,
    ("GET", "/api/v1/capacity"): SELF,
    ("GET", "/api/v1/sessions"): SELF,
    ("POST", "/api/v1/sessions"): SELF,
    ("GET", "/api/v1/shared"): SELF,
    ("GET", "/api/v1/sign-ins"): SELF,
    ("GET", "/api/v1/tokens"): SELF,
    ("POST", "/api/v1/tokens"): SELF,
    ("DELETE", "/api/v1/tokens/{token_id}"): OWN,
    ("DELETE", "/api/v1/sign-ins/{sign_in_id}"): OWN,
    ("GET", "/api/v1/sessions/{session_id}"): OWN,
    ("GET", "/api/v1/sessions/{session_id}/log"): OWN,
    ("GET", "/api/v1/sessions/{session_id}/shares"): OWN,
    ("POST", "/api/v1/sessions/{session_id}/shares"): OWN,
    ("DELETE", "/api/v1/sessions/{session_id}/shares/{share_id}"): OWN,
    ("POST", "/api/v1/sessions/{session_id}/extend"): OWN,
    ("POST", "/api/v1/sessions/{session_id}/stop"): OWN,
    ("DELETE", "/api/v1/sessions/{session_id}"): OWN,
    ("GET", "/api/v1/catalog/errors"): ADMIN,
    ("GET", "/api/v1/users"): ADMIN,
    ("POST", "/api/v1/users"): ADMIN,
    ("GET", "/api/v1/users/{name}"): ADMIN,
    ("PATCH", "/api/v1/users/{name}"): ADMIN,
    ("DELETE", "/api/v1/users/{name}"): ADMIN,
    ("POST", "/api/v1/users/{name}/code"): ADMIN,
    ("POST", "/api/v1/users/{name}/lock"): ADMIN,
    ("POST", "/api/v1/users/{name}/unlock"): ADMIN,
    ("GET", "/api/v1/audit"): ADMIN,
}

ADMINS_TOO = {
    ("GET", "/sessions/{session_id}"),
    ("POST", "/sessions/{session_id}/stop"),
    ("GET", "/api/v1/sessions/{session_id}"),
    ("POST", "/api/v1/sessions/{session_id}/stop"),
    ("POST", "/sign-ins/{sign_in_id}/revoke"),
    ("DELETE", "/api/v1/sign-ins/{sign_in_id}"),
}
"""What an admin may do to others' sessions and sign-ins: see that they are, and end them. Never look inside."""

BODIES: dict[tuple[str, str], dict[str, str]] = {
    ("POST", "/sessions/{session_id}/unshare"): {"share_id": "{share_id}"},
    ("POST", "/sessions/{session_id}/share"): {"viewer_name": "{name}"},
    ("POST", "/api/v1/sessions/{session_id}/shares"): {"viewer_name": "{name}"},
    ("POST", "/admin/users"): {"name": "made-by-a-test"},
    ("POST", "/api/v1/users"): {"name": "made-by-a-test"},
    ("POST", "/admin/users/{name}/role"): {"role": "user"},
    ("PATCH", "/api/v1/users/{name}"): {"role": "user"},
    ("POST", "/api/v1/sessions"): {"app_id": "none"},
    ("POST", "/api/v1/tokens"): {"label": ""},
    ("POST", "/api/v1/me/password"): {"old": "wrong", "new": "wrong"},
}

REFUSED = {401, 403, 404}
ENDING = ("stop", "forget", "revoke", "lock", "remove", "sign-out", "DELETE", "password")


def list_routes() -> list[tuple[str, str]]:
    """Return every (method, path) of the portal."""
    found = []
    for router in (api.public, api.router, pages.public, pages.router):
        for route in router.routes:
            for method in sorted(route.methods - {"HEAD"}):  # type: ignore[attr-defined]
                found.append((method, route.path))  # type: ignore[attr-defined]
    return found


def test_every_route_has_a_row_and_every_row_a_route() -> None:
    assert set(list_routes()) == set(MATRIX)


@dataclass
class Cast:
    """Who plays."""

    house: RunningPortico
    nobody: Person
    stranger: Person
    owner: Person
    viewer: Person
    admin: Person
    session_id: str
    values: dict[str, str]


@pytest.fixture(scope="module")
def cast(portico_factory: Callable[..., RunningPortico]) -> Iterator[Cast]:
    """Return people with something to protect: a running terminal, shared with one of them."""
    house = portico_factory()
    owner, viewer, stranger, admin = house.user("owner"), house.user("viewer"), house.user("stranger"), house.admin()
    house.cli("user", "add", house.get_name("target"))
    session_id = owner.start("terminal")["id"]
    owner.wait(session_id)
    share = owner.http.post(
        f"/api/v1/sessions/{session_id}/shares", json={"viewer_name": house.get_name("viewer")}
    ).json()
    token = owner.http.post("/api/v1/tokens", json={"label": "matrix"}).raise_for_status().json()
    token_id = owner.http.get("/api/v1/tokens").json()[0]["id"]
    second = Person(house.url)
    second.sign_in(house.get_name("owner"), PASSWORD)
    sign_in_id = next(s["id"] for s in owner.http.get("/api/v1/sign-ins").json() if not s["this"])
    values = {
        "session_id": session_id,
        "share_id": str(share["id"]),
        "token_id": str(token_id),
        "sign_in_id": str(sign_in_id),
        "app_id": "terminal",
        "name": house.get_name("target"),
        "token": token["token"],
    }
    with Person(house.url) as nobody, second:
        yield Cast(house, nobody, stranger, owner, viewer, admin, session_id, values)


def ask(client: httpx.Client, method: str, path: str, values: dict[str, str]) -> int:
    """Return the status of a request; 401 for a way to the sign-in page."""
    body = {name: text.format(**values) for name, text in BODIES.get((method, path), {}).items()}
    kind = "json" if path.startswith("/api/") else "data"
    more = {kind: body} if method != "GET" else {}
    with client.stream(method, path.format(**values), **more) as answer:  # type: ignore[arg-type]
        if answer.status_code == 303 and answer.headers.get("location", "").startswith("/sign-in?"):
            return 401
        return answer.status_code


def sort_key(row: tuple[str, str]) -> bool:
    """What ends something comes last."""
    return any(word in " ".join(row) for word in ENDING)


@pytest.mark.parametrize("level", [SELF, OWN, VIEW, ADMIN])
def test_nobody_gets_in(cast: Cast, level: str) -> None:
    for method, path in [row for row, least in MATRIX.items() if least == level]:
        assert ask(cast.nobody.http, method, path, cast.values) in REFUSED, (method, path)


def test_a_stranger_gets_nothing_of_others(cast: Cast) -> None:
    for (method, path), least in MATRIX.items():
        if least in (OWN, VIEW, ADMIN):
            assert ask(cast.stranger.http, method, path, cast.values) in REFUSED, (method, path)


def test_a_viewer_may_look_and_no_more(cast: Cast) -> None:
    assert ask(cast.viewer.http, "GET", "/shared/{session_id}", cast.values) == 200
    for (method, path), least in MATRIX.items():
        if least == OWN:
            assert ask(cast.viewer.http, method, path, cast.values) in REFUSED, (method, path)


def test_a_token_and_a_uid_are_no_more_than_their_user(cast: Cast) -> None:
    with httpx.Client(base_url=cast.house.url, headers={"Authorization": f"Bearer {cast.values['token']}"}) as bearer:
        assert ask(bearer, "GET", "/api/v1/sessions/{session_id}", cast.values) == 200
        for (method, path), least in MATRIX.items():
            if least == ADMIN or (least in (SELF, OWN) and not path.startswith("/api/")):
                assert ask(bearer, method, path, cast.values) in REFUSED, (method, path)
    stranger = cast.house.get_name("stranger")
    cast.stranger.start("terminal")  # so that there is a POSIX account
    done = cast.house.cli("session", "show", cast.session_id, user=stranger, check=False)
    assert done.returncode == 1
    assert json.loads(cast.house.cli("whoami", "--json", user=stranger).stdout)["role"] == "user"
    assert cast.house.cli("user", "list", user=stranger, check=False).returncode == 1


def test_an_admins_own_processes_are_no_admin(cast: Cast) -> None:
    cast.admin.start("terminal")
    me = json.loads(cast.house.cli("whoami", "--json", user=cast.house.admin_name).stdout)
    assert me["role"] == "user", "whatever an admin's notebook runs must not be an admin"


def test_an_admin_sees_and_ends_but_never_looks_inside(cast: Cast) -> None:
    for (method, path), least in MATRIX.items():
        if least == OWN and (method, path) not in ADMINS_TOO and "token_id" not in path:
            assert ask(cast.admin.http, method, path, cast.values) in REFUSED, (method, path)
    assert ask(cast.admin.http, "GET", "/sessions/{session_id}", cast.values) == 200
    page = cast.admin.http.get(f"/sessions/{cast.session_id}").text
    assert "data-stream" not in page


def test_what_is_allowed_is_allowed(cast: Cast) -> None:
    """Last, because it ends what the others ask about; what one thing ends, another can't find."""
    for method, path in sorted(MATRIX, key=sort_key):
        least = MATRIX[method, path]
        client = cast.admin.http if least == ADMIN else cast.owner.http
        gone = "{name}" in path or "_id}/revoke" in path or method == "DELETE"
        if least in (APPS, VIEW) or path in ("/sign-out", "/events", "/sign-in", "/enrol") or gone:
            continue
        status = ask(client, method, path, cast.values)
        # There is no app "none", and a terminal has no page of its own to connect to.
        expected = path == "/api/v1/sessions" or path.endswith("/connect")
        assert status < 500 and (status not in REFUSED or expected), (method, path, status)


def test_apps_origin_serves_only_the_entry(cast: Cast) -> None:
    apps = f"http://localhost:{cast.house.apps_port}"
    with httpx.Client(base_url=apps, cookies=dict(cast.owner.http.cookies), headers={"Origin": apps}) as client:
        for method, path in MATRIX:
            if MATRIX[method, path] != APPS:
                assert ask(client, method, path, cast.values) in REFUSED, (method, path)
