"""Public keys on the account page and in the API: what is shown, what is refused, and what is never sent back."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import httpx
import pytest
from portal_rig import World, make_key

from portico.model import SshKey, now

EVIL = "<script>alert(1)</script>"
PRIVATE = "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEASECRET\n-----END OPENSSH PRIVATE KEY-----\n"


def add(world: World, name: str = "alice", file: bytes | None = None, **form: str) -> httpx.Response:
    """Send the form of the account page, as browsers do: with an empty file where none was chosen."""
    files = {"file": ("id.pub", file) if file is not None else ("", b"")}
    return world.ask("POST", "/account/keys", cookie=world.sign_in(name), data=form, files=files)


def list_keys(world: World, name: str = "alice") -> list[SshKey]:
    return world.ssh_keys.list_keys(world.identify(name))


def test_a_key_is_pasted_and_shown_with_all_that_limits_it(own_world: World) -> None:
    world = own_world
    answer = add(world, key=make_key("a&b"), source="networks", networks="192.0.2.9/24\n2001:db8::/32", ends="365")
    assert (answer.status_code, answer.headers["location"]) == (303, "/account#keys")
    (key,) = list_keys(world)
    assert key.sources == ("192.0.2.0/24", "2001:db8::/32") and key.expires == key.created + timedelta(days=365)
    with world.store.begin() as tx:
        tx.touch_ssh_key(key.id, now(), "198.51.100.4")
    page = world.ask("GET", "/account", cookie=world.sign_in("alice")).text
    for text in ("a&amp;b", key.fingerprint, "ED25519, 256 bits", "192.0.2.0/24", "2001:db8::/32", "198.51.100.4"):
        assert text in page, text
    assert "data-confirm=" in page and f"/account/keys/{key.id}/remove" in page
    assert key.fingerprint not in world.ask("GET", "/account", cookie=world.sign_in("bob")).text
    assert world.machine.made == ["alice"]


def test_a_file_is_taken_as_windows_writes_it(own_world: World) -> None:
    assert add(own_world, file=make_key("from-a-file").encode("utf-16")).status_code == 303
    assert list_keys(own_world)[0].label == "from-a-file"
    both = add(own_world, key=make_key(), file=make_key().encode())
    assert both.status_code == 422 and "a pasted key and a file" in both.text
    assert add(own_world, file=b"\x89PNG\xff\xff").status_code == 422


def test_my_address_is_that_of_the_request(own_world: World) -> None:
    page = own_world.ask("GET", "/account", cookie=own_world.sign_in("alice")).text
    assert "my address now (192.0.2.7)" in page
    add(own_world, key=make_key(), source="here")
    assert list_keys(own_world)[0].sources == ("192.0.2.7/32",)


def test_an_end_of_ones_own(own_world: World) -> None:
    add(own_world, key=make_key(), ends="days", days="5")
    (key,) = list_keys(own_world)
    assert key.expires == key.created + timedelta(days=5)
    with own_world.store.begin() as tx:
        tx.delete_ssh_key("alice", key.id)
        tx.add_ssh_key(replace(key, expires=now() - timedelta(days=1)))
    assert "expired" in own_world.ask("GET", "/account", cookie=own_world.sign_in("alice")).text


@pytest.mark.parametrize(
    ("form", "field", "words"),
    [
        ({"source": "networks"}, "networks", "From which networks?"),
        ({"source": "networks", "networks": EVIL}, "networks", "is no network"),
        ({"source": "everywhere", "networks": "10.0.0.0/8"}, "networks", "written, but not chosen"),
        ({"source": "elsewhere"}, "", "From where is the key good?"),
        ({"ends": "days"}, "days", "After how many days"),
        ({"ends": "days", "days": "0"}, "days", "After how many days"),
        ({"ends": "days", "days": "99999"}, "days", "3650 days"),
        ({"ends": "0", "days": "5"}, "days", "written, but not chosen"),
        ({"ends": "1"}, "days", "After how many days"),
        ({"label": "a\tb"}, "label", "one line"),
    ],
)
def test_what_is_refused_leaves_the_form_filled(world: World, form: dict[str, str], field: str, words: str) -> None:
    text, before = make_key("kept"), list_keys(world)
    answer = add(world, key=text, **form)
    assert answer.status_code == 422 and words in answer.text
    assert text.split()[1] in answer.text, "the key needs not be pasted again"
    if field:
        part = answer.text.rpartition(f'<input name="{field}"')[2].partition(">")[0]
        assert 'aria-invalid="true"' in part
    assert EVIL not in answer.text and list_keys(world) == before


def test_a_private_half_is_never_sent_back_nor_kept(own_world: World) -> None:
    world = own_world
    answers = [
        add(world, key=PRIVATE),
        add(world, file=PRIVATE.encode()),
        add(world, key=PRIVATE, ends="days", days="no"),  # whatever else is wrong too
        add(world, key=PRIVATE, source="networks"),
        world.ask("POST", "/api/v1/keys", cookie=world.sign_in("alice"), json={"key": PRIVATE, "days": -1}),
    ]
    for answer in answers:
        assert answer.status_code == 422
        assert "private half" in answer.text and "SECRET" not in answer.text
    with world.store.read() as tx:
        assert tx.list_audit(100, None, "") == []


def test_a_key_that_one_has_is_told_by_its_label(own_world: World) -> None:
    text = make_key()
    assert add(own_world, key=text, label=EVIL).status_code == 303
    answer = add(own_world, key=text)
    assert answer.status_code == 409 and "&lt;script&gt;" in answer.text and EVIL not in answer.text


def test_the_api_lists_adds_and_removes(own_world: World) -> None:
    world, cut = own_world, list[str]()
    world.ssh_keys.on_cut = cut.extend
    proof = {"cookie": world.sign_in("alice")}
    body = {"key": make_key("laptop"), "sources": ["10.0.0.0/8", "::1"], "days": 30}
    made = world.ask("POST", "/api/v1/keys", json=body, **proof).json()
    assert (made["label"], made["sources"], made["bits"]) == ("laptop", ["10.0.0.0/8", "::1/128"], 256)
    assert world.ask("GET", "/api/v1/keys", **proof).json() == [made]
    error = world.ask("POST", "/api/v1/keys", json={"key": make_key(), "from": "here"}, **proof).json()["error"]
    assert error["field"] == "from", "a typing error does not pass as everywhere"
    assert world.ask("DELETE", f"/api/v1/keys/{made['id']}", **proof).status_code == 204
    assert world.ask("GET", "/api/v1/keys", **proof).json() == [] and cut == [f"key:{made['id']}"]


def test_the_page_removes(own_world: World) -> None:
    add(own_world, key=make_key())
    path = f"/account/keys/{list_keys(own_world)[0].id}/remove"
    answer = own_world.ask("POST", path, cookie=own_world.sign_in("alice"))
    assert answer.headers["location"] == "/account#keys" and list_keys(own_world) == []
