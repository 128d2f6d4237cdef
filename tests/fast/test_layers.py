"""The import table of the design against every import, those inside functions too; and what is banned everywhere."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import portico

SOURCE = Path(portico.__file__).parent
FLOOR = {"errors", "model", "config", "wire"}
MAY_IMPORT = {
    "floor": set(),
    "broker": set(),
    "agent": set(),
    "relay": set(),
    "ssh": set(),
    "gateway": set(),
    "schedulers": set(),
    "store": set(),
    "demo": set(),
    "accounts": {"ssh", "store"},
    "sessions": {"accounts", "schedulers", "ssh", "store"},
    "jobs": {"accounts", "schedulers", "sessions", "store"},
    "events": {"accounts", "jobs", "sessions", "store"},
    "portal": {"accounts", "events", "jobs", "sessions", "ssh", "store"},
    "cli": {
        "demo",
        "ssh",
        "broker",
        "agent",
        "gateway",
        "schedulers",
        "store",
        "accounts",
        "sessions",
        "jobs",
        "events",
        "portal",
    },
}
"""Package → the packages it may import, besides itself and the floor."""

STANDARD_LIBRARY_ONLY = {"floor", "broker", "agent", "relay", "schedulers", "demo", "ssh"}
EXCEPTIONS = {
    # The broker forks agents from itself, already imported: a fork needs milliseconds, a new interpreter hundreds.
    ("broker", "agent"),
}
CHANGES_IDS = {
    "setuid", "setgid", "seteuid", "setegid", "setreuid", "setregid", "setresuid", "setresgid", "setgroups",
    "initgroups",
}  # fmt: skip
MODULES = sorted(path for path in SOURCE.rglob("*.py"))


def _get_package(path: Path) -> str:
    first = path.relative_to(SOURCE).parts[0]
    return first if first in MAY_IMPORT else "floor"


def _iter_imports(path: Path) -> Iterator[tuple[int, str]]:
    """Yield each imported module's full name, wherever in the file it is imported."""
    parts = ("portico", *path.relative_to(SOURCE).with_suffix("").parts)
    for node in ast.walk(ast.parse(path.read_text(), path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*parts[: len(parts) - node.level], *([base] if base else [])])
            if base == "portico":  # from portico import wire
                for alias in node.names:
                    yield node.lineno, f"portico.{alias.name}"
            else:
                yield node.lineno, base
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "__import__",
            "importlib.import_module",
            "import_module",
        ):
            yield (
                node.lineno,
                ast.literal_eval(node.args[0]) if node.args and isinstance(node.args[0], ast.Constant) else "?",
            )


def _name(path: Path) -> str:
    return str(path.relative_to(SOURCE))


def test_every_folder_is_in_the_table() -> None:
    folders = {path.name for path in SOURCE.iterdir() if path.is_dir() and path.name not in ("__pycache__", "catalog")}
    assert folders == set(MAY_IMPORT) - {"floor"}


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_imports_follow_the_table(path: Path) -> None:
    package = _get_package(path)
    wrong = []
    for line, module in _iter_imports(path):
        root, _, rest = module.partition(".")
        if root != "portico":
            if package in STANDARD_LIBRARY_ONLY and root not in sys.stdlib_module_names:
                wrong.append(f"{_name(path)}:{line}: {module} is not of the standard library")
            continue
        target = rest.partition(".")[0]
        allowed = {package, "", *FLOOR} | MAY_IMPORT[package]
        if package == "floor":
            allowed = {"", *FLOOR}
        if target not in allowed and (package, target) not in EXCEPTIONS:
            wrong.append(f"{_name(path)}:{line}: {package} must not import {module}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_nothing_banned_is_called(path: Path) -> None:
    package = _get_package(path)
    wrong = []
    for node in ast.walk(ast.parse(path.read_text(), path)):
        if not isinstance(node, (ast.Call, ast.Attribute)):
            continue
        where = f"{_name(path)}:{node.lineno}"
        if isinstance(node, ast.Call):
            wrong += [f"{where}: shell=…" for keyword in node.keywords if keyword.arg == "shell"]
            if ast.unparse(node.func) in (
                "eval",
                "exec",
                "os.popen",
                "os.system",
                "subprocess.getoutput",
                "pickle.loads",
            ):
                wrong.append(f"{where}: {ast.unparse(node.func)}")
            if ast.unparse(node.func).endswith("create_subprocess_shell"):
                wrong.append(f"{where}: create_subprocess_shell")
        elif node.attr in CHANGES_IDS and package != "broker":
            wrong.append(f"{where}: only the broker changes ids ({node.attr})")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", [path for path in MODULES if _get_package(path) != "store"], ids=_name)
def test_sql_is_only_in_the_store(path: Path) -> None:
    wrong = [
        f"{_name(path)}:{line}: {module}"
        for line, module in _iter_imports(path)
        if module.partition(".")[0] in ("sqlite3", "sqlalchemy", "alembic")
    ]
    for node in ast.walk(ast.parse(path.read_text(), path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            text = node.value.upper().split()
            if text[:1] in (["SELECT"], ["INSERT"], ["UPDATE"], ["DELETE"], ["PRAGMA"]) and {
                "FROM",
                "INTO",
                "SET",
            } & set(text[:5]):
                wrong.append(f"{_name(path)}:{node.lineno}: SQL")
    assert not wrong, "\n".join(wrong)


def test_the_checks_see_imports_inside_functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "SOURCE", tmp_path)
    module = tmp_path / "broker" / "x.py"
    module.parent.mkdir()
    module.write_text(
        "def f():\n    from portico import store\n    from ..sessions import keeper\n    import sqlalchemy\n"
    )
    assert list(_iter_imports(module)) == [(2, "portico.store"), (3, "portico.sessions"), (4, "sqlalchemy")]


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_modules_say_what_they_are(path: Path) -> None:
    if path.stat().st_size:
        assert ast.get_docstring(ast.parse(path.read_text(), path)), f"{_name(path)} has no docstring"
