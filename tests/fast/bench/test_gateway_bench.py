"""The benchmark's own sums, and that it still runs: a figure is never looked at here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path.append(str(ROOT / "bench"))

from gateway_bench import plot, report  # noqa: E402
from gateway_bench.client import parse_frame, render_frame  # noqa: E402
from gateway_bench.figures import Figure, Report, find_percentile, find_spread, interleave  # noqa: E402
from gateway_bench.http import parse_wrk  # noqa: E402

WRK = """Running 1s test @ http://localhost:20000/s/site/small
  Thread Stats   Avg      Stdev     Max   +/- Stdev
  Latency Distribution
     50%  280.00us
     75%    1.20ms
     90%    3.00ms
     99%    1.10s
Requests/sec: 102865.33
"""


def make_figure(**more: object) -> Figure:
    values = {"HAProxy": [100.0, 200.0, 400.0], "Portico": [150.0, 300.0, 800.0]}
    return Figure(**({"part": "stream", "what": "bulk", "unit": "MB/s", "values": values} | more))


def test_a_ratio_is_made_within_its_round() -> None:
    ratio = make_figure().find_ratio("HAProxy")
    assert ratio and (ratio.low, ratio.median, ratio.high) == (1.5, 1.5, 1.75)
    assert make_figure().find_ratio("nobody") is None
    assert make_figure(values={"HAProxy": [0.0], "Portico": [1.0]}).find_ratio("HAProxy") is None


@pytest.mark.parametrize(
    ("more_is_better", "bound", "met"),
    [(True, 1.5, "yes"), (True, 1.6, "unclear"), (True, 1.8, "no"), (False, 1.4, "no")],
)
def test_a_target_is_met_or_not(more_is_better: bool, bound: float, met: str) -> None:
    figure = make_figure(more_is_better=more_is_better, ratios={"HAProxy": bound, "absent": 1.0})
    assert figure.list_targets() == [("HAProxy", bound, met)]
    assert make_figure(limit=299.0).list_targets() == [("", 299.0, "unclear")]


def test_spreads_and_percentiles() -> None:
    assert find_spread([7.0]) == (7.0, 7.0, 7.0)
    assert find_percentile(range(1000), 99) == 990
    assert find_percentile([5.0], 99) == 5.0


def test_no_peer_always_comes_first() -> None:
    order: list[str] = []
    results = interleave(["a", "b", "c"], 3, lambda peer: order.append(peer) or len(order), str)
    assert "".join(order) == "abcbcacab"
    assert results == {"a": [1, 6, 8], "b": [2, 4, 9], "c": [3, 5, 7]}


def test_wrk_is_understood_and_its_errors_are_not_overlooked() -> None:
    assert parse_wrk(WRK) == (102865.33, 0.28, 1100.0)
    for bad in (WRK + "  Non-2xx or 3xx responses: 3\n", WRK + "  Socket errors: connect 0, read 1\n", ""):
        with pytest.raises(ValueError):
            parse_wrk(bad)


def test_frames() -> None:
    for size in (0, 5, 125):
        frame = render_frame(2, bytes(range(size)))
        mask, payload = frame[2:6], frame[6:]
        assert bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload)) == bytes(range(size))
    for size in (0, 125, 126, 65535, 65536):
        header = bytes([0x82]) + (
            bytes([size])
            if size < 126
            else b"\x7e" + size.to_bytes(2, "big")
            if size < 65536
            else b"\x7f" + size.to_bytes(8, "big")
        )
        data = header + bytes(size)
        assert parse_frame(data + b"rest") == ((2, bytes(size)), b"rest")
        assert parse_frame(data[:-1])[0] is None


def test_a_report_survives_json_and_finds_its_place_in_the_page(tmp_path: Path) -> None:
    told = Report(
        {"machine": "2 cores", "peers": "a < b"},
        [make_figure(ratios={"HAProxy": 2.0}, more_is_better=True)],
        ["stream: a note."],
    )
    again = report.parse_json(report.render_json(told))
    assert again == told
    text = report.render_report(again)
    assert "1.50 (1.50–1.75)" in text and "**no**" in text and "- stream: a note." in text
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    for _ in range(2):
        report.write_docs(page, text)
    written = page.read_text()
    assert written.startswith("before\n") and written.endswith("\nafter\n") and "old" not in written
    assert written.count(text) == 1


def test_the_plot_is_xml_and_escapes() -> None:
    from xml.etree import ElementTree

    figure = make_figure(what="app on a Unix socket", ratios={"HAProxy": 1.5}, more_is_better=True)
    drawn = plot.draw(Report({"machine": "2 <cores>", "peers": "a & b"}, [figure], []))
    assert "2 <cores>" in "".join(ElementTree.fromstring(drawn).itertext())
    assert plot.draw(Report({"machine": "", "peers": ""}, [], [])) == ""


def test_it_runs(tmp_path: Path) -> None:
    found = tmp_path / "found.json"
    argv = [sys.executable, str(ROOT / "bench/gateway.py"), "--quick", "--no-install", "--json", str(found), "echo"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    figures = json.loads(found.read_text())["figures"]
    assert {"none", "Portico"} <= set(figures[0]["values"])
