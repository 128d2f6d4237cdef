"""The catalog: apps as data. Reads folders with an ``app.toml`` and a job script; docs/apps.md describes the file.

A malformed folder disables that one app; administrators are shown why. Nothing in it is ever run by the portal.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from portico.errors import Invalid, NotFound, PorticoError
from portico.model import App, Field, FieldKind, Range, Reach

APP_ID: Final = re.compile(r"[a-z][a-z0-9-]{0,40}\Z")
FIELD_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,40}\Z")
TEXT_LIMIT: Final = 200
JOB_PATH: Final = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin:/usr/games"

_KEYS: Final = {
    "name", "summary", "reach", "icon", "order", "script", "install", "optional", "ready", "needs", "resources",
    "fields",
}  # fmt: skip


class Catalog:
    """The apps of some folders of app folders.

    Args:
        folders: A later one replaces an app of the same id.
        install_dir: Where programs named with a slash are looked for.
    """

    def __init__(self, folders: Sequence[Path], install_dir: Path) -> None:
        self._folders = list(folders)
        self._install_dir = install_dir
        self._seen: dict[Path, float] = {}
        self._apps: dict[str, App] = {}
        self._paths: dict[str, Path] = {}
        self.errors: list[tuple[str, PorticoError]] = []
        self._load()

    def list_apps(self) -> list[App]:
        """Return all apps in order, those that can't be started too."""
        self._load()
        apps = [replace(app, missing=self._find_missing(app.id)) for app in self._apps.values()]
        return sorted(apps, key=lambda app: (app.order, app.name))

    def get(self, app_id: str) -> App:
        """Return an app.

        Raises:
            NotFound: There is none of that id.
        """
        self._load()
        app = self._apps.get(app_id)
        if app is None:
            raise NotFound(f"There is no app {app_id[:40]!r}.", hint="Look at the home page, or `portico app list`.")
        return replace(app, missing=self._find_missing(app.id))

    def read_icon(self, app_id: str) -> str:
        """Return an app's icon as SVG text; empty where it has none."""
        app = self.get(app_id)
        path = self._paths[app_id] / app.icon
        try:
            return path.read_text() if app.icon else ""
        except (OSError, UnicodeDecodeError):
            return ""

    def _load(self) -> None:
        found = {path: _find_mtime(path) for folder in self._folders for path in sorted(folder.glob("*/app.toml"))}
        if found == self._seen:
            return
        apps: dict[str, App] = {}
        self._needs: dict[str, list[str]] = {}
        self._paths, self.errors = {}, []
        for path in found:
            try:
                app, needs = parse_app(path)
                apps[app.id], self._needs[app.id], self._paths[app.id] = app, needs, path.parent
            except PorticoError as error:
                self.errors.append((str(path), error))
        self._apps, self._seen = apps, found

    def _find_missing(self, app_id: str) -> str:
        missing = []
        for program in self._needs[app_id]:
            where = str(self._install_dir / program) if "/" in program else shutil.which(program, path=JOB_PATH)
            if where is None or not os.access(where, os.X_OK):
                missing.append(program)
        return f"Not installed here: {', '.join(missing)}." if missing else ""


def _find_mtime(path: Path) -> float:
    try:
        return max(path.stat().st_mtime, *(p.stat().st_mtime for p in path.parent.iterdir()))
    except OSError:
        return 0.0


def parse_app(path: Path) -> tuple[App, list[str]]:
    """Return the app that an ``app.toml`` describes, and the programs that it needs.

    Raises:
        Invalid: The file is no such description; the message names the key.
    """
    try:
        value = tomllib.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise Invalid("The file can't be read.", why=str(error)) from error
    reader = _Reader(value)
    app_id = path.parent.name
    if not APP_ID.match(app_id):
        raise Invalid("The folder's name must be small letters, digits and dashes.")
    if unknown := value.keys() - _KEYS:
        raise Invalid(f"The key {sorted(unknown)[0]!r} does not exist.", hint="docs/apps.md lists them.")
    try:
        reach = Reach(reader.text("reach"))
    except ValueError:
        raise Invalid(f"reach must be one of {', '.join(Reach)}.") from None
    script = path.parent / reader.text("script", "job.sh")
    try:
        job = script.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"The script {script.name} can't be read.", why=str(error)) from error
    if not job.startswith("#!"):
        raise Invalid(f"The script {script.name} must begin with #! and an interpreter.")
    ready, needs, resources = (_Reader(reader.table(name)) for name in ("ready", "needs", "resources"))
    programs = needs.value.get("programs", [])
    if not isinstance(programs, list) or not all(isinstance(program, str) for program in programs):
        raise Invalid("needs.programs must be a list of names.")
    app = App(
        id=app_id,
        name=reader.text("name"),
        summary=reader.text("summary", ""),
        reach=reach,
        script=job,
        icon=reader.text("icon", ""),
        order=int(reader.number("order", 100)),
        cores=resources.range("cores", Range(1, 1, 1)),
        memory_gb=resources.range("memory_gb", Range(1, 1, 1)),
        hours=resources.range("hours", Range(8, 1, 24)),
        fields=tuple(_parse_field(item) for item in reader.value.get("fields", [])),
        ready_path=ready.text("path", ""),
        ready_timeout_s=ready.number("timeout_s", 60),
        install_hint=reader.text("install", ""),
        hidden=bool(reader.value.get("optional", False)),
    )
    return app, programs


