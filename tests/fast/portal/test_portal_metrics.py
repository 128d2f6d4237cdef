"""Figures for Prometheus: whole, parsed by Prometheus' own parsers, documented, and shown to those who may see them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from portal_rig import World
from prometheus_client.parser import text_string_to_metric_families

from portico.model import Role
from portico.portal.gateway_figures import GATEWAY, SERIES_MAX, iter_gateways, parse_buckets, parse_name
from portico.portal.metrics import Figures, Metrics

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs/metrics.md"
SERVERS = Path(os.environ.get("PORTICO_TEST_INSTALL_DIR") or "/opt/portico") / "servers/usr/bin"

ANSWER: dict[str, Any] = {
    "pid": 17,
    "started": 1_790_000_000.5,
    "counters": {
        "connections_total": 5,
        "requests_total": 9,
        "cuts_total": 1,
        'bytes_total{direction="in"}': 100,
        'bytes_total{direction="out"}': 2**40,
        'streams_total{kind="rfb"}': 3,
        'refusals_total{reason="404"}': 2,
    },
    "gauges": {"connections_open": 4, 'streams_open{kind="rfb"}': 2, 'streams_open{kind="pty"}': 1},
    "histograms": {
        known.name: {"bounds": [0.001, 0.1], "counts": [3, 2, 1], "sum": 4.5} for known in GATEWAY["histograms"]
    },
}
FIGURES = Figures(
    sessions={("ready", "terminal"): 2, ("ended", "jupyter"): 7},
    sign_ins=3,
    feeds=1,
    agents=2,
    clusters={
        "local": {
            "cores": 8, "cores_held": 2.5, "memory_bytes": 10**10, "memory_held_bytes": 0, "jobs_running": 2,
            "jobs_queued": 0,
        }
    },
)  # fmt: skip


def render(gateways: Mapping[int, Any] | None = None) -> str:
    metrics = Metrics()
    metrics.sign_ins.labels("ok").inc()
    metrics.requests.labels("/", "GET", "200").inc()
    metrics.latency.labels("/").observe(0.01)
    metrics.lag.observe(0.002)
    return metrics.render(FIGURES, {17: ANSWER, 18: None} if gateways is None else gateways).decode()


def read(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    found: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
    for family in text_string_to_metric_families(text):
        assert family.type in ("counter", "gauge", "histogram"), family
        assert family.documentation
        for sample in family.samples:
            key = sample.name, tuple(sorted(sample.labels.items()))
            assert key not in found, f"{key} is there twice"
            found[key] = sample.value
    return found


def test_what_is_rendered_is_what_prometheus_reads() -> None:
    found = read(render())
    assert found["portico_sign_ins_total", (("result", "ok"),)] == 1
    assert found["portico_sessions", (("app", "terminal"), ("state", "ready"))] == 2
    assert found["portico_cluster_cores_held", (("cluster", "local"),)] == 2.5
    assert found["portico_gateway_up", (("gateway", "17"),)] == 1
    assert found["portico_gateway_up", (("gateway", "18"),)] == 0
    assert found["portico_gateway_bytes_total", (("direction", "out"), ("gateway", "17"))] == 2**40
    assert found["portico_gateway_connections_open", (("gateway", "17"),)] == 4
    assert found["portico_gateway_connections_total", (("gateway", "17"),)] == 5
    buckets = [
        found["portico_gateway_authorisation_seconds_bucket", (("gateway", "17"), ("le", bound))]
        for bound in ("0.001", "0.1", "+Inf")
    ]
    assert buckets == [3, 5, 6]
    assert found["portico_gateway_authorisation_seconds_count", (("gateway", "17"),)] == 6
    assert found["portico_gateway_authorisation_seconds_sum", (("gateway", "17"),)] == 4.5


def test_the_page_has_a_row_for_each_figure_and_none_besides() -> None:
    page = {
        match[1]: (match[2], set(re.findall(r"`(\w+)`", match[3])))
        for match in re.finditer(r"^\| `(portico_\w+)` \| (\w+) \| ([^|]*)\|", PAGE.read_text(), re.MULTILINE)
    }
    real = {}
    for family in text_string_to_metric_families(render()):
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        real[family.name + ("_total" if family.type == "counter" else "")] = (family.type, labels)
    if "portico_process_open_fds" not in real:  # /proc/self/fd is root's in a process that dumps no core
        page.pop("portico_process_open_fds")
    assert page == real


def find_promtool() -> str:
    found = SERVERS / "promtool"
    path = str(found) if found.exists() else shutil.which("promtool")
    return path or pytest.skip("promtool is not here; `./portico test` fetches it from Debian")


def test_promtool_agrees() -> None:
    done = subprocess.run([find_promtool(), "check", "metrics"], input=render(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_pages_samples_are_right(tmp_path: Path) -> None:
    promtool = find_promtool()
    samples = dict(re.findall(r"^```yaml (\w+)\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE))
    (tmp_path / "alerts.yml").write_text(samples["alerts"])
    token = tmp_path / "token"
    token.write_text("x")
    (tmp_path / "prometheus.yml").write_text(
        samples["scrape"].replace("/etc/prometheus/portico.token", str(token)) + "rule_files: [alerts.yml]\n"
    )
    done = subprocess.run([promtool, "check", "config", "prometheus.yml"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    named = set(re.findall(r"\bportico_\w+", samples["alerts"]))
    known = {sample.name for family in text_string_to_metric_families(render()) for sample in family.samples}
    known |= {family.name for family in text_string_to_metric_families(render())}
    assert named <= known, named - known


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"started": "yesterday", "counters": [], "gauges": None, "histograms": 7},
        {"counters": {"connections_total": "many", 'bytes_total{direction="in"': 1, "requests_total": True}},
        {"counters": {"connections_total": 1e300, "requests_total": float("nan"), "no_such_total": 1}},
        {"counters": {'bytes_total{gateway="1"}': 1, 'bytes_total{le="1"}': 1, "bytes_total": 1}},
        {
            "gauges": {
                'streams_open{kind="a\nb"}': 1,
                'streams_open{kind="a\\"}': 1,
                'streams_open{kind="' + "x" * 101 + '"}': 1,
            }
        },
        {"histograms": {"authorisation_seconds": {"bounds": [1], "counts": [1], "sum": 1}}},
        {"histograms": {"authorisation_seconds": {"bounds": [2, 1], "counts": [1, 1, 1], "sum": 1}}},
        {"histograms": {"authorisation_seconds": {"bounds": [1], "counts": [1, -1], "sum": 1}}},
        {"histograms": {"authorisation_seconds": {"bounds": [1], "counts": [1, "1"], "sum": None}}},
    ],
)
def test_a_gateway_that_answers_nonsense_spoils_nothing(answer: dict[str, Any]) -> None:
    text = render({17: ANSWER, 99: answer})
    found = read(text)
    assert found["portico_gateway_connections_total", (("gateway", "17"),)] == 5
    strange = {name for name, labels in found if ("gateway", "99") in labels}
    assert strange == {"portico_gateway_up"}


def test_a_gateway_with_endless_labels_is_cut_short() -> None:
    endless = {"gauges": {f'streams_open{{kind="k{number}"}}': number for number in range(10 * SERIES_MAX)}}
    samples = [sample for metric in iter_gateways({1: endless}) for sample in metric.samples]
    assert len(samples) <= SERIES_MAX + 2


def test_names_and_buckets() -> None:
    assert parse_name('a{b="c",d="e f"}') == ("a", {"b": "c", "d": "e f"})
    assert parse_name("a") == ("a", {})
    assert parse_name("a{}") == ("a", {})
    assert parse_name('a{b="c"} 1') == ("", {})
    assert parse_name('A"') == ("", {})
    assert parse_buckets({"bounds": [], "counts": [3], "sum": 0}) == [("+Inf", 3)]


def ask(world: World, **more: Any) -> Any:
    return world.ask("GET", "/api/v1/metrics", **more)


def test_a_monitor_sees_figures_and_no_more(own_world: World) -> None:
    own_world.add_user("prometheus", Role.MONITOR)
    answer = ask(own_world, bearer=own_world.make_token("prometheus"))
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert own_world.ask("GET", "/api/v1/users", bearer=own_world.make_token("prometheus")).status_code == 403
    assert own_world.ask("GET", "/api/v1/audit", bearer=own_world.make_token("prometheus")).status_code == 403
    assert ask(own_world, bearer=own_world.make_token("alice")).status_code == 403


def test_figures_move_with_what_happens_and_name_nobody(own_world: World) -> None:
    cookie = own_world.sign_in("root-of-all")

    def look() -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        return read(ask(own_world, cookie=cookie).text)

    before = look()
    session = own_world.start("alice")
    own_world.ask("POST", "/sign-in", data={"name": "alice", "password": "not the password"})
    own_world.ask("GET", f"/sessions/{session.id}", cookie=own_world.sign_in("alice"))
    own_world.ask("GET", "/nothing/of/a-strange-name", cookie=cookie)
    after = look()

    def grown(name: str, **labels: str) -> float:
        key = name, tuple(sorted(labels.items()))
        return after.get(key, 0) - before.get(key, 0)

    assert grown("portico_sessions", state="ready", app="shell") == 1
    assert grown("portico_sign_ins_total", result="not-signed-in") == 1
    assert grown("portico_requests_total", route="/sessions/{session_id}", method="GET", status="200") == 1
    assert grown("portico_request_seconds_count", route="/sessions/{session_id}") == 1
    assert grown("portico_requests_total", route="none", method="GET", status="404") == 1
    assert after["portico_sign_ins_open", ()] >= 2
    text = ask(own_world, cookie=cookie).text
    for secret in ("alice", session.id, "a-strange-name", cookie):
        assert secret not in text
