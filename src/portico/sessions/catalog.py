"""The catalog: apps as data. Reads folders with an ``app.toml`` and a job script; docs/apps.md describes the file.

A malformed folder disables that one app; administrators are shown why. Nothing in it is ever run by the portal.
"""

from __future__ import annotations

import math
import os
import re
import shutil
import tomllib
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from portico.config import PLAIN_PATH
from portico.errors import Invalid, NotFound, PorticoError
from portico.model import App, Container, Field, FieldKind, Range, Reach
from portico.sessions.images import FIELD, RUNTIMES, Images, is_bind

APP_ID: Final = re.compile(r"[a-z][a-z0-9-]{0,40}\Z")
FIELD_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,40}\Z")
TEXT_LIMIT: Final = 200
JOB_PATH: Final = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin:/usr/games"

FILE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,60}\Z")
SCRIPT_LIMIT_BYTES: Final = 64 * 1024
"""It goes to the agent in one message (wire.py), with room for the rest."""

_KEYS: Final = {
    "": {
        "name", "summary", "reach", "icon", "order", "script", "install", "optional", "ready", "needs", "resources",
        "fields", "container",
    },
    "ready": {"path", "timeout_s"},
    "needs": {"programs"},
    "resources": {"cores", "memory_gb", "hours"},
    "container": {"script", "images", "binds", "runtime", "required"},
    "range": {"default", "minimum", "maximum"},
    "fields": {"name", "label", "kind", "default", "choices", "minimum", "maximum", "pattern", "help"},
}  # fmt: skip


@dataclass(frozen=True)
class _Read:
    """What the folders held when they were read: never changed, so that threads may share it."""

    seen: Mapping[Path, object]
    apps: Mapping[str, App]
    needs: Mapping[str, tuple[str, ...]]
    folders: Mapping[str, Path]
    errors: tuple[tuple[str, PorticoError], ...]


class Catalog:
    """The apps of some folders of app folders.

    Args:
        folders: A later one replaces an app of the same id.
        install_dir: Where programs named with a slash are looked for.
        image_dirs: Below which container images may be.
    """

    def __init__(self, folders: Sequence[Path], install_dir: Path, image_dirs: Sequence[str] = ()) -> None:
        self._folders = list(folders)
        self._install_dir = install_dir
        self._images = Images(image_dirs, JOB_PATH)
        self._read = _Read({}, {}, {}, {}, ())
        self._load()

    @property
    def errors(self) -> list[tuple[str, PorticoError]]:
        """The files that describe no app, and why; for administrators."""
        return list(self._load().errors)

    def list_apps(self) -> list[App]:
        """Return all apps in order, those that can't be started too."""
        read = self._load()
        apps = [self._complete(read, app) for app in read.apps.values()]
        return sorted(apps, key=lambda app: (app.order, app.name))

    def get(self, app_id: str) -> App:
        """Return an app.

        Raises:
            NotFound: There is none of that id.
        """
        read = self._load()
        app = read.apps.get(app_id)
        if app is None:
            raise NotFound(f"There is no app {app_id[:40]!r}.", hint="Look at the home page, or `portico app list`.")
        return self._complete(read, app)

    def read_icon(self, app_id: str) -> str:
        """Return an app's icon as SVG text; empty where it has none.

        Raises:
            NotFound: There is no such app.
        """
        app = self.get(app_id)
        try:
            return (self._read.folders[app_id] / app.icon).read_text() if app.icon else ""
        except (OSError, UnicodeDecodeError, KeyError):
            return ""

    def _load(self) -> _Read:
        found = {path: _find_version(path.parent) for folder in self._folders for path in _list_files(folder)}
        if found == self._read.seen:
            return self._read
        apps, needs, folders, errors = {}, {}, {}, []
        for path in found:
            try:
                app, programs = parse_app(path)
            except PorticoError as error:
                errors.append((str(path), error))
            else:
                apps[app.id], needs[app.id], folders[app.id] = app, programs, path.parent
        self._read = _Read(found, apps, needs, folders, tuple(errors))
        return self._read

    def _complete(self, read: _Read, app: App) -> App:
        missing = []
        for program in read.needs[app.id]:
            where = str(self._install_dir / program) if "/" in program else shutil.which(program, path=JOB_PATH)
            if where is None or not os.access(where, os.X_OK) or not os.path.isfile(where):
                missing.append(program)
        app = replace(app, missing=f"Not installed here: {', '.join(missing)}." if missing else "")
        return self._images.complete(app) if app.container else app


