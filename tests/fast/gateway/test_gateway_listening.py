"""Which Host headers are ours, and whose word about addresses is taken."""

from __future__ import annotations

import pytest

from portico.config import load_config
from portico.gateway.head import parse_request
from portico.gateway.limits import raise_descriptor_limit
from portico.gateway.listening import Listening, find_household, make_listening, normalise_address


def listens(apps_only: bool = False, **settings: object) -> Listening:
    return make_listening(load_config(None, run_dir="/run/x", state_dir="/x", install_dir="/x", **settings), apps_only)


def test_hosts_of_a_machine_of_ones_own() -> None:
    portal, apps = listens(port=8000), listens(True, port=8000)
    for host in ("localhost:8000", "LOCALHOST:8000", "127.0.0.1:8000", "[::1]:8000"):
        assert portal.find_listener(host) == "portal" and apps.find_listener(host) == ""
    for host in ("localhost:8001", "[::1]:8001"):
        assert portal.find_listener(host) == "" and apps.find_listener(host) == "apps"
    for host in (
        "localhost",
        "localhost:80",
        "localhost:80000",
        "localhost.:8000",
        "evil.localhost:8000",
        "127.1:8000",
        "",
    ):
        assert portal.find_listener(host) == "" and apps.find_listener(host) == ""


def test_hosts_behind_a_front_server() -> None:
    portal = listens(host="hpc.example.org", port=8000, public_url="https://hpc.example.org")
    assert portal.find_listener("hpc.example.org") == portal.find_listener("hpc.example.org:443") == "portal"
    for host in (
        "hpc.example.org:8000",
        "hpc.example.org:80",
        "localhost:8000",
        "xhpc.example.org",
        "hpc.example.org.evil",
    ):
        assert portal.find_listener(host) == ""


def test_a_wildcard_domain() -> None:
    portal = listens(host="hpc.example.org", port=8000, apps_domain="apps.example.org")
    assert portal.find_listener("hpc.example.org:8000") == "portal"
    assert portal.find_listener("kabc123.apps.example.org:8000") == "apps"
    for host in (
        "apps.example.org:8000", ".apps.example.org:8000", "a.b.apps.example.org:8000", "-a.apps.example.org:8000",
        "kabc.apps.example.org", "kabc.apps.example.org:80", "k\xe9.apps.example.org:8000", "kabc.apps.example.org.evil:8000",
        "kabc.xapps.example.org:8000", "k_.apps.example.org:8000",
    ):  # fmt: skip
        assert portal.find_listener(host) == "", host


@pytest.mark.parametrize(
    ("forwarded", "address"),
    [
        ([], "10.0.0.1"),
        (["1.2.3.4"], "1.2.3.4"),
        (["6.6.6.6, 1.2.3.4"], "1.2.3.4"),
        (["6.6.6.6", "1.2.3.4, 10.0.0.2"], "1.2.3.4"),
        (["1.2.3.4, nonsense"], "10.0.0.1"),
        (["10.0.0.2"], "10.0.0.1"),
        (["::ffff:1.2.3.4"], "1.2.3.4"),
        (["2001:DB8::0:1"], "2001:db8::1"),
    ],
)
def test_whose_address_it_is(forwarded: list[str], address: str) -> None:
    lines = "".join(f"X-Forwarded-For: {value}\r\n" for value in forwarded)
    request = parse_request(f"GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-Proto: https\r\n{lines}\r\n".encode())
    listening = Listening(frozenset(), frozenset(), "", "http", frozenset({"10.0.0.0/24"}))
    assert listening.find_peer(request, "10.0.0.1").address == address
    assert listening.find_peer(request, "10.0.0.1").scheme == "https"
    stranger = listening.find_peer(request, "10.0.1.1")
    assert (stranger.address, stranger.scheme) == ("10.0.1.1", "http")


def test_addresses_have_one_form() -> None:
    assert normalise_address("::ffff:10.0.0.1") == "10.0.0.1" and normalise_address("fe80::1%eth0") == "fe80::1"
    assert normalise_address("nonsense") == ""
    assert find_household("10.0.0.1") == "10.0.0.1"
    assert find_household("2001:db8::1") == find_household("2001:db8::2") != find_household("2001:db8:0:1::1")


def test_as_many_connections_as_descriptors_allow() -> None:
    assert raise_descriptor_limit(100) == 100
    assert raise_descriptor_limit(10**9) < 10**9
