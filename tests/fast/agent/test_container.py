"""Container images: the argv of each runtime, what a program finds inside, and what people are told when nothing runs.

Apptainer and Singularity are not in Debian: for them the argv is all that is tested (apptainer-exec(1), singularity 3).
"""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from portico.agent import container
from portico.agent.container import Container, Trouble

SIF = b"#!/usr/bin/env run-singularity\n\0" + b"SIF_MAGIC\0" + b"\0" * 60
INSIDE = {"HOME": "/home/alice", "USER": "alice", "PATH": container.GUEST_PATH, "PORTICO_SESSION": "kabc"}


def make(kind: str = container.FOLDER, **more: object) -> Container:
    values: dict[str, object] = {
        "image": "/images/course", "kind": kind, "user": "alice", "home": "/gpfs/alice", "run": "/run/p/kabc",
        "binds": [("/scratch", "/scratch"), ("/tmp/.X11-unix/X5", "/tmp/.X11-unix/X5")], "env": INSIDE,
        "cwd": "/home/alice", **more,
    }  # fmt: skip
    return Container(**values)  # type: ignore[arg-type]


def test_ch_run() -> None:
    argv, env = container.render_ch_run("/usr/bin/ch-run", make(), ["/bin/sh", "-c", "true"])
    assert argv == [
        "/usr/bin/ch-run", "--home", "--private-tmp", "--bind=/run/p/kabc:/tmp/portico", "--bind=/scratch:/scratch",
        "--bind=/tmp/.X11-unix/X5:/tmp/.X11-unix/X5", "--cd=/home/alice", "/images/course", "--", "/bin/sh", "-c", "true",
    ]  # fmt: skip
    assert env == {**INSIDE, "HOME": "/gpfs/alice"}  # which it shows as /home/alice
    argv, _ = container.render_ch_run("ch-run", make(container.SQUASHFS, has_environment=True), ["x"])
    assert argv[6:10] == ["--mount=/run/p/kabc/image", "--set-env", "--set-env=HOME=/home/alice", "--cd=/home/alice"]


@pytest.mark.parametrize(("program", "prefix"), [("apptainer", "APPTAINERENV_"), ("singularity", "SINGULARITYENV_")])
def test_apptainer_and_singularity(program: str, prefix: str) -> None:
    host = {"PATH": "/usr/bin", "HOME": "/gpfs/alice", "APPTAINERENV_LD_PRELOAD": "/x", "SINGULARITY_BIND": "/etc"}
    argv, env = container.render_apptainer(f"/opt/bin/{program}", make(container.SIF), ["/bin/sh", "-c", "true"], host)
    assert argv == [
        f"/opt/bin/{program}", "exec", "--cleanenv", "--contain", "--home=/gpfs/alice:/home/alice",
        "--workdir=/run/p/kabc/work", "--bind=/run/p/kabc:/tmp/portico", "--bind=/scratch:/scratch",
        "--bind=/tmp/.X11-unix/X5:/tmp/.X11-unix/X5", "--pwd=/home/alice", "/images/course", "/bin/sh", "-c", "true",
    ]  # fmt: skip
    assert env == {
        "PATH": "/usr/bin", "HOME": "/gpfs/alice", f"{prefix}USER": "alice", f"{prefix}PORTICO_SESSION": "kabc",
    }  # fmt: skip


def test_what_a_program_finds_inside() -> None:
    pairs = [("/run/p/kabc", "/tmp/portico"), ("/gpfs/alice", "/home/alice")]
    host = {
        "HOME": "/gpfs/alice", "USER": "alice", "PATH": "/host", "LD_LIBRARY_PATH": "/host", "SSH_AUTH_SOCK": "/x",
        "PORTICO_SOCKET": "/run/p/kabc/app.sock", "PORTICO_SESSION_DIR": "/gpfs/alice/s/kabc", "TMPDIR": "/host",
        "PORTICO_PYTHON": "/opt/portico/venv/bin/python", "XAUTHORITY": "/run/p/kabc/xauthority", "DISPLAY": ":5",
        "PORTICO_FORM_NAME": "/gpfs/alicette", "SLURM_JOB_ID": "7", "CUDA_VISIBLE_DEVICES": "0", "LC_ALL": "C",
        "XDG_RUNTIME_DIR": "/run/p", "DBUS_SESSION_BUS_ADDRESS": "unix:path=/host",
    }  # fmt: skip
    assert container.make_env(host, pairs, "alice") == {
        "HOME": "/home/alice", "USER": "alice", "PATH": container.GUEST_PATH, "XDG_RUNTIME_DIR": "/tmp/portico",
        "PORTICO_SOCKET": "/tmp/portico/app.sock", "PORTICO_SESSION_DIR": "/home/alice/s/kabc",
        "XAUTHORITY": "/tmp/portico/xauthority", "DISPLAY": ":5", "PORTICO_FORM_NAME": "/gpfs/alicette",
        "SLURM_JOB_ID": "7", "CUDA_VISIBLE_DEVICES": "0", "LC_ALL": "C",
    }  # fmt: skip


