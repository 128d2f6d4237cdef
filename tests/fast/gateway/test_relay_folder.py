"""The relay's folder on its node: gone with the relay, or with the next one where that was killed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import portico
from portico.relay import relay

HOLD = """
import sys
from portico.relay.relay import make_run_folder
folder, lock = make_run_folder()
open(f"{folder}/app.sock", "w").close()
print(folder, flush=True)
sys.stdin.read()
"""


def test_what_a_killed_relay_left_is_removed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(relay, "PATH_BYTES", 4096)  # pytest's folders have long names
    program = HOLD.replace("import sys\n", "import sys; from portico.relay import relay; relay.PATH_BYTES = 4096\n", 1)
    held = [
        subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(Path(portico.__file__).parents[1])},
        )
        for _ in range(2)
    ]  # fmt: skip
    folders = [Path(one.stdout.readline().strip()) for one in held if one.stdout]
    other = tmp_path / "portico-notes"  # somebody's own, without a lock
    other.mkdir()
    (other / "text").write_text("mine")
    held[0].kill()
    held[0].wait()
    mine, _ = relay.make_run_folder()
    assert not folders[0].exists() and (folders[1] / "app.sock").exists()
    assert (other / "text").read_text() == "mine" and Path(mine).stat().st_mode & 0o777 == 0o700
    held[1].communicate("")
    for one in held:
        for stream in (one.stdin, one.stdout):
            assert stream is not None
            stream.close()
