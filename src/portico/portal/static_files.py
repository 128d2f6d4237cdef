"""Static files: our own, and the pinned npm packages below ``<install_dir>/assets``, with a year of caching.

Their URL holds a hash of all of them, so that a new version is a new URL.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope


def render_version(*folders: Path) -> str:
    """Return a short hash of all files of some folders; one that is missing has none."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


class CachedFiles(StaticFiles):
    """Files that never change at their URL."""

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return the file, to be kept."""
        response = await super().get_response(path, scope)
        if response.status_code == 200:
            response.headers["Cache-Control"] = "public, max-age=31536000, immutable"
        return response
