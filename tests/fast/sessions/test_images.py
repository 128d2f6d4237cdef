"""Container images in the catalog: what an app may say of them, which there are, and which may be named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from portico.config import load_config
from portico.errors import Invalid
from portico.model import App, Container, FieldKind, Reach, Session
from portico.sessions.catalog import Catalog, check_value, parse_app
from portico.sessions.images import Images, find_field, find_switch, is_bind, list_images, render_files

APP = 'name = "Course"\nreach = "http"\n[container]\nscript = "inside"\n'


def write(folder: Path, text: str = APP, name: str = "course") -> Path:
    (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / name / "app.toml").write_text(text)
    (folder / name / "job.sh").write_text("#!/bin/sh\n")
    return folder / name / "app.toml"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A site's folder of images, with what else lies about in such folders."""
    folder = tmp_path / "images"
    (folder / "school").mkdir(parents=True)
    for name in ("r.sif", "old.sqfs", "README", "a b.sif", "-w.sif", ".hidden.sif", "a:b.sif"):
        (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('script = "elsewhere"', "container.script must be inside or outside"),
        ('script = "inside"\nruntime = "docker"', "container.runtime must be one of auto, ch-run, apptainer"),
        ('script = "inside"\nimages = "/a"', "container.images must be a list of texts"),
        ('script = "inside"\nimages = ["course"]', "container.images: 'course' is no absolute path"),
        ('script = "inside"\nimages = ["/a:/etc"]', "container.images"),
        ('script = "inside"\nimages = ["/srv/../etc"]', "container.images"),
        ('script = "inside"\nimages = ["/srv/a,b"]', "container.images"),
        ('script = "inside"\nimages = ["/srv/-w"]', "container.images"),
        ('script = "inside"\nbinds = ["/data:/data:ro"]', "container.binds"),
        ('script = "inside"\nbinds = ["/data:"]', "container.binds"),
        ('script = "inside"\nbinds = ["data"]', "container.binds"),
        ('script = "inside"\nroot = true', "key container.root does not exist"),
        ('script = "inside"\n[[fields]]\nname = "image"\nlabel = "I"\nkind = "text"', "has the field image already"),
    ],
)
def test_a_malformed_container_says_which_key_and_why(tmp_path: Path, line: str, words: str) -> None:
    with pytest.raises(Invalid, match=words.replace(".", "\\.")):
        parse_app(write(tmp_path, APP.replace('script = "inside"', line)))


@pytest.mark.parametrize("text", ["/data", "/data/x_1:/mnt/0"])
def test_binds(text: str) -> None:
    assert is_bind(text)


def test_what_stands_in_the_sites_folders_is_proposed(images: Path) -> None:
    names = [f"{images}/{name}" for name in ("old.sqfs", "r.sif", "school")]
    assert list_images([str(images), "/nonexistent"]) == names


def test_an_image_is_a_field_of_the_form(tmp_path: Path, images: Path) -> None:
    write(tmp_path / "apps")
    app = Catalog([tmp_path / "apps"], tmp_path, [str(images)]).get("course")
    field = find_field(app)
    assert field and field.kind is FieldKind.TEXT and field.required and field.default == field.choices[0]
    for good in (f"{images}/school", f"{images}/later/v2.sif"):
        assert check_value(field, good) == good
    for bad in (
        "",
        "/etc",
        f"{images}",
        f"{images}/../etc",
        f"{images}x/a",
        f"{images}/a:/etc",
        f"{images}/-w",
        "a.sif",
    ):
        with pytest.raises(Invalid) as caught:
            check_value(field, bad)
        assert caught.value.field == "image"
    with pytest.raises(Invalid):
        check_value(field, f"{images}/a\n")


def test_an_app_of_the_sites_may_name_its_images_itself(tmp_path: Path, images: Path) -> None:
    write(tmp_path / "apps", f'{APP}images = ["/opt/one.sif", "{images}/school"]')
    app = Catalog([tmp_path / "apps"], tmp_path, [str(images)]).get("course")
    field = find_field(app)
    assert field and field.kind is FieldKind.CHOICE and field.choices == ("/opt/one.sif", f"{images}/school")
    with pytest.raises(Invalid):
        check_value(field, f"{images}/r.sif")


def test_without_images_an_app_that_can_do_without_one_is_as_it_was(tmp_path: Path) -> None:
    write(tmp_path, APP.replace('"inside"', '"outside"'))
    assert Catalog([tmp_path], tmp_path).get("course").fields == ()
    write(tmp_path)
    app = Catalog([tmp_path], tmp_path).get("course")
    assert app.missing == "No images: neither this app nor the setting image_dirs names any."


def test_a_site_without_a_runtime_is_told(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    app = App("course", "Course", "", Reach.HTTP, "#!/bin/sh\n", container=Container(inside=True))
    there = Images([str(images)], str(tmp_path))
    assert there.complete(app).missing == "Not installed here: ch-run or apptainer or singularity."
    (tmp_path / "ch-run").write_text("")
    (tmp_path / "ch-run").chmod(0o755)
    monkeypatch.setattr("portico.sessions.images.find_switch", lambda: "user.max_user_namespaces = 0")
    assert there.complete(app).missing == "ch-run can run nothing here: the kernel has user.max_user_namespaces = 0."
    monkeypatch.setattr("portico.sessions.images.find_switch", lambda: "")
    assert there.complete(app).missing == ""


def test_which_switch_keeps_containers_off(tmp_path: Path) -> None:
    assert find_switch(tmp_path) == ""
    (tmp_path / "user").mkdir()
    (tmp_path / "user/max_user_namespaces").write_text("4711\n")
    assert find_switch(tmp_path) == ""
    (tmp_path / "user/max_user_namespaces").write_text("0\n")
    assert find_switch(tmp_path) == "user.max_user_namespaces = 0"


def test_what_a_sessions_folder_gets() -> None:
    container = Container(inside=True, binds=("/data",))
    app = App("course", "Course", "", Reach.HTTP, "#!/bin/sh\necho\n", container=container)
    session = Session("kabcdefghijk", "alice", "course", "Course", "local", Reach.HTTP, 1, 1 << 30, 1)
    assert render_files(app, session, ["/srv"]) == {"job.sh": app.script}
    chosen = Session(**{**vars(session), "values": {"image": "/srv/a"}})
    files = render_files(app, chosen, ["/srv"])
    assert files["inside.sh"] == app.script and '-- "$PORTICO_SESSION_DIR/inside.sh"' in files["job.sh"]
    assert json.loads(files["container.json"]) == {"runtime": "auto", "binds": ["/data"], "allowed": ["/srv"]}
    named = App(**{**vars(app), "container": Container(inside=False, images=("/opt/one.sif",), runtime="apptainer")})
    files = render_files(named, chosen, ["/srv"])
    assert files["job.sh"] == app.script and "inside.sh" not in files
    assert json.loads(files["container.json"])["allowed"] == ["/opt/one.sif"]


@pytest.mark.parametrize("folder", ["images", "/srv/a:b", "/srv/../etc", "/srv/a,b", ""])
def test_a_folder_of_images_is_a_plain_absolute_path(tmp_path: Path, folder: str) -> None:
    config = tmp_path / "portico.toml"
    config.write_text(f"image_dirs = [{json.dumps(folder)}]\n")
    with pytest.raises(Invalid, match="image_dirs must be absolute paths"):
        load_config(config)
