"""A login for an SSH certificate as a program and a browser see it: pages, API, and what neither may do."""

from __future__ import annotations

import html
import re
import shutil
from typing import Any

import pytest
from portal_rig import SSH_KEY, World

from portico.ssh.authority import compute_fingerprint, read_certificate

pytestmark = pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="needs ssh-keygen")

FINGERPRINT = compute_fingerprint(SSH_KEY.split()[1])


def begin(world: World, address: str = "192.0.2.7", **proof: Any) -> dict[str, Any]:
    headers = {"X-Forwarded-For": address}
    answer = world.ask("POST", "/api/v1/ssh/login", json={"public_key": SSH_KEY}, headers=headers, **proof)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def collect(world: World, begun: dict[str, Any]) -> dict[str, Any]:
    answer = world.ask("POST", "/api/v1/ssh/login/collect", json={"device_code": begun["device_code"]})
    assert answer.status_code == 200
    return dict(answer.json())


def post(world: World, path: str, begun: dict[str, Any], cookie: str, **more: Any) -> Any:
    return world.ask("POST", path, cookie=cookie, data={"user_code": begun["user_code"]}, **more)


def read_text(answer: Any) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", answer.text)).split())


def test_a_login_from_the_terminal_to_the_account_page(own_world: World) -> None:
    world, cookie = own_world, own_world.sign_in("alice")
    begun = begin(world)
    assert begun["verification_path"] == "/ssh-login"
    assert begun["verification_uri"] == "http://localhost:8000/ssh-login"
    assert (begun["interval"], begun["expires_in"]) == (2.0, 600)
    assert collect(world, begun) == {"state": "pending"}
    asked = post(world, "/ssh-login", begun, cookie)
    text = read_text(asked)
    for word in (FINGERPRINT, "ssh-ed25519", "192.0.2.7", begun["user_code"], "sign in as alice", "that address only"):
        assert word in text
    assert "Only go on if you started this yourself" in text
    assert "not where your browser is" not in text
    assert begun["device_code"] not in asked.text
    done = post(world, "/ssh-login/confirm", begun, cookie)
    assert "Done; go back to your terminal." in done.text
    assert world.machine.made == ["alice"]
    answer = collect(world, begun)
    listing = read_certificate(answer["certificate"])
    assert (listing.principals, listing.critical) == (("alice",), ("source-address 192.0.2.7/32",))
    assert answer["ca"] == world.ask("GET", "/api/v1/ssh/trust").json()["host_ca"]
    assert collect(world, begun) == {"state": "expired"}
    (row,) = world.ask("GET", "/api/v1/ssh/certificates", cookie=cookie).json()
    assert (row["fingerprint"], row["sources"], row["serial"]) == (FINGERPRINT, ["192.0.2.7/32"], listing.serial)
    assert FINGERPRINT in world.ask("GET", "/account", cookie=cookie).text
    assert world.ask("POST", f"/account/ssh-certificates/{row['serial']}/revoke", cookie=cookie).status_code == 303
    assert FINGERPRINT not in world.ask("GET", "/account", cookie=cookie).text


def test_a_refused_login(own_world: World) -> None:
    begun = begin(own_world)
    assert "Nothing was signed" in post(own_world, "/ssh-login/refuse", begun, own_world.sign_in("alice")).text
    assert collect(own_world, begun) == {"state": "refused"}


def test_who_is_asked_from_elsewhere_is_told(own_world: World) -> None:
    begun = begin(own_world, "203.0.113.66")
    text = read_text(post(own_world, "/ssh-login", begun, own_world.sign_in("alice")))
    assert "The terminal is not where your browser is. Your browser is at 192.0.2.7." in text


def test_a_process_of_this_machine_is_named(world: World) -> None:
    begun = begin(world, peer_uid=0)
    text = read_text(post(world, "/ssh-login", begun, world.sign_in("alice")))
    assert "this machine, by the account root" in text
    assert "everywhere" in text
    unknown = begin(world, peer_uid=4_000_000)
    assert "by the account 4000000" in read_text(post(world, "/ssh-login", unknown, world.sign_in("alice")))


def test_wrong_codes_are_told_and_then_throttled(own_world: World) -> None:
    cookie = own_world.sign_in("bob")
    for path in ("/ssh-login", "/ssh-login/confirm", "/ssh-login/refuse", "/ssh-login", "/ssh-login"):
        answer = post(own_world, path, {"user_code": "<b>BBBB"}, cookie)
        assert answer.status_code == 404
        assert "No login waits with this code." in answer.text
        assert "<b>BBBB" not in answer.text
    assert post(own_world, "/ssh-login", begin(own_world), cookie).status_code == 429


def test_another_sites_page_neither_begins_nor_confirms(own_world: World) -> None:
    begun, cookie = begin(own_world), own_world.sign_in("alice")
    for origin in ("https://evil.example", None):
        answer = own_world.ask("POST", "/api/v1/ssh/login", json={"public_key": SSH_KEY}, origin=origin)
        assert answer.status_code == 403
        assert post(own_world, "/ssh-login/confirm", begun, cookie, origin=origin).status_code == 403
    assert collect(own_world, begun) == {"state": "pending"}


def test_a_token_may_not_confirm(own_world: World) -> None:
    begun = begin(own_world)
    answer = own_world.ask(
        "POST", "/ssh-login/confirm", bearer=own_world.make_token("alice"), data={"user_code": begun["user_code"]}
    )
    assert answer.headers.get("location", "").startswith("/sign-in") or answer.status_code == 401
    assert collect(own_world, begun) == {"state": "pending"}


def test_too_many_logins_of_one_address(own_world: World) -> None:
    for _ in range(20):
        begin(own_world)
    answer = own_world.ask("POST", "/api/v1/ssh/login", json={"public_key": SSH_KEY})
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "60"
    begin(own_world, "192.0.2.8")


@pytest.mark.parametrize("key", ["", "ssh-ed25519", "ssh-dss AAAA", "x" * 5000, f"{SSH_KEY}\n{SSH_KEY}"])
def test_what_is_no_key_is_refused(world: World, key: str) -> None:
    assert world.ask("POST", "/api/v1/ssh/login", json={"public_key": key}).status_code == 422
