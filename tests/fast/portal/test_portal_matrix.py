"""Every route times everybody who may come: listed from the application itself; a route without a row fails.

Columns: ``anyone`` (nobody signed in), ``bob`` (a user, whose nothing it is), ``alice`` (whose it is), ``carol`` (a
viewer of alice's session), ``admin``, ``token`` (alice's API token) and ``socket`` (a process with alice's uid).

Words: ``sign-in`` (401, or the way to the sign-in page), ``no`` (403), ``none`` (404: as if it did not exist), ``ok``
(2xx, or the way on after a form), ``bad`` (409, 422, 503: let in, and refused for what was asked).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from event_matrix import EVENT_ROWS
from fastapi.routing import iter_route_contexts
from portal_rig import APPS_ORIGIN, ORIGIN, SSH_KEY, World, make_key

from portico.model import NoticeKind, now

WHO = ("anyone", "bob", "alice", "carol", "admin", "token", "socket")

PUBLIC_PAGE = "ok      ok   ok   ok   ok   ok      none"
OWN_PAGE = "sign-in ok   ok   ok   ok   sign-in none"  # about whoever asks
ADMIN_PAGE = "sign-in no   no   no   ok   sign-in none"
OWN_API = "sign-in ok   ok   ok   ok   ok      ok"
ADMIN_API = "sign-in no   no   no   ok   no      no"
ALICES_PAGE = "sign-in none ok   none no   sign-in none"  # an admin knows of it, and looks not inside
ALICES_API = "sign-in none ok   none no   ok      ok"

ROWS = {
    "GET /sign-in": PUBLIC_PAGE,
    "POST /sign-in": "sign-in sign-in sign-in sign-in sign-in sign-in none",  # with a wrong password
    "POST /sign-out": OWN_PAGE,
    "GET /enrol": PUBLIC_PAGE,
    "POST /enrol": "none    none none none none none    none",  # with a wrong code
    "POST /enrol/name": "none    none none none none none    none",
    "POST /_portico/enter": "none    none none none none none    none",  # on the portal's own origin: never
    "GET /": OWN_PAGE,
    "GET /feed": OWN_PAGE,
    "GET /apps/{app_id}": OWN_PAGE,
    "POST /apps/{app_id}": OWN_PAGE,
    "GET /apps/{app_id}/icon": OWN_PAGE,
    "GET /sessions/{session_id}": "sign-in none ok   none ok   sign-in none",
    "GET /sessions/{session_id}/log": ALICES_PAGE,
    "GET /sessions/{session_id}/connect": ALICES_PAGE,
    "GET /sessions/{session_id}/connect/{file_name}": ALICES_PAGE,
    "POST /sessions/{session_id}/connect/passwords": ALICES_PAGE,
    "POST /sessions/{session_id}/connect/passwords/remove": ALICES_PAGE,
    "GET /sessions/{session_id}/share": ALICES_PAGE,
    "POST /sessions/{session_id}/share": ALICES_PAGE,
    "POST /sessions/{session_id}/unshare": ALICES_PAGE,
    "POST /sessions/{session_id}/extend": ALICES_PAGE,
    "POST /sessions/{session_id}/forget": "sign-in none bad  none no   sign-in none",  # it runs
    "POST /sessions/{session_id}/connect": "sign-in none ok   none none sign-in none",
    "POST /sessions/{session_id}/stop": "sign-in none ok   none ok   sign-in none",
    "GET /shared/{session_id}": "sign-in none none ok   none sign-in none",
    "POST /sessions/{session_id}/control/agree": "sign-in none ok   none none sign-in none",
    "POST /sessions/{session_id}/control/refuse": "sign-in none ok   none none sign-in none",
    "POST /sessions/{session_id}/control/allow": "sign-in none ok   none none sign-in none",
    "POST /sessions/{session_id}/control/stop": "sign-in none ok   none none sign-in none",
    "POST /shared/{session_id}/control": "sign-in none none ok   none sign-in none",
    "POST /shared/{session_id}/control/end": "sign-in none none ok   none sign-in none",
    "GET /jobs": OWN_PAGE,
    "POST /jobs": OWN_PAGE,
    "GET /jobs/new": OWN_PAGE,
    "GET /jobs/history": OWN_PAGE,
    "GET /jobs/{cluster}/{job_id}": "sign-in none ok   none ok   sign-in none",
    "POST /jobs/{cluster}/{job_id}/limit": "sign-in none ok   none no   sign-in none",
    "POST /jobs/{cluster}/{job_id}/do/{action}": "sign-in none ok   none ok   sign-in none",  # cancel
    "GET /clusters/{cluster}": OWN_PAGE,
    "GET /notices": OWN_PAGE,
    "POST /notices/{notice_id}/forget": "sign-in none ok   none none sign-in none",
    "GET /account": OWN_PAGE,
    "POST /account/password": "sign-in bad  bad  bad  bad  sign-in none",  # with a wrong one
    "POST /account/tokens": OWN_PAGE,
    "POST /account/tokens/{token_id}/revoke": "sign-in none ok   none none sign-in none",
    "POST /account/keys": OWN_PAGE,
    "POST /account/keys/{key_id}/remove": "sign-in none ok   none none sign-in none",
    "POST /account/ssh-certificates/{serial}/revoke": "sign-in none ok   none none sign-in none",
    "GET /ssh-login": OWN_PAGE,
    "POST /ssh-login": OWN_PAGE,  # whoever has the code may see what it is for
    "POST /ssh-login/confirm": OWN_PAGE,
    "POST /ssh-login/refuse": OWN_PAGE,
    "POST /sign-ins/{sign_in_id}/revoke": "sign-in no   ok   no   ok   sign-in none",
    "GET /admin/users": ADMIN_PAGE,
    "POST /admin/users": ADMIN_PAGE,
    "POST /admin/users/{name}/link": ADMIN_PAGE,
    "POST /admin/users/{name}/role": ADMIN_PAGE,
    "POST /admin/users/{name}/lock": ADMIN_PAGE,
    "POST /admin/users/{name}/unlock": ADMIN_PAGE,
    "GET /admin/users/{name}/remove": ADMIN_PAGE,
    "POST /admin/users/{name}/remove": ADMIN_PAGE,
    "GET /admin/sessions": ADMIN_PAGE,
    "GET /admin/audit": ADMIN_PAGE,
    "GET /api/docs": PUBLIC_PAGE,
    "GET /api/v1/openapi.json": "ok      ok   ok   ok   ok   ok      ok",
    "GET /api/v1/health": "ok      ok   ok   ok   ok   ok      ok",
    "GET /api/v1/me": OWN_API,
    "POST /api/v1/me/password": "sign-in bad  bad  bad  bad  bad     bad",
    "GET /api/v1/apps": OWN_API,
    "GET /api/v1/apps/{app_id}": OWN_API,
    "GET /api/v1/catalog/errors": ADMIN_API,
    "GET /api/v1/capacity": OWN_API,
    "GET /api/v1/sessions": OWN_API,
    "POST /api/v1/sessions": OWN_API,
    "GET /api/v1/sessions/{session_id}": "sign-in none ok   none ok   ok      ok",
    "DELETE /api/v1/sessions/{session_id}": "sign-in none bad  none no   bad     bad",  # it runs
    "POST /api/v1/sessions/{session_id}/stop": "sign-in none ok   none ok   ok      ok",
    "POST /api/v1/sessions/{session_id}/extend": ALICES_API,
    "GET /api/v1/sessions/{session_id}/log": ALICES_API,
    "GET /api/v1/sessions/{session_id}/vnc-passwords": ALICES_API,
    "POST /api/v1/sessions/{session_id}/vnc-passwords": ALICES_API,
    "DELETE /api/v1/sessions/{session_id}/vnc-passwords": ALICES_API,
    "GET /api/v1/sessions/{session_id}/shares": ALICES_API,
    "POST /api/v1/sessions/{session_id}/shares": ALICES_API,
    "DELETE /api/v1/sessions/{session_id}/shares/{share_id}": ALICES_API,
    "POST /api/v1/sessions/{session_id}/shares/{share_id}/control": "sign-in none ok   none none ok      ok",
    "DELETE /api/v1/sessions/{session_id}/shares/{share_id}/control": "sign-in none ok   none none ok      ok",
    "POST /api/v1/sessions/{session_id}/asks/{ask_id}": "sign-in none ok   none none ok      ok",
    "POST /api/v1/shared/{session_id}/control": "sign-in none none ok   none none    none",
    "DELETE /api/v1/shared/{session_id}/control": "sign-in none none ok   none none    none",
    "GET /api/v1/controls": OWN_API,
    "GET /api/v1/clusters": OWN_API,
    "GET /api/v1/job-templates": OWN_API,
    "GET /api/v1/clusters/{cluster}/offers": OWN_API,
    "GET /api/v1/clusters/{cluster}/nodes": OWN_API,
    "GET /api/v1/clusters/{cluster}/jobs": OWN_API,
    "POST /api/v1/clusters/{cluster}/jobs": OWN_API,
    "GET /api/v1/clusters/{cluster}/history": OWN_API,
    "GET /api/v1/clusters/{cluster}/jobs/{job_id}": "sign-in none ok   none ok   ok      ok",
    "PATCH /api/v1/clusters/{cluster}/jobs/{job_id}": ALICES_API,
    "GET /api/v1/clusters/{cluster}/jobs/{job_id}/script": ALICES_API,
    "GET /api/v1/clusters/{cluster}/jobs/{job_id}/output": ALICES_API,
    "POST /api/v1/clusters/{cluster}/jobs/{job_id}/{action}": "sign-in none ok   none ok   ok      ok",  # cancel
    "GET /api/v1/notices": OWN_API,
    "DELETE /api/v1/notices/{notice_id}": "sign-in none ok   none none ok      ok",
    "GET /api/v1/shared": OWN_API,
    "GET /api/v1/users": ADMIN_API,
    "POST /api/v1/users": ADMIN_API,
    "GET /api/v1/users/{name}": ADMIN_API,
    "PATCH /api/v1/users/{name}": ADMIN_API,
    "DELETE /api/v1/users/{name}": ADMIN_API,
    "POST /api/v1/users/{name}/code": ADMIN_API,
    "POST /api/v1/users/{name}/lock": ADMIN_API,
    "POST /api/v1/users/{name}/unlock": ADMIN_API,
    "GET /api/v1/sign-ins": OWN_API,
    "DELETE /api/v1/sign-ins/{sign_in_id}": "sign-in no   ok   no   ok   ok      ok",
    "GET /api/v1/tokens": OWN_API,
    "POST /api/v1/tokens": "sign-in ok   ok   ok   ok   no      ok",  # a token makes no token
    "DELETE /api/v1/tokens/{token_id}": "sign-in none ok   none none ok      ok",
    "GET /api/v1/keys": OWN_API,
    "POST /api/v1/keys": "sign-in ok   ok   ok   ok   no      ok",  # nor does it add a key
    "DELETE /api/v1/keys/{key_id}": "sign-in none ok   none none ok      ok",
    "POST /api/v1/ssh/login": "ok      ok   ok   ok   ok   ok      ok",
    "POST /api/v1/ssh/login/collect": "ok      ok   ok   ok   ok   ok      ok",
    "GET /api/v1/ssh/trust": "ok      ok   ok   ok   ok   ok      ok",
    "GET /api/v1/ssh/certificates": OWN_API,
    "DELETE /api/v1/ssh/certificates/{serial}": "sign-in none ok   none none ok      ok",
    "GET /api/v1/ssh": OWN_API,
    "GET /api/v1/audit": ADMIN_API,
    "GET /api/v1/metrics": ADMIN_API,  # and for a monitor: test_portal_metrics.py
    "GET /api/v1/feed": OWN_API,
}

FORMS: dict[str, dict[str, str]] = {
    "POST /sign-in": {"name": "alice", "password": "not the password"},
    "POST /enrol": {"code": "nothing", "password": "x" * 20, "again": "x" * 20},
    "POST /enrol/name": {"code": "nothing"},
    "POST /_portico/enter": {"ticket": "nothing"},
    "POST /sessions/{session_id}/share": {"viewer_name": "bob"},
    "POST /sessions/{session_id}/unshare": {"share_id": "{share_id}"},
    "POST /sessions/{session_id}/control/agree": {"ask_id": "{ask_id}"},
    "POST /sessions/{session_id}/control/refuse": {"ask_id": "{ask_id}"},
    "POST /sessions/{session_id}/control/allow": {"share_id": "{share_id}"},
    "POST /sessions/{session_id}/control/stop": {"share_id": "{share_id}"},
    "POST /api/v1/sessions/{session_id}/asks/{ask_id}": {"agree": "true"},
    "POST /account/password": {"old": "wrong", "new": "y" * 20, "again": "y" * 20},
    "POST /account/tokens": {"label": "new", "days": "1"},
    "POST /account/keys": {"key": "{new_key}"},
    "POST /api/v1/keys": {"key": "{new_key}"},
    "POST /admin/users": {"name": "{new_name}"},
    "POST /admin/users/{name}/role": {"role": "admin"},
    "POST /jobs": {"cluster": "demo", "script": "#!/bin/sh\n"},
    "POST /jobs/{cluster}/{job_id}/limit": {"hours": "2"},
    "POST /api/v1/clusters/{cluster}/jobs": {"script": "#!/bin/sh\n"},
    "PATCH /api/v1/clusters/{cluster}/jobs/{job_id}": {"hours": "2"},
    "POST /api/v1/me/password": {"old": "wrong", "new": "y" * 20},
    "POST /api/v1/sessions": {"app_id": "shell"},
    "POST /api/v1/sessions/{session_id}/shares": {"viewer_name": "bob"},
    "POST /api/v1/users": {"name": "{new_name}"},
    "PATCH /api/v1/users/{name}": {"role": "admin"},
    "POST /ssh-login": {"user_code": "{user_code}"},
    "POST /ssh-login/confirm": {"user_code": "{user_code}"},
    "POST /ssh-login/refuse": {"user_code": "{user_code}"},
    "POST /api/v1/ssh/login": {"public_key": SSH_KEY},
    "POST /api/v1/ssh/login/collect": {"device_code": "nothing"},
    "POST /api/v1/tokens": {"label": "new", "days": "1"},
}
CONTROLLED = {
    "POST /sessions/{session_id}/control/stop",
    "DELETE /api/v1/sessions/{session_id}/shares/{share_id}/control",
}
"""What begins with carol in control; the others with her question."""
APPS = {
    "POST /sessions/{session_id}/connect": "book",
    "GET /apps/{app_id}/icon": "book",
    "POST /sessions/{session_id}/connect/passwords": "screen",
    "POST /sessions/{session_id}/connect/passwords/remove": "screen",
    "GET /api/v1/sessions/{session_id}/vnc-passwords": "screen",
    "POST /api/v1/sessions/{session_id}/vnc-passwords": "screen",
    "DELETE /api/v1/sessions/{session_id}/vnc-passwords": "screen",
}
numbers = itertools.count()
WORDS = {200: "ok", 201: "ok", 204: "ok", 303: "ok", 401: "sign-in", 403: "no", 404: "none"}


def iter_routes(world: World) -> Iterator[str]:
    """Yield "METHOD /path" of every route of the application, those of FastAPI itself too."""
    for context in iter_route_contexts(world.fastapi.routes):
        path, methods = context.path, getattr(context.route, "methods", None)
        if methods is None:
            assert str(path).startswith("/static/"), f"{path} is neither a route nor a static file"
            continue
        for method in sorted(methods - {"HEAD"}):
            yield f"{method} {path}"


def test_every_route_has_a_row_and_every_row_a_route(world: World) -> None:
    found = list(iter_routes(world))
    assert len(found) == len(set(found))
    assert set(found) == set(ROWS) | set(EVENT_ROWS)


def test_a_route_without_a_row_is_found(own_world: World) -> None:
    own_world.fastapi.add_api_route("/new", lambda: None)
    assert "GET /new" in set(iter_routes(own_world)) - set(ROWS) - set(EVENT_ROWS)


def ask_as(world: World, row: str, who: str) -> Any:
    """Return the answer to one request of somebody, about things of alice's that are made for it."""
    method, path = row.split()
    app = APPS.get(row, "shell")
    values = {"app_id": app, "file_name": "portico_config"}
    number = next(numbers)
    values |= {"new_name": f"new-{number}", "new_key": make_key()}
    if "{session_id}" in path:
        session = world.start("alice", app)
        share = (
            world.run(world.sessions.share(world.identify("alice"), session.id, "carol")) if app == "shell" else None
        )
        values |= {"session_id": session.id, "share_id": str(share.id if share else 0)}
        if "control" in path or "{ask_id}" in path:
            values["ask_id"] = str(world.run(world.sessions.control.ask(world.identify("carol"), session.id)).id)
            if row in CONTROLLED:
                world.run(world.sessions.control.agree(world.identify("alice"), session.id, int(values["ask_id"])))
    if "{cluster}" in path:
        job = world.slurm.add("alice")
        world.files.files[f"/home/{job.id}.out"] = b"hello"
        values |= {"cluster": "demo", "job_id": job.id, "action": "cancel"}
    if "{notice_id}" in path:
        with world.store.begin() as tx:
            tx.add_notice("alice", now(), NoticeKind.READY, "a" * 12, "Shell is ready.", "")
            values["notice_id"] = str(tx.list_notices("alice", 1)[0].id)
    if "{name}" in path:
        values["name"] = f"target-{number}"
        world.add_user(values["name"])
    if "{token_id}" in path:
        world.make_token("alice")
        values["token_id"] = str(max(t["id"] for t in world.accounts.list_api_tokens(world.identify("alice"))))
    if "{key_id}" in path:
        values["key_id"] = str(world.run(world.ssh_keys.add(world.identify("alice"), make_key())).id)
    if "{sign_in_id}" in path:
        values["sign_in_id"] = str(world.identify("alice").sign_in_id)
    if "{serial}" in path:
        values["serial"] = str(world.sign_ssh("alice"))
    if path.startswith("/ssh-login"):
        values["user_code"] = world.ssh_certificates.begin(SSH_KEY, f"2001:db8:{number:x}::1").user_code
    proof: dict[str, Any] = {}
    if who == "token":
        proof["bearer"] = world.make_token("alice")
    elif who == "socket":
        proof["peer_uid"] = 20001
    elif who != "anyone":
        proof["cookie"] = world.sign_in("root-of-all" if who == "admin" else who)
    body = {name: text.format(**values) for name, text in FORMS.get(row, {}).items()}
    more: dict[str, Any] = {}
    if method in ("POST", "PATCH"):
        more = {"json": body} if path.startswith("/api/") and row in FORMS else {"data": body}
    return world.ask(method, path.format(**values), **proof, **more)


