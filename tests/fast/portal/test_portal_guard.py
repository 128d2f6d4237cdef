"""What passes before anything else: origins, listeners, sizes, headers, and what errors look like."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from portal_rig import APPS_ORIGIN, ORIGIN, World

from portico.portal.guard import BODY_LIMIT_BYTES, find_bearer, parse_headers
from portico.portal.pages import find_safe_path

FOREIGN = [
    None, "", "null", APPS_ORIGIN, "http://localhost", "https://localhost:8000", "http://localhost:8000.evil.example",
    "http://localhost:80000", "http://evil.example", "http://localhost:8000/", f"{ORIGIN}, {ORIGIN}",
    "http://user@localhost:8000",
]  # fmt: skip


@pytest.mark.parametrize("origin", FOREIGN)
def test_a_cookie_is_worth_nothing_from_another_origin(world: World, origin: str | None) -> None:
    cookie = world.sign_in("alice")
    for path, more in (("/sign-out", {"data": {}}), ("/api/v1/sessions", {"json": {"app_id": "shell"}})):
        assert world.ask("POST", path, cookie=cookie, origin=origin, **more).status_code == 403
    assert world.ask("GET", "/", cookie=cookie, origin=None).status_code == 200, "still signed in"


@pytest.mark.parametrize("site", ["cross-site", "same-site", "none", "something-new"])
def test_sec_fetch_site_alone_refuses_too(world: World, site: str) -> None:
    cookie = world.sign_in("alice")
    answer = world.ask("POST", "/sign-out", cookie=cookie, headers={"Sec-Fetch-Site": site})
    assert answer.status_code == 403
    assert world.ask("POST", "/sign-out", cookie=cookie, headers={"Sec-Fetch-Site": "same-origin"}).status_code == 303


@pytest.mark.parametrize("method", ["OPTIONS", "PUT", "PATCH", "DELETE", "TRACE", "QUERY"])
def test_every_method_but_get_and_head_is_unsafe(world: World, method: str) -> None:
    assert world.ask(method, "/", cookie=world.sign_in("alice"), origin=None).status_code == 403


def test_loopback_names_are_one_machine(world: World, tmp_path: Path) -> None:
    for origin in ("http://127.0.0.1:8000", "http://[::1]:8000"):
        assert world.ask("POST", "/sign-out", cookie=world.sign_in("alice"), origin=origin).status_code == 303
    named = World(tmp_path, host="portico.example", port=443, tls_certificate="c", tls_key="k")
    try:
        assert named.ask("POST", "/sign-in", origin="http://127.0.0.1:8000").status_code == 403
        assert named.ask("POST", "/sign-in", origin="https://portico.example", data={"name": "a"}).status_code == 401
        answer = named.ask("GET", "/sign-in")
        assert "max-age" in answer.headers["strict-transport-security"]
        assert "wss://portico.example" in answer.headers["content-security-policy"]
        assert "localhost" not in answer.headers["content-security-policy"]
    finally:
        named.close()


def test_a_bearer_is_for_the_api_alone(world: World) -> None:
    token, cookie = world.make_token("alice"), world.sign_in("bob")
    asked = world.ask("POST", "/api/v1/sessions", bearer=token, origin=None, json={"app_id": "shell"})
    assert asked.status_code == 201
    assert world.ask("POST", "/sign-out", bearer=token, cookie=cookie, origin="http://evil.example").status_code == 403
    # A bad token never falls back to the cookie beside it.
    assert world.ask("GET", "/api/v1/me", bearer="ptc_no", cookie=cookie).status_code == 401
    assert world.ask("GET", "/api/v1/me", headers={"Authorization": "Bearer"}, cookie=cookie).status_code == 401
    assert world.ask("GET", "/api/v1/me", bearer=token, cookie=cookie).json()["name"] == "alice"


def test_of_two_headers_none_is_believed() -> None:
    raw = [(b"Origin", b"http://evil.example"), (b"origin", ORIGIN.encode()), (b"Host", b"a")]
    assert parse_headers(raw) == {"origin": f"http://evil.example, {ORIGIN}", "host": "a"}


def test_a_bearer_is_found_by_its_scheme() -> None:
    assert find_bearer("Bearer ptc_x") == find_bearer("bearer  ptc_x ") == "ptc_x"
    assert find_bearer("Basic abc") is find_bearer("") is find_bearer("Bearerptc_x") is None
    assert find_bearer("Bearer") == ""


def test_the_api_socket_believes_no_header_and_serves_no_page(world: World) -> None:
    for path in ("/", "/sign-in", "/admin/users", "/_portico/enter", "/api/docs", "/api/v1", "/api/v1x/me", "/static/"):
        assert world.ask("GET", path, peer_uid=20001, cookie=world.sign_in("root-of-all")).status_code == 404, path
    answer = world.ask("GET", "/api/v1/me", peer_uid=20001, cookie=world.sign_in("root-of-all"), listener="apps")
    assert answer.json()["name"] == "alice"
    assert world.ask("GET", "/api/v1/me", peer_uid=29999).status_code == 401
    world.ask("POST", "/api/v1/sessions", peer_uid=20001, bearer=world.make_token("bob"), json={"app_id": "shell"})
    entry = world.accounts.read_audit(world.identify("root-of-all"), 1, actor="bob")[0]
    assert (entry.action, entry.address) == ("session:start", ""), "X-Forwarded-For came from whoever asks"


def test_root_on_the_socket_is_an_admin_and_an_admins_process_is_not(world: World) -> None:
    assert world.ask("GET", "/api/v1/me", peer_uid=0).json()["role"] == "admin"
    assert world.ask("GET", "/api/v1/users", peer_uid=20001).status_code == 403


def test_cookies_of_one_name_are_believed_neither(world: World) -> None:
    cookie = world.sign_in("alice")
    headers = {"Cookie": f"portico={cookie}; portico={cookie}"}
    assert world.ask("GET", "/api/v1/me", headers=headers).status_code == 401


@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_body_is_refused(world: World, chunked: bool) -> None:
    async def pieces() -> object:
        for _ in range(BODY_LIMIT_BYTES // 1000 + 2):
            yield b"x" * 1000

    content = pieces() if chunked else b"x" * (BODY_LIMIT_BYTES + 1)
    answer = world.ask("POST", "/api/v1/sessions", cookie=world.sign_in("alice"), content=content)
    assert answer.status_code == 413
    assert "256 KiB" in answer.json()["error"]["why"]


@pytest.mark.parametrize("length", ["-1", "9" * 30, "x", ""])
def test_a_strange_content_length_breaks_nothing(world: World, length: str) -> None:
    headers = {"Content-Length": length, "Content-Type": "application/x-www-form-urlencoded"}
    answer = world.ask("POST", "/sign-in", headers=headers, content=b"name=a")
    assert answer.status_code == 401


def test_what_a_body_can_hold_breaks_nothing(world: World) -> None:
    cookie = world.sign_in("root-of-all")
    for content in (
        b"[" * 100_000,
        b'{"name": "\\ud800"}',
        b'{"name": "\\u0000"}',
        b"\xff",
        b"{}",
        b"null",
        b'{"name": 1}',
    ):
        headers = {"Content-Type": "application/json"}
        answer = world.ask("POST", "/api/v1/users", cookie=cookie, content=content, headers=headers)
        assert answer.status_code in (400, 422), (content[:20], answer.text)
        assert answer.json()["error"]["message"]
    for content in (b"name=%ff%fe", b"name=%00", b"=&=&&", b"name=a&name=b", b"name=" + b"a" * 5000):
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        answer = world.ask("POST", "/admin/users", cookie=cookie, content=content, headers=headers)
        assert answer.status_code in (200, 400, 422), (content[:20], answer.text)


@pytest.mark.parametrize("number", ["0", "-1", str(2**63), "9" * 400, "1.5", "x"])
def test_numbers_that_are_no_rows(world: World, number: str) -> None:
    cookie = world.sign_in("root-of-all")
    paths = ("/sign-ins/{}/revoke", "/account/tokens/{}/revoke")
    for path in paths:
        assert world.ask("POST", path.format(number), cookie=cookie).status_code == 422
    assert world.ask("GET", f"/admin/audit?before={number}", cookie=cookie).status_code == 422
    assert world.ask("GET", f"/api/v1/audit?before_id={number}", cookie=cookie).status_code == 422
    assert world.ask("DELETE", f"/api/v1/tokens/{number}", cookie=cookie).status_code == 422


def test_headers_of_every_answer(world: World) -> None:
    cookie, session = world.sign_in("alice"), world.start("alice", "book")
    answers = [
        world.ask("GET", "/sign-in"),
        world.ask("GET", "/", cookie=cookie),
        world.ask("GET", "/nothing", cookie=cookie),
        world.ask("GET", "/api/v1/me", cookie=cookie),
        world.ask("GET", "/api/v1/me"),
        world.ask("POST", "/sign-out", cookie=cookie, origin="http://evil.example"),
        world.ask("POST", f"/sessions/{session.id}/connect", cookie=cookie),
        world.ask("POST", "/_portico/enter", listener="apps"),
    ]
    for answer in answers:
        csp = answer.headers["content-security-policy"]
        assert csp.startswith("default-src 'none'; script-src 'self'; style-src 'self'; ")
        assert "unsafe" not in csp and "*" not in csp and "frame-ancestors 'none'" in csp and "base-uri 'none'" in csp
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cross-origin-opener-policy"] == "same-origin"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["referrer-policy"] in ("same-origin", "strict-origin")
        assert "server" not in answer.headers and "access-control-allow-origin" not in answer.headers
    policies = {answer.headers["content-security-policy"] for answer in answers}
    assert len(policies) == 2, "only the page that leads into an app differs"
    assert f"form-action {APPS_ORIGIN};" in answers[6].headers["content-security-policy"]
    assert sum("form-action 'self';" in answer.headers["content-security-policy"] for answer in answers) == 7


def test_only_pages_with_a_terminal_may_have_styles_of_their_own(world: World) -> None:
    cookie = world.sign_in("alice")
    for app, relaxed in (("shell", True), ("screen", False), ("book", False)):
        csp = world.ask("GET", f"/sessions/{world.start('alice', app).id}", cookie=cookie).headers
        assert ("style-src 'self' 'unsafe-inline';" in csp["content-security-policy"]) is relaxed
        assert "script-src 'self';" in csp["content-security-policy"]


class _Parts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.inline: list[str] = []
        self.links: list[str] = []
        self._in = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._in = tag if tag in ("script", "style") else ""
        for name, value in attrs:
            if name.startswith("on") or name == "style":
                self.inline.append(f"{tag} {name}")
            if name in ("src", "href", "action"):
                self.links.append(value or "")

    def handle_data(self, data: str) -> None:
        if self._in and data.strip():
            self.inline.append(f"{self._in}: {data[:40]}")


def test_pages_have_nothing_inline_and_nothing_from_elsewhere(world: World) -> None:
    cookie, session = world.sign_in("root-of-all"), world.start("root-of-all", "screen")
    world.machine.log = ""
    for path in (
        "/", "/apps/book", f"/sessions/{session.id}", f"/sessions/{session.id}/share", f"/sessions/{session.id}/log",
        "/account", "/admin/users", "/admin/sessions", "/admin/audit", "/admin/users/alice/remove", "/api/docs", "/nothing",
    ):  # fmt: skip
        parts = _Parts()
        parts.feed(world.ask("GET", path, cookie=cookie).text)
        assert parts.inline == [], path
        assert [link for link in parts.links if not link.startswith(("/", "#")) or link.startswith("//")] == [], path


def test_errors_say_what_why_and_what_next(world: World) -> None:
    page = world.ask("GET", "/sessions/aaaaaaaaaaaa", cookie=world.sign_in("alice"))
    assert page.status_code == 404
    assert "There is no such session." in page.text and "Your sessions are at home." in page.text
    answer = world.ask("GET", "/api/v1/sessions/aaaaaaaaaaaa", cookie=world.sign_in("alice"))
    assert answer.json()["error"] == {
        "code": "not-found", "message": "There is no such session.",
        "hint": "It may have been removed. Your sessions are at home.",
    }  # fmt: skip
    refused = world.ask("POST", "/sign-out", cookie=world.sign_in("alice"), origin="null")
    assert refused.headers["content-type"].startswith("text/html") and "own pages" in refused.text
    refused = world.ask("DELETE", "/api/v1/tokens/1", cookie=world.sign_in("alice"), origin="null")
    assert refused.json()["error"]["code"] == "forbidden"
    assert world.ask("DELETE", "/api/v1/me", cookie=world.sign_in("alice")).status_code == 405


def test_a_defect_of_ours_is_told_without_its_inside(own_world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the inside")

    cookie = own_world.sign_in("alice")
    monkeypatch.setattr(own_world.accounts, "list_sign_ins", fail)
    for path in ("/account", "/api/v1/sign-ins"):
        answer = own_world.ask("GET", path, cookie=cookie)
        assert answer.status_code == 500
        assert "the inside" not in answer.text and "It is in the log" in answer.text
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_an_expired_way_in_is_a_page_on_the_apps_origin_too(world: World) -> None:
    answer = world.ask("POST", "/_portico/enter", listener="apps", data={"ticket": "used"})
    assert answer.status_code == 404
    assert "used already" in answer.text and f'href="{ORIGIN}/"' in answer.text and "stylesheet" not in answer.text


def test_the_way_into_an_app(world: World) -> None:
    cookie, session = world.sign_in("alice"), world.start("alice", "book")
    page = world.ask("POST", f"/sessions/{session.id}/connect", cookie=cookie)
    ticket = re.search(r'name="ticket" value="([^"]+)"', page.text)
    assert ticket and f'action="{APPS_ORIGIN}/_portico/enter"' in page.text
    enter = {"data": {"ticket": ticket[1]}, "listener": "apps", "headers": {"Host": "localhost:8001"}}
    for origin in (None, APPS_ORIGIN, "http://evil.example"):  # nobody else can put a browser into a session
        assert world.ask("POST", "/_portico/enter", origin=origin, **enter).status_code == 403
    answer = world.ask("POST", "/_portico/enter", **enter)
    assert (answer.status_code, answer.headers["location"]) == (303, f"/s/{session.id}/")
    given = answer.headers["set-cookie"]
    assert given.startswith(f"portico-app-{session.id}=") and f"Path=/s/{session.id}/" in given
    assert "HttpOnly" in given and "SameSite=lax" in given and "Domain" not in given
    assert world.ask("POST", "/_portico/enter", **enter).status_code == 404, "one use"


def test_the_portals_cookie(world: World, tmp_path: Path) -> None:
    code = world.accounts.add_user(world.identify("root-of-all"), "dora")
    form = {"code": code, "password": "a dozen odd words", "again": "a dozen odd words"}
    answer = world.ask("POST", "/enrol", data=form)
    assert answer.status_code == 303 and answer.headers["set-cookie"].startswith("portico=")
    assert all(word in answer.headers["set-cookie"] for word in ("HttpOnly", "Path=/", "SameSite=lax"))
    safe = World(tmp_path, host="portico.example", port=443, tls_certificate="c", tls_key="k")
    try:
        code = safe.accounts.add_user(safe.identify("root-of-all"), "dora")
        given = safe.ask("POST", "/enrol", data=form | {"code": code}, origin="https://portico.example")
        assert given.headers["set-cookie"].startswith("__Host-portico=")
        assert "Secure" in given.headers["set-cookie"] and "Domain" not in given.headers["set-cookie"]
    finally:
        safe.close()


def test_static_files_are_kept_and_confined(world: World) -> None:
    page = world.ask("GET", "/sign-in").text
    style = re.search(r'href="(/static/[0-9a-f]+/portico\.css)"', page)
    assert style
    answer = world.ask("GET", style[1])
    assert answer.status_code == 200 and "immutable" in answer.headers["cache-control"]
    assert answer.headers["content-type"].startswith("text/css")
    root = style[1].removesuffix("/portico.css")
    module = world.ask("GET", f"{root}/vendor/xterm/xterm.mjs")
    assert module.status_code == 200 and "javascript" in module.headers["content-type"]
    for path in (
        f"{root}/../app.py",
        f"{root}/%2e%2e/app.py",
        f"{root}/vendor/../../../etc/passwd",
        f"{root}/",
        root,
        "/static/0/portico.css",
    ):
        answer = world.ask("GET", path)
        assert answer.status_code == 404, path
        assert "immutable" not in answer.headers["cache-control"]


SAFE = ["/", "/sessions/abc", "/apps/x?a=b", "/admin/audit?before=3&actor=alice"]
UNSAFE = [
    "//evil.example", "/\\evil.example", "\\\\evil.example", "https://evil.example", "javascript:alert(1)", "/\t/evil.example",
    "/a\nb", "", "evil", " //evil.example", "/" + "a" * 600, "/\x00", "/a\\b", "///evil.example", "/\r/evil.example",
]  # fmt: skip


@pytest.mark.parametrize("path", SAFE)
def test_paths_that_are_followed(path: str) -> None:
    assert find_safe_path(path) == path


@pytest.mark.parametrize("path", UNSAFE)
def test_paths_that_lead_home(path: str) -> None:
    assert find_safe_path(path) == "/"


@given(st.text(alphabet="/\\:@.?#ehtpsvil\t\n\r 0%", max_size=20))
def test_no_path_leaves_the_portal(path: str) -> None:
    found = find_safe_path(path)
    # As browsers parse (WHATWG URL, 4.4): tabs and line breaks dropped, backslashes are slashes.
    seen = re.sub(r"[\t\r\n]", "", found).replace("\\", "/").strip()
    parts = urlsplit(urljoin(ORIGIN, seen))
    assert f"{parts.scheme}://{parts.netloc}" == ORIGIN