def _list_files(folder: Path) -> list[Path]:
    try:
        return sorted(path / "app.toml" for path in folder.iterdir() if (path / "app.toml").exists())
    except OSError:
        return []


def _find_version(folder: Path) -> object:
    """Return a value that changes whenever a file of the folder does, by an older one in its place too."""
    try:
        with os.scandir(folder) as entries:
            stats = [(entry.name, entry.stat()) for entry in entries]
    except OSError:
        return None
    return frozenset((name, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size) for name, stat in stats)


def parse_app(path: Path) -> tuple[App, tuple[str, ...]]:
    """Return the app that an ``app.toml`` describes, and the programs that it needs.

    Raises:
        Invalid: The file is no such description; the message names the key.
    """
    try:
        value = tomllib.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise Invalid("The file can't be read.", why=str(error)) from error
    app_id = path.parent.name
    if not APP_ID.match(app_id):
        raise Invalid("The folder's name must be small letters, digits and dashes.")
    reader = _Reader(value, "")
    reach = reader.text("reach")
    if reach not in set(Reach):
        raise Invalid(f"reach must be one of {', '.join(Reach)}, not {reach[:40]!r}.")
    ready, needs, resources = reader.table("ready"), reader.table("needs"), reader.table("resources")
    fields = tuple(_parse_field(item) for item in reader.list("fields", dict))
    if len({field.name for field in fields}) < len(fields):
        raise Invalid("[[fields]]: two have the same name.")
    app = App(
        id=app_id,
        name=reader.text("name"),
        summary=reader.text("summary", ""),
        reach=Reach(reach),
        script=_read_script(path.parent, reader.file("script", "job.sh")),
        icon=reader.file("icon", ""),
        order=int(reader.number("order", 100)),
        cores=resources.range("cores", Range(1, 1, 1)),
        memory_gb=resources.range("memory_gb", Range(1, 1, 1)),
        hours=resources.range("hours", Range(8, 1, 24)),
        fields=fields,
        ready_path=ready.text("path", ""),
        ready_timeout_s=ready.number("timeout_s", 60),
        install_hint=reader.text("install", ""),
        hidden=reader.flag("optional"),
        container=_parse_container(reader.table("container")) if "container" in reader else None,
    )
    if app.container and any(field.name == FIELD for field in fields):
        raise Invalid(f"[[fields]]: an app with a [container] has the field {FIELD} already.")
    if not re.fullmatch(r"[!-~]*", app.ready_path) or app.ready_path.startswith("/"):
        raise Invalid("ready.path must be a path below the app's own, without spaces and without a / at its beginning.")
    if not app.ready_timeout_s:
        raise Invalid("ready.timeout_s must be above 0.")
    return app, tuple(needs.list("programs", str))


def _parse_container(reader: _Reader) -> Container:
    script, runtime = reader.text("script"), reader.text("runtime", "auto")
    if script not in ("inside", "outside"):
        raise Invalid(f"container.script must be inside or outside, not {script[:40]!r}.")
    if runtime not in ("auto", *RUNTIMES):
        raise Invalid(f"container.runtime must be one of auto, {', '.join(RUNTIMES)}, not {runtime[:40]!r}.")
    images, binds = tuple(reader.list("images", str)), tuple(reader.list("binds", str))
    for image in images:
        if not PLAIN_PATH.fullmatch(image):
            raise Invalid(
                f"container.images: {image[:80]!r} is no absolute path of letters, digits and . _ + @ -",
                hint="No part of it may begin with a dot or a dash.",
            )
    for bind in binds:
        if not is_bind(bind):
            raise Invalid(f"container.binds: {bind[:80]!r} must be /path or /path:/path inside.")
    return Container(script == "inside", images, binds, runtime, reader.flag("required", script == "inside"))


def _read_script(folder: Path, name: str) -> str:
    try:
        script = (folder / name).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Invalid(f"The script {name} can't be read.", why=str(error)) from error
    if not script.startswith("#!"):
        raise Invalid(f"The script {name} must begin with #! and an interpreter.")
    if len(script.encode()) > SCRIPT_LIMIT_BYTES:
        raise Invalid(f"The script {name} is larger than {SCRIPT_LIMIT_BYTES // 1024} KiB.")
    return script


T = TypeVar("T")