def test_what_an_image_is(tmp_path: Path) -> None:
    for name, content in (("a.sqfs", b"hsqs\0\0"), ("a.sif", SIF), ("notes.txt", b"hello"), ("empty", b"")):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "root/usr/bin").mkdir(parents=True)
    (tmp_path / "root/usr/bin/sh").symlink_to("/bin/dash")  # leads to nothing, from here
    assert container.find_kind(str(tmp_path / "a.sqfs")) == container.SQUASHFS
    assert container.find_kind(str(tmp_path / "a.sif")) == container.SIF
    assert container.find_kind(str(tmp_path / "root")) == container.FOLDER
    for name, words in (("notes.txt", "is no image"), ("empty", "is no image"), ("none", "there is no image")):
        with pytest.raises(Trouble, match=words):
            container.find_kind(str(tmp_path / name))
    with pytest.raises(Trouble, match="it has no /bin/sh"):
        container.find_kind(str(tmp_path))


def test_a_link_out_of_the_sites_folders_is_refused(tmp_path: Path) -> None:
    (tmp_path / "images/real").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "images/out").symlink_to(tmp_path / "other")
    (tmp_path / "images/in").symlink_to("real")
    (tmp_path / "shortcut").symlink_to("images")
    allowed = [str(tmp_path / "shortcut")]
    assert container.check_place(str(tmp_path / "images/in"), allowed) == str(tmp_path / "images/real")
    for path in ("images/out", "images/../other", "images-too"):
        with pytest.raises(Trouble, match="which is not where this site has images"):
            container.check_place(str(tmp_path / path), allowed)
    assert container.check_place(
        str(tmp_path / "other"), [str(tmp_path / "images/out")]
    )  # one that an app names itself


def test_who_runs_what(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        Trouble, match=r"nothing on .* runs an image that is a folder \(ch-run or apptainer or singularity"
    ):
        container.find_runtime(container.FOLDER, "auto")

    def put(name: str, status: int = 0) -> str:
        (tmp_path / name).write_text(f"#!/bin/sh\nexit {status}\n")
        (tmp_path / name).chmod(0o755)
        return str(tmp_path / name)

    charliecloud = put("ch-run", 1)  # built without SquashFS, as Debian's
    assert container.find_runtime(container.FOLDER, "auto") == charliecloud
    for kind in (container.SIF, container.SQUASHFS):
        with pytest.raises(Trouble, match="apptainer or singularity"):
            container.find_runtime(kind, "auto")
    apptainer = put("apptainer")
    assert container.find_runtime(container.SIF, "auto") == apptainer
    assert container.find_runtime(container.SQUASHFS, "auto") == apptainer
    assert container.find_runtime(container.FOLDER, "apptainer") == apptainer
    put("ch-run")
    assert container.find_runtime(container.SQUASHFS, "auto") == charliecloud
    with pytest.raises(Trouble, match="nothing on"):
        container.find_runtime(container.SIF, "ch-run")


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("ch-run[12]: error: can't execve(2): /bin/sh: No such file or directory (ch_core.c:410 2)", "can't execve(2)"),
        ("ch-run[1]: error: can't mkdir: /images/course/scratch: Read-only file system (ch_misc.c:409 30)", "/scratch"),
        (
            "ch-run[1]: error: can't bind: destination not found: /images/course/etc/passwd (ch_core.c:111)",
            "needs that",
        ),
        (
            "ch-run[9]: error: can't init user+mount namespaces: Operation not permitted (ch_core.c:9 1)",
            "seem to be off",
        ),
        ("FATAL:   container creation failed: mount /scratch: no such file", "container creation failed: mount"),
    ],
)
def test_what_a_runtime_says_is_told_in_words(said: str, told: str) -> None:
    text = container.explain(said, make())
    assert told in text and ".c:" not in text and "ch-run[" not in text and "/images/course/" not in text


