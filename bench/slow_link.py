#!/usr/bin/env python3
"""A desktop over a slow link: what a key takes to be seen in Chromium while a picture like a film moves beside it.

    python bench/slow_link.py
    python bench/slow_link.py --rates 1 4 --keys 20

As root, in the Python of Portico's venv-test. The link is a line of this machine that passes on so many bits a second
and keeps nothing itself, so whatever waits does so at the gateway. For each rate: the lag of a key, the picture's
quality that the page has come to, what the gateway's socket holds at most, and how much goes over the link.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / path) for path in ("src", "tests/support", "tests/browser")]

from playwright.sync_api import sync_playwright  # noqa: E402
from running import RunningPortico, find_reason_to_skip  # noqa: E402
from slow_desktop import LAG, LinkedLine, picture_shown, read_queued_bytes  # noqa: E402
from visitor import Visitor  # noqa: E402

LAG_MOST_MS: Final = 30_000


def measure(page: Any, line: LinkedLine, port: int, rate: float, keys: int, settle_s: float) -> str:
    """Return a line of figures for one rate, in Mbit/s."""
    line.down.bytes_per_s = rate * 1e6 / 8
    page.wait_for_timeout(settle_s * 1000)
    lags, queued, begin = [], 0, time.monotonic()
    for _ in range(keys):
        lags.append(page.evaluate(LAG, LAG_MOST_MS))
        queued = max(queued, read_queued_bytes(port))
        page.wait_for_timeout(400)
    lags = sorted(LAG_MOST_MS if lag < 0 else lag for lag in lags)
    quality = page.evaluate("porticoDesktop.qualityLevel")
    p95 = lags[min(len(lags) - 1, int(len(lags) * 0.95))]
    return (
        f"{rate:6g} Mbit/s  key to pixel p50 {statistics.median(lags):6.0f} ms  p95 {p95:6.0f} ms  quality {quality}"
        f"  queued {queued / 1000:6.0f} KB  ({time.monotonic() - begin:.0f} s)"
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=float, nargs="+", default=[100, 4, 1, 0.5, 4, 100], metavar="MBIT")
    parser.add_argument("--keys", type=int, default=12)
    parser.add_argument("--settle", type=float, default=12.0, metavar="S", help="before each measurement")
    parser.add_argument("--fps", type=float, default=15.0)
    parser.add_argument("--quality", default="auto", choices=["auto", "9", "6", "2"], help="what the menu is set to")
    options = parser.parse_args()
    if reason := find_reason_to_skip():
        sys.exit(reason)
    portico = RunningPortico()
    try:
        portico.start()
        with LinkedLine(portico.port) as line, sync_playwright() as playwright:
            chromium = playwright.chromium.launch(
                executable_path=shutil.which("chromium"),
                args=[
                    "--no-sandbox",
                    "--disable-gpu",
                    f"--host-resolver-rules=MAP localhost:{portico.port} 127.0.0.1:{line.port}",
                ],
            )
            visitor = Visitor(chromium, portico.url, portico.admin_link)
            session_id = visitor.start("Desktop (light)")
            visitor.wait_desktop(colours=10)
            visitor.page.select_option("[data-do=quality]", options.quality)
            with picture_shown(portico.admin_name, session_id, options.fps):
                visitor.page.wait_for_timeout(4000)
                for rate in options.rates:
                    print(measure(visitor.page, line, portico.port, rate, options.keys, options.settle), flush=True)
            chromium.close()
    finally:
        portico.destroy()


if __name__ == "__main__":
    main()