class _Reader:
    """A table of the file, of which each key is known and has its type.

    Args:
        value: The table.
        name: Its name; empty for the file itself.
        kind: Which keys it may have, where that is not its name.

    Raises:
        Invalid: A key does not exist.
    """

    def __init__(self, value: Mapping[str, Any], name: str, kind: str | None = None) -> None:
        self._value = value
        self._prefix = f"{name}." if name else ""
        if unknown := value.keys() - _KEYS[name if kind is None else kind]:
            raise Invalid(f"The key {self._prefix}{min(unknown)} does not exist.", hint="docs/apps.md lists them.")

    def __contains__(self, name: str) -> bool:
        return name in self._value

    def _refuse(self, name: str, what: str) -> Invalid:
        if name not in self._value:
            return Invalid(f"{self._prefix}{name} is missing.")
        return Invalid(f"{self._prefix}{name} must be {what}, not {str(self._value[name])[:40]!r}.")

    def text(self, name: str, default: str | None = None) -> str:
        value = self._value.get(name, default)
        if not isinstance(value, str) or (default is None and not value.strip()):
            raise self._refuse(name, "a text")
        return value

    def file(self, name: str, default: str) -> str:
        value = self.text(name, default)
        if value and not FILE_NAME.match(value):
            raise self._refuse(name, "the name of a file in the app's own folder")
        return value

    def flag(self, name: str, default: bool = False) -> bool:
        value = self._value.get(name, default)
        if not isinstance(value, bool):
            raise self._refuse(name, "true or false")
        return value

    def scalar(self, name: str, default: str) -> str:
        value = self._value.get(name, default)
        if isinstance(value, bool):
            return "1" if value else ""
        if not isinstance(value, (str, int, float)):
            raise self._refuse(name, "a text, a number, true or false")
        return str(value)

    def number(self, name: str, default: float, least: float = 0) -> float:
        value = self._value.get(name, default)
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not least <= value <= 1e9:
            raise self._refuse(name, f"a number from {least:g} to 1e9")
        return value

    def list(self, name: str, kind: type[T]) -> list[T]:
        value = self._value.get(name, [])
        if not isinstance(value, list) or not all(isinstance(item, kind) for item in value):
            raise self._refuse(name, "a list of tables" if kind is dict else "a list of texts")
        return value

    def table(self, name: str, kind: str | None = None) -> _Reader:
        value = self._value.get(name, {})
        if not isinstance(value, dict):
            raise self._refuse(name, "a table")
        return _Reader(value, f"{self._prefix}{name}", kind)

    def range(self, name: str, default: Range) -> Range:
        if name not in self._value:
            return default
        table = self.table(name, "range")
        found = Range(*(table.number(part, math.nan) for part in ("default", "minimum", "maximum")))
        if not 0 < found.minimum <= found.default <= found.maximum:
            raise Invalid(f"{self._prefix}{name}: it must be 0 < minimum <= default <= maximum.")
        return found


def _parse_field(value: dict[str, Any]) -> Field:
    name = value.get("name")
    if not isinstance(name, str) or not FIELD_NAME.match(name):
        raise Invalid(f"fields: the name {str(name)[:40]!r} must be small letters, digits and _.")
    reader = _Reader(value, f"field {name}", "fields")
    kind = reader.text("kind")
    if kind not in set(FieldKind):
        raise Invalid(f"field {name}.kind must be one of {', '.join(FieldKind)}, not {kind[:40]!r}.")
    try:
        re.compile(reader.text("pattern", ""))
    except re.error as error:
        raise Invalid(f"field {name}.pattern is no regular expression.", why=str(error)) from error
    choices = tuple(reader.list("choices", str))
    if (kind == FieldKind.CHOICE) != bool(choices):
        raise Invalid(f"field {name}.choices: a choice has some, and nothing else has.")
    field = Field(
        name=name,
        label=reader.text("label", name),
        kind=FieldKind(kind),
        default=reader.scalar("default", choices[0] if choices else ""),
        choices=choices,
        minimum=reader.number("minimum", 0, -1e9) if "minimum" in reader else None,
        maximum=reader.number("maximum", 0, -1e9) if "maximum" in reader else None,
        pattern=reader.text("pattern", ""),
        help=reader.text("help", ""),
    )
    try:
        check_value(field, field.default)
    except Invalid as error:
        raise Invalid(f"field {name}.default is no value that it takes.", why=error.message) from error
    return field


def check_value(field: Field, value: str) -> str:
    """Return the value of a form field as the job gets it.

    Raises:
        Invalid: It is not one that the field takes.
    """

    def refuse(why: str) -> Invalid:
        return Invalid(f"{field.label}: {why}", field=field.name)

    if field.required and not value:
        raise refuse("please choose one.")
    if len(value) > TEXT_LIMIT:
        raise refuse(f"at most {TEXT_LIMIT} characters.")
    if any(unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") for character in value):
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