def run(tmp_path: Path, *argv: str, image: str = "", allowed: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    """Run the program as a session would."""
    session = tmp_path / "session"
    (tmp_path / "run").mkdir(exist_ok=True)
    session.mkdir(exist_ok=True)
    settings = {"runtime": "auto", "binds": [], "allowed": [allowed or str(tmp_path)]}
    (session / "container.json").write_text(json.dumps(settings))
    whole = {
        "PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "USER": "alice", "PORTICO_SESSION_DIR": str(session),
        "PORTICO_SOCKET": str(tmp_path / "run/app.sock"), "PORTICO_FORM_IMAGE": image, **env,
    }  # fmt: skip
    program = [sys.executable, "-I", container.__file__, "--", *argv]
    return subprocess.run(program, env=whole, cwd=tmp_path, text=True, capture_output=True, check=False, timeout=60)


def test_a_runtime_is_tried_with_nothing_and_then_becomes_the_program(tmp_path: Path) -> None:
    """With a stand-in for Apptainer, which no package of Debian's has: it notes what it was asked, and runs nothing."""
    (tmp_path / "course.sif").write_bytes(SIF)
    (tmp_path / "bin").mkdir()
    noted = tmp_path / "noted"
    (tmp_path / "bin/apptainer").write_text(f'#!/bin/sh\nfor a; do echo "$a"; done >>{noted}\nenv >>{noted}\n')
    (tmp_path / "bin/apptainer").chmod(0o755)
    done = run(tmp_path, f"{tmp_path}/x.sh", image=f"{tmp_path}/course.sif", PATH=f"{tmp_path}/bin:/usr/bin", LANG="C")
    assert done.returncode == 0, done.stderr
    lines = noted.read_text().splitlines()
    assert lines.count("exec") == 2 and lines.count(f"--home={tmp_path}:/home/alice") == 2
    assert lines.count("[ -f /ch/environment ] && exit 77; exit 0") == 1 and lines.count("/home/alice/x.sh") == 1
    assert "APPTAINERENV_LANG=C" in lines and "APPTAINERENV_PORTICO_SOCKET=/tmp/portico/app.sock" in lines
    (tmp_path / "bin/apptainer").write_text(
        "#!/bin/sh\necho 'FATAL:   while extracting: not enough space' >&2; exit 255\n"
    )
    done = run(tmp_path, "true", image=f"{tmp_path}/course.sif", PATH=f"{tmp_path}/bin:/usr/bin")
    told = (tmp_path / "session/trouble").read_text()
    assert told == f"apptainer can't run {tmp_path}/course.sif: while extracting: not enough space"
    assert "FATAL:" in done.stderr  # the log has what it said


def test_without_an_image_it_runs_as_it_is(tmp_path: Path) -> None:
    done = run(tmp_path, "sh", "-c", "echo $HOME")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path}\n")


def test_trouble_is_a_sentence_in_the_sessions_folder_and_its_log(tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("hello")
    done = run(tmp_path, "true", image=str(tmp_path / "notes"))
    told = (tmp_path / "session/trouble").read_text()
    assert done.returncode == container.TROUBLE_EXIT and f"portico: {told}.\n" == done.stderr
    assert "is no image. It must be a folder" in told
    assert stat.S_IMODE((tmp_path / "session/trouble").stat().st_mode) == 0o600
    (tmp_path / "session/trouble").unlink()
    os.symlink(tmp_path / "notes", tmp_path / "session/trouble")  # one's own folder: nothing of it is followed
    assert run(tmp_path, "true", image=str(tmp_path / "none")).returncode == container.TROUBLE_EXIT
    assert (tmp_path / "notes").read_text() == "hello"


def test_a_path_that_a_list_of_mounts_would_misread_is_refused(tmp_path: Path) -> None:
    for path in ("/a:/etc", "/a,ro", "a", "-w", "/a\n"):
        done = run(tmp_path, "true", image=path)
        assert done.returncode == container.TROUBLE_EXIT and "a character that can't be in it" in done.stderr
    assert "can't be in it" in run(tmp_path, "true", image=str(tmp_path), HOME="/home/a:b").stderr