class _Reader:
    def __init__(self, value: Mapping[str, Any]) -> None:
        self.value = value

    def text(self, name: str, default: str | None = None) -> str:
        value = self.value.get(name, default)
        if not isinstance(value, str) or (default is None and not value):
            raise Invalid(f"{name} must be a text." if name in self.value else f"{name} is missing.")
        return value

    def number(self, name: str, default: float) -> float:
        value = self.value.get(name, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
            raise Invalid(f"{name} must be a number, not below 0.")
        return value

    def table(self, name: str) -> Mapping[str, Any]:
        value = self.value.get(name, {})
        if not isinstance(value, dict):
            raise Invalid(f"[{name}] must be a table.")
        return value

    def range(self, name: str, default: Range) -> Range:
        if name not in self.value:
            return default
        table = _Reader(self.table(name))
        found = Range(table.number("default", 1), table.number("minimum", 0), table.number("maximum", 1e9))
        if not 0 < found.minimum <= found.default <= found.maximum:
            raise Invalid(f"{name}: it must be 0 < minimum <= default <= maximum.")
        return found


def _parse_field(value: Any) -> Field:
    if not isinstance(value, dict):
        raise Invalid("[[fields]] must be tables.")
    reader = _Reader(value)
    name = reader.text("name")
    if not FIELD_NAME.match(name):
        raise Invalid(f"The field name {name!r} must be small letters, digits and _.")
    try:
        kind = FieldKind(reader.text("kind"))
        re.compile(reader.text("pattern", ""))
    except (ValueError, re.error) as error:
        raise Invalid(f"field {name}: {error}.") from error
    choices = tuple(str(choice) for choice in value.get("choices", []))
    if kind is FieldKind.CHOICE and not choices:
        raise Invalid(f"field {name}: a choice needs choices.")
    field = Field(
        name=name,
        label=reader.text("label", name),
        kind=kind,
        default=str(value.get("default", choices[0] if choices else "")),
        choices=choices,
        minimum=reader.number("minimum", 0) if "minimum" in value else None,
        maximum=reader.number("maximum", 0) if "maximum" in value else None,
        pattern=reader.text("pattern", ""),
        help=reader.text("help", ""),
    )
    check_value(field, field.default)
    return field


def check_value(field: Field, value: str) -> str:
    """Return the value of a form field as the job gets it.

    Raises:
        Invalid: It is not one that the field takes.
    """

    def refuse(why: str) -> Invalid:
        return Invalid(f"{field.label}: {why}", field=field.name)

    if len(value) > TEXT_LIMIT:
        raise refuse(f"at most {TEXT_LIMIT} characters.")
    if any(ord(character) < 32 or ord(character) == 127 for character in value):
        raise refuse("no line breaks and no control characters.")
    if field.kind is FieldKind.CHOICE and value not in field.choices:
        raise refuse(f"one of {', '.join(field.choices)}.")
    if field.kind is FieldKind.CHECKBOX:
        return "1" if value in ("1", "on", "true") else ""
    if field.kind is FieldKind.NUMBER:
        try:
            number = float(value)
        except ValueError:
            raise refuse("a number.") from None
        if not math.isfinite(number):
            raise refuse("a number.")
        if field.minimum is not None and number < field.minimum:
            raise refuse(f"not below {field.minimum:g}.")
        if field.maximum is not None and number > field.maximum:
            raise refuse(f"not above {field.maximum:g}.")
    if field.pattern and value and not re.fullmatch(field.pattern, value):
        raise refuse(field.help or "it does not have the right form.")
    return value
