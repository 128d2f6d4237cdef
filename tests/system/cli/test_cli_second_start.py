"""The second start: seconds, and no network at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from running import INSTALL_DIR, ROOT, find_free_ports, find_reason_to_skip, wait_until

pytestmark = [
    pytest.mark.system,
    pytest.mark.skipif(bool(find_reason_to_skip()), reason=find_reason_to_skip() or "-"),
]

RAISE_LOOPBACK = """
import fcntl, os, socket, struct, sys
with socket.socket() as sock:  # SIOCSIFFLAGS (netdevice(7)): IFF_UP | IFF_LOOPBACK | IFF_RUNNING
    fcntl.ioctl(sock, 0x8914, struct.pack("16sh22x", b"lo", 0x49))
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_a_second_start_needs_no_network(tmp_path: Path) -> None:
    if not (INSTALL_DIR / ".stamp-jupyter").exists():
        pytest.skip(f"{INSTALL_DIR} was not installed by ./portico")
    suffix = secrets.token_hex(2)
    run_dir, state_dir = Path(f"/run/pt-{suffix}"), Path(f"/var/lib/pt-{suffix}")
    output = tmp_path / "output"
    command = [
        str(ROOT / "portico"), "up", "--port", str(find_free_ports()[0]), "--run-dir", str(run_dir), "--state-dir",
        str(state_dir), "--install-dir", str(INSTALL_DIR), "--instance", f"pt{suffix}",
    ]  # fmt: skip
    begin = time.monotonic()
    with output.open("w") as file:
        process = subprocess.Popen(
            ["unshare", "-n", "/usr/bin/python3", "-I", "-c", RAISE_LOOPBACK, *command], stdin=subprocess.DEVNULL,
            stdout=file, stderr=subprocess.STDOUT, env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"},
            start_new_session=True,
        )  # fmt: skip
    try:
        wait_until(lambda: "Ctrl-C" in output.read_text() or process.poll() is not None, 60)
        assert process.poll() is None, output.read_text()
        assert time.monotonic() - begin < 30
        assert "npm" not in output.read_text()
        assert "Python packages" not in output.read_text()
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
        process.wait(30)
        for folder in (run_dir, state_dir):
            shutil.rmtree(folder, ignore_errors=True)
        for mount in Path("/sys/fs/cgroup").glob(f"**/portico-pt{suffix}"):
            with contextlib.suppress(OSError):
                os.rmdir(mount)
