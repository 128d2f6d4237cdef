"""``portico ssh login`` against a real Portico: from the machine itself and from elsewhere, confirmed in a browser."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from running import RunningPortico, wait_until

from portico.ssh.authority import compute_fingerprint, read_certificate

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(300),
    pytest.mark.skipif(not shutil.which("ssh-keygen"), reason="needs ssh-keygen"),
]


@pytest.mark.parametrize("from_elsewhere", [False, True], ids=["socket", "url"])
def test_a_terminal_gets_a_certificate_that_its_person_confirms(
    portico: RunningPortico, tmp_path: Path, from_elsewhere: bool
) -> None:
    alice, name = portico.user("alice"), portico.get_name("alice")
    file = tmp_path / "key"
    where = ["--url", portico.url] if from_elsewhere else []
    said = tmp_path / "said"
    with said.open("w") as output:
        process = subprocess.Popen(
            [*portico.get_command(), "--run-dir", str(portico.run_dir), "ssh", "login", "--file", str(file), "--print-url",
             *where],
            env=portico.get_env() | {"HOME": str(tmp_path)}, cwd="/", stdin=subprocess.DEVNULL, stderr=output,
        )  # fmt: skip
    try:
        code = wait_until(lambda: re.search(r"code is (\S{9})", said.read_text()), 30, "a code")[1]
        assert f"{portico.url}/ssh-login" in said.read_text()
        asked = alice.http.post("/ssh-login", data={"user_code": code})
        assert "Only go on if you started this yourself" in asked.text
        done = alice.http.post("/ssh-login/confirm", data={"user_code": code})
        assert "go back to your terminal" in done.text, done.text
        assert process.wait(30) == 0, said.read_text()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    listing = read_certificate(Path(f"{file}-cert.pub").read_text())
    assert listing.principals == (name,)
    assert listing.critical == ()  # from loopback, and from the machine itself
    user_ca = portico.state_dir / "ssh/user_ca"
    public = subprocess.run(["ssh-keygen", "-y", "-f", user_ca], capture_output=True, text=True, check=True).stdout
    assert listing.ca_fingerprint == compute_fingerprint(public.split()[1])
    assert stat.S_IMODE(user_ca.stat().st_mode) == 0o600
    assert stat.S_IMODE(user_ca.parent.stat().st_mode) == 0o700
    assert pwd.getpwuid(user_ca.stat().st_uid).pw_uid != os.getuid()  # the service account's, not root's
    assert pwd.getpwnam(name)  # it was made, without any session
    assert str(listing.serial) in portico.cli("ssh", "certificates", "list", user=name).stdout
    portico.cli("ssh", "certificates", "revoke", str(listing.serial), user=name)
    assert str(listing.serial) not in portico.cli("ssh", "certificates", "list", "--json", user=name).stdout