@pytest.mark.parametrize("row", ROWS)
def test_each_gets_exactly_what_the_row_says(world: World, row: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if row.endswith("/feed"):
        monkeypatch.setattr(world.fastapi.state.context.feeds, "_closed", True)  # it ends at once
    found = {}
    for who in WHO:
        with world.store.begin() as tx:
            tx.delete_failures(now() + timedelta(hours=1))  # wrong passwords of others don't throttle this one
        answer = ask_as(world, row, who)
        to_sign_in = answer.status_code == 303 and answer.headers["location"].startswith("/sign-in?next=")
        found[who] = "sign-in" if to_sign_in else WORDS.get(answer.status_code, "bad")
        assert answer.status_code < 500 or answer.status_code == 503, answer.text
    assert found == dict(zip(WHO, ROWS[row].split(), strict=True))


def test_the_apps_origin_reaches_nothing_but_the_entry(world: World) -> None:
    cookie = world.sign_in("root-of-all")
    for row in (*ROWS, *EVENT_ROWS):
        method, path = row.split()
        if path != "/_portico/enter":
            for origin in (ORIGIN, APPS_ORIGIN):
                answer = world.ask(method, path, cookie=cookie, listener="apps", origin=origin)
                assert answer.status_code == 404, row


def test_an_ended_session_is_out_of_reach_of_its_viewer(world: World) -> None:
    session = world.start("alice")
    world.run(world.sessions.share(world.identify("alice"), session.id, "carol"))
    cookie = world.sign_in("carol")
    assert world.ask("GET", f"/shared/{session.id}", cookie=cookie).status_code == 200
    share = world.run(world.sessions.list_shares(world.identify("alice"), session.id))[0]
    world.run(world.sessions.unshare(world.identify("alice"), session.id, share.id))
    assert world.ask("GET", f"/shared/{session.id}", cookie=cookie).status_code == 404
