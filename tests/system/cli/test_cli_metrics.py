"""Figures of a whole Portico: as a Prometheus with the role ``monitor`` scrapes them, from all gateways."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import pytest
from person import Person, TerminalClient
from prometheus_client.parser import text_string_to_metric_families
from running import RunningPortico, wait_until

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

Figures = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scrape(portico: RunningPortico, token: str) -> Figures:
    """Return all samples by name and labels."""
    answer = httpx.get(f"{portico.url}/api/v1/metrics", headers={"Authorization": f"Bearer {token}"}, trust_env=False)
    answer.raise_for_status()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def add_up(figures: Figures, name: str, **labels: str) -> float:
    """Return the sum of a figure over all gateways."""
    wanted = set(labels.items())
    return sum(value for (found, having), value in figures.items() if found == name and wanted <= set(having))


def test_a_monitor_sees_what_all_gateways_carry(portico_factory: Callable[..., RunningPortico]) -> None:
    portico = portico_factory(settings={"gateways": 2})
    watcher, alice = portico.user("watcher"), portico.user("alice")
    portico.cli("user", "role", portico.get_name("watcher"), "monitor")  # ends the sign-in
    with Person(portico.url) as again:
        assert again.sign_in(portico.get_name("watcher"), "correct horse battery staple").status_code == 303
        token = again.http.post("/api/v1/tokens", json={"label": "prometheus"}).raise_for_status().json()["token"]
    assert watcher.http.get("/api/v1/me").status_code == 401
    status = json.loads(portico.cli("status", "--json").stdout)
    pids = {str(pid) for name, pid in status["processes"].items() if name.startswith("gateway")}
    before = scrape(portico, token)
    up = {dict(labels)["gateway"]: value for (name, labels), value in before.items() if name == "portico_gateway_up"}
    assert up == dict.fromkeys(pids, 1)
    session = alice.wait(alice.start("terminal", memory_gb=0.25)["id"])["id"]
    connections = [alice.open_stream(f"/sessions/{session}/stream") for _ in range(3)]
    client = TerminalClient(connections[0])
    client.type("echo counted-$((40+2))\n")
    client.wait(lambda text: "counted-42" in text)
    assert httpx.get(portico.url, headers={"Host": "elsewhere"}, trust_env=False).status_code == 421
    during = scrape(portico, token)

    def grown(name: str, **labels: str) -> float:
        return add_up(during, name, **labels) - add_up(before, name, **labels)

    assert grown("portico_gateway_streams_open", kind="pty") == 3
    assert grown("portico_gateway_streams_total", kind="pty") == 3
    assert grown("portico_gateway_connections_open") >= 3
    assert grown("portico_gateway_requests_total") > 3
    assert grown("portico_gateway_bytes_total", direction="in") > 0
    assert grown("portico_gateway_bytes_total", direction="out") > 0
    assert grown("portico_gateway_authorisation_seconds_count") >= 3
    assert grown("portico_gateway_stream_opening_seconds_count") == 3
    assert grown("portico_gateway_refusals_total", reason="421") == 1
    assert grown("portico_sessions", state="ready", app="terminal") == 1
    assert add_up(during, "portico_agents") >= 1
    for connection in connections:
        connection.close()
    wait_until(
        lambda: add_up(scrape(portico, token), "portico_gateway_streams_open", kind="pty") == 0, 10, "no open stream"
    )
    portico.cli("user", "role", portico.get_name("watcher"), "user")  # ends the token
    with pytest.raises(httpx.HTTPStatusError, match="401"):
        scrape(portico, token)
