"""The container image that tests run apps in, and whether this machine can."""

from __future__ import annotations

import shutil
import subprocess

from running import INSTALL_DIR, find_reason_to_skip

from portico.sessions.images import find_switch

IMAGES = INSTALL_DIR / "images"
IMAGE = IMAGES / "debian"


def find_reason_to_skip_containers() -> str:
    """Return why no container can be run here by an ordinary user; empty where it can."""
    if reason := find_reason_to_skip():
        return reason
    if not shutil.which("ch-run"):
        return "needs ch-run (charliecloud-runtime)"
    if not (IMAGE / "bin/sh").exists():
        return f"needs the image {IMAGE}: run ./portico test"
    tried = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "true"], user=65534, group=65534, extra_groups=[],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if tried.returncode:
        return f"ordinary users can't run containers here: {find_switch() or tried.stderr.strip()}"
    return ""
