"""The catalog: what comes with Portico is good, what is malformed disables itself alone and says why."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from portico.errors import Invalid, NotFound
from portico.model import Field, FieldKind
from portico.sessions.catalog import Catalog, check_value, parse_app
from portico.sessions.machine import find_catalog

GOOD = """
name = "An app"
reach = "http"
[ready]
path = "api"
[resources]
cores = { default = 1, minimum = 1, maximum = 4 }
[[fields]]
name = "size"
label = "Size"
kind = "choice"
choices = ["small", "large"]
"""


def write(folder: Path, text: str = GOOD, script: str = "#!/bin/sh\n", name: str = "good") -> Path:
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "app.toml").write_text(text)
    (folder / name / "job.sh").write_text(script)
    return folder / name / "app.toml"


def test_what_comes_with_portico_is_well_formed() -> None:
    catalog = Catalog([find_catalog()], Path("/nonexistent"))
    assert catalog.errors == []
    assert {app.id for app in catalog.list_apps()} >= {"terminal", "jupyter", "desktop-xfce", "desktop-light"}
    assert catalog.get("jupyter").missing == "Not installed here: jupyter/bin/jupyter-lab."
    assert catalog.get("terminal").missing == ""
    assert catalog.read_icon("terminal").startswith("<svg")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("name =", "can't be read"),
        ("x = " + "[" * 5000, "can't be read"),
        ('reach = "http"', "name is missing"),
        ('name = ""\nreach = "http"', "name must be a text"),
        ('name = "a"\nreach = "telnet"', "reach must be one of"),
        ('name = "a"\nreach = 5', "reach must be a text, not '5'"),
        ('colour = "red"\n' + GOOD, "key colour does not exist"),
        (GOOD.replace('path = "api"', 'path = "api"\nfile = "x"'), "key ready.file does not exist"),
        (GOOD.replace("default = 1", "default = 9"), "resources.cores: it must be"),
        (GOOD.replace("default = 1,", ""), "resources.cores.default is missing"),
        (GOOD.replace("maximum = 4", "maximum = inf"), "resources.cores.maximum must be a number"),
        (GOOD.replace("maximum = 4", 'maximum = "4"'), "resources.cores.maximum must be a number"),
        (GOOD.replace('"size"', '"Size!"'), "small letters"),
        (GOOD.replace('"choice"', '"color"'), "field size.kind must be one of"),
        (GOOD.replace('["small", "large"]', "5"), "field size.choices must be a list of texts"),
        (GOOD.replace('choices = ["small", "large"]', ""), "field size.choices"),
        (GOOD + 'default = "huge"', "field size.default"),
        (GOOD + 'pattern = "("', "field size.pattern"),
        (GOOD + '[[fields]]\nname = "size"\nlabel = "S"\nkind = "text"', "two have the same name"),
        ("fields = 5\n" + GOOD.partition("[[fields]]")[0], "fields must be a list of tables"),
        ('script = "../other/job.sh"\n' + GOOD, "script must be the name of a file"),
        ('icon = "/etc/passwd"\n' + GOOD, "icon must be the name of a file"),
        ('optional = "yes"\n' + GOOD, "optional must be true or false"),
        ("needs = 5\n" + GOOD, "needs must be a table"),
        ('needs = {programs = "sh"}\n' + GOOD, "needs.programs must be a list"),
        (GOOD.replace('"api"', '"/api"'), "ready.path"),
        (GOOD.replace('"api"', '"a b"'), "ready.path"),
        (GOOD.replace('path = "api"', "timeout_s = 0"), "ready.timeout_s"),
    ],
)
def test_a_malformed_file_says_which_key_and_why(tmp_path: Path, text: str, words: str) -> None:
    write(tmp_path, name="fine")
    path = write(tmp_path, text, name="broken")
    with pytest.raises(Invalid, match=words.replace(".", "\\.")):
        parse_app(path)
    catalog = Catalog([tmp_path], tmp_path)
    assert [app.id for app in catalog.list_apps()] == ["fine"]
    assert [where for where, _ in catalog.errors] == [str(path)]


@pytest.mark.parametrize("script", ["", "echo hi", "#!/bin/sh\n" + "x" * 70_000])
def test_a_script_that_is_none(tmp_path: Path, script: str) -> None:
    with pytest.raises(Invalid, match=r"The script job\.sh"):
        parse_app(write(tmp_path, script=script))


def test_changes_are_seen_without_a_restart(tmp_path: Path) -> None:
    path = write(tmp_path)
    catalog = Catalog([tmp_path], tmp_path)
    stat = path.stat()
    path.write_text(GOOD.replace("An app", "No app"))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as cp -p would
    assert catalog.get("good").name == "No app"
    write(tmp_path, name="second")
    assert len(catalog.list_apps()) == 2
    path.write_text("broken")
    assert [app.id for app in catalog.list_apps()] == ["second"] and len(catalog.errors) == 1
    with pytest.raises(NotFound):
        catalog.get("good")


def test_a_later_folder_replaces_an_app(tmp_path: Path) -> None:
    write(tmp_path / "a")
    write(tmp_path / "b", GOOD.replace("An app", "Ours"))
    assert Catalog([tmp_path / "a", tmp_path / "none", tmp_path / "b"], tmp_path).get("good").name == "Ours"


def test_threads_may_read_while_it_changes(tmp_path: Path) -> None:
    path = write(tmp_path, 'needs = {programs = ["sh"]}\n' + GOOD)
    catalog = Catalog([tmp_path], tmp_path)
    failures: list[Exception] = []

    def read() -> None:
        for _ in range(300):
            try:
                catalog.list_apps()
            except Exception as error:
                failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(100):
        path.write_text(f'summary = "{number}"\nneeds = {{programs = ["sh"]}}\n' + GOOD)
    for thread in threads:
        thread.join()
    assert failures == []


CHOICE = Field("f", "F", FieldKind.CHOICE, choices=("a", "b"))
NUMBER = Field("f", "F", FieldKind.NUMBER, minimum=-1, maximum=10)
TEXT = Field("f", "F", FieldKind.TEXT, pattern="[a-z ]+")
FREE = Field("f", "F", FieldKind.TEXT)
CHECKBOX = Field("f", "F", FieldKind.CHECKBOX)


@pytest.mark.parametrize(
    ("field", "value", "result"),
    [
        (CHOICE, "a", "a"),
        (NUMBER, "1.5", "1.5"),
        (NUMBER, "-1", "-1"),
        (TEXT, "a b", "a b"),
        (TEXT, "", ""),
        (FREE, "größer; $(rm -rf /) '\"", "größer; $(rm -rf /) '\""),
        (CHECKBOX, "on", "1"),
        (CHECKBOX, "anything", ""),
    ],
)
def test_values_that_are_taken(field: Field, value: str, result: str) -> None:
    assert check_value(field, value) == result


@pytest.mark.parametrize(
    ("field", "value"),
    [
        (CHOICE, "c"),
        (CHOICE, ""),
        (CHOICE, "a\n"),
        (NUMBER, "11"),
        (NUMBER, "-2"),
        (NUMBER, "nan"),
        (NUMBER, "inf"),
        (NUMBER, "x"),
        (NUMBER, ""),
        (TEXT, "A"),
        (TEXT, "a\n"),
        (FREE, "a\nb"),
        (FREE, "a\x00"),
        (FREE, "\x1b[2J"),
        (FREE, "\x85"),
        (FREE, "\u2028"),
        (FREE, "\ud800"),
        (FREE, "x" * 201),
    ],
)
def test_values_that_are_refused(field: Field, value: str) -> None:
    with pytest.raises(Invalid) as error:
        check_value(field, value)
    assert error.value.field == "f"
