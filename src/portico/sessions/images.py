"""Container images of the catalog: which there are, who runs them here, and what a session's folder needs for one.

The portal lists names and never opens an image: that is done inside the session, as its user (agent/container.py).
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from portico.config import PLAIN_PATH
from portico.model import App, Container, Field, FieldKind, Session

FIELD: Final = "image"
"""The form field: a session's image is one of its values, so that it is kept and found again like the others."""
RUNTIMES: Final = ("ch-run", "apptainer", "singularity")
SUFFIXES: Final = (".sif", ".sqfs", ".sqsh", ".squashfs")
LISTED: Final = 200
WRAPPER: Final = '#!/bin/sh\nexec "$PORTICO_PYTHON" -I "$PORTICO_CONTAINER" -- "$PORTICO_SESSION_DIR/inside.sh"\n'
NAMESPACE_SWITCHES: Final = (
    ("user/max_user_namespaces", "0"),
    ("kernel/unprivileged_userns_clone", "0"),
)
"""By which a kernel, or Debian's, keeps ordinary users from containers; below /proc/sys."""


def is_bind(text: str) -> bool:
    """Return whether a text is a path, or two with a colon between."""
    source, colon, target = text.partition(":")
    return bool(PLAIN_PATH.fullmatch(source)) and bool(PLAIN_PATH.fullmatch(target) if colon else not target)


def list_images(folders: Sequence[str]) -> list[str]:
    """Return what stands in the folders and looks like an image by its name, LISTED at most."""
    found = []
    for folder in folders:
        try:
            with os.scandir(folder) as entries:
                found += [entry.path for entry in entries if entry.name.endswith(SUFFIXES) or entry.is_dir()]
        except OSError:
            continue  # of another cluster, say: its images can still be named
    return sorted(path for path in found if PLAIN_PATH.fullmatch(path))[:LISTED]


def find_switch(root: Path = Path("/proc/sys")) -> str:
    """Return the kernel's setting that forbids containers to ordinary users; empty where none does."""
    for name, off in NAMESPACE_SWITCHES:
        try:
            if (root / name).read_text().strip() == off:
                return f"{name.replace('/', '.')} = {off}"
        except OSError:
            continue
    return ""


class Images:
    """What there is on this machine.

    Args:
        folders: The setting ``image_dirs``.
        path: Where programs are looked for.
    """

    def __init__(self, folders: Sequence[str], path: str) -> None:
        self._folders = list(folders)
        self._path = path

    def complete(self, app: App) -> App:
        """Return an app with the field by which its image is chosen, and with what is missing for it."""
        container = app.container
        assert container is not None
        if not container.images and not self._folders:
            missing = "No images: neither this app nor the setting image_dirs names any."
            return replace(app, missing=app.missing or missing) if container.required else app
        missing = self._find_missing(container) if container.required else ""
        return replace(app, fields=(*app.fields, self._make_field(container)), missing=app.missing or missing)

    def _find_missing(self, container: Container) -> str:
        names = RUNTIMES if container.runtime == "auto" else (container.runtime,)
        found = [name for name in names if shutil.which(name, path=self._path)]
        if not found:
            return f"Not installed here: {' or '.join(names)}."
        if found == ["ch-run"] and (switch := find_switch()):
            return f"ch-run can run nothing here: the kernel has {switch}."
        return ""

    def _make_field(self, container: Container) -> Field:
        images = container.images or list_images(self._folders)
        default = images[0] if images and container.required else ""
        kind = FieldKind.CHOICE if container.images and container.required else FieldKind.TEXT
        allowed = "|".join(map(re.escape, container.images)) if container.images else self._render_pattern()
        where = "One of those proposed" if container.images else f"A path below {' or '.join(self._folders)}"
        note = "" if container.required else " Empty: in this machine's own."
        help_ = f"{where}; it runs in the system that is there.{note}" if kind is FieldKind.TEXT else "It runs in that."
        return Field(
            FIELD,
            "Container image",
            kind,
            default=default,
            choices=tuple(images),
            pattern=allowed,
            help=help_,
            required=container.required,
        )

    def _render_pattern(self) -> str:
        roots = "|".join(re.escape(folder.rstrip("/")) for folder in self._folders)
        return f"(?:{roots}){PLAIN_PATH.pattern}"


def find_field(app: App) -> Field | None:
    """Return the field by which an app's image is chosen; None where there is nothing to choose from."""
    return next((field for field in app.fields if field.name == FIELD), None) if app.container else None


def render_files(app: App, session: Session, folders: Sequence[str]) -> Mapping[str, str]:
    """Return the files of a session's folder: the job script, and what it needs where there is an image."""
    container = app.container
    if container is None or not session.values.get(FIELD):
        return {"job.sh": app.script}
    settings = {
        "runtime": container.runtime,
        "binds": list(container.binds),
        "allowed": list(container.images or folders),
    }
    scripts = {"job.sh": WRAPPER, "inside.sh": app.script} if container.inside else {"job.sh": app.script}
    return {**scripts, "container.json": json.dumps(settings)}
