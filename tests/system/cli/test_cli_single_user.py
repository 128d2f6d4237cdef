"""Without root: the same Portico for the one person who started it; and with TLS, as a network would see it."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import secrets
import shutil
import signal
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from person import Person
from running import (
    INSTALL_DIR,
    PASSWORD,
    RunningPortico,
    end_processes_of,
    find_free_ports,
    find_reason_to_skip,
    find_source,
    wait_until,
)
from ssh_person import find_free_port, wait_for_port

from portico.cli.sshd_process import find_sshd

pytestmark = [
    pytest.mark.system,
    pytest.mark.timeout(300),
    pytest.mark.skipif(bool(find_reason_to_skip()), reason=find_reason_to_skip() or "-"),
]


@pytest.fixture
def carol() -> Iterator[pwd.struct_passwd]:
    name = f"pt-{secrets.token_hex(2)}-carol"
    ids = ["-K", "UID_MIN=60100", "-K", "UID_MAX=60900", "-K", "GID_MIN=60100", "-K", "GID_MAX=60900"]
    subprocess.run(["useradd", "-m", "-U", "-s", "/bin/bash", *ids, name], check=True)
    yield pwd.getpwnam(name)
    end_processes_of(pwd.getpwnam(name).pw_uid)
    subprocess.run(["userdel", "-r", name], check=False, capture_output=True)


def try_ssh(person: Person, name: str, port: int, session_id: str, folder: Path) -> None:
    """Come in by SSH, to the machine and into a session, and be put out again."""
    key = folder / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    answer = person.http.post("/api/v1/keys", json={"key": Path(f"{key}.pub").read_text()})
    assert answer.status_code == 201, answer.text
    ssh = ["ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "LogLevel=ERROR",
           "-o", "UserKnownHostsFile=/dev/null", "-o", "IdentitiesOnly=yes", "-i", str(key)]  # fmt: skip
    wait_for_port(port)
    front = [*ssh, "-p", str(port), f"{name}@127.0.0.1"]
    done = subprocess.run([*front, "id -un"], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == name, done.stderr
    program = f"/home/{name}/.local/share/portico/run/ssh/connect"
    way = ["-o", f"ProxyCommand={' '.join(front)} {program} %n"]
    argv = [*ssh, *way, f"{name}@{session_id}.portico"]
    done = subprocess.run([*argv, "echo $PORTICO_SESSION"], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == session_id, done.stderr
    with subprocess.Popen([*argv, "echo in; sleep 1000"], stdout=subprocess.PIPE, text=True) as live:
        assert live.stdout is not None and live.stdout.readline() == "in\n"
        person.http.delete(f"/api/v1/keys/{answer.json()['id']}")
        assert live.wait(20) == 255


def test_a_person_without_root_is_at_work(carol: pwd.struct_passwd, tmp_path: Path) -> None:
    port, ssh_port = find_free_ports()[0], find_free_port()
    output = tmp_path / "output"
    env = {"PATH": "/usr/bin:/bin", "HOME": carol.pw_dir, "USER": carol.pw_name, "LANG": "C.UTF-8"} | find_source()
    command = [str(INSTALL_DIR / "venv/bin/portico")]
    with output.open("w") as file:
        process = subprocess.Popen(
            [*command, "up", "--no-install", "--port", str(port), "--install-dir", str(INSTALL_DIR), "--ssh-port",
             str(ssh_port)], user=carol.pw_uid,
            group=carol.pw_gid, extra_groups=[], env=env, cwd=carol.pw_dir, stdin=subprocess.DEVNULL, stdout=file,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
    try:
        wait_until(lambda: "Ctrl-C" in output.read_text() or process.poll() is not None, 60)
        assert process.poll() is None, output.read_text()
        link = next(line.strip() for line in output.read_text().splitlines() if "/enrol#" in line)
        with Person(f"http://localhost:{port}") as person:
            person.enrol(link.partition("#")[2], PASSWORD)
            person.sign_in(carol.pw_name, PASSWORD)
            assert person.http.get("/api/v1/me").json()["role"] == "admin"
            session = person.start("terminal", memory_gb=0.25)
            person.wait(session["id"])
            refused = person.http.post("/api/v1/users", json={"name": "alice"})
            assert refused.status_code == 409
            assert "without root" in refused.text

            def run(*arguments: str) -> subprocess.CompletedProcess[str]:
                return subprocess.run(
                    [*command, *arguments], user=carol.pw_uid, group=carol.pw_gid, extra_groups=[], env=env, cwd="/",
                    text=True, capture_output=True, check=False,
                )  # fmt: skip

            me = run("whoami", "--json")
            assert me.returncode == 0, me.stderr
            assert json.loads(me.stdout)["name"] == carol.pw_name
            assert session["id"] in run("session", "list").stdout
            if find_sshd():
                try_ssh(person, carol.pw_name, ssh_port, session["id"], tmp_path)
            assert run("session", "stop", session["id"]).returncode == 0
            person.wait(session["id"], "ended")

            script = Path(carol.pw_dir) / "job.sh"
            script.write_text("#!/bin/sh\nid -un; sleep 1; exit 3\n")
            script.chmod(0o644)
            job = run("job", "submit", str(script), "--memory-gb", "0.1").stdout.strip()
            path = f"/api/v1/clusters/local/jobs/{job}"
            wait_until(lambda: person.http.get(path).json().get("state") == "ended", 20)
            assert person.http.get(path).json()["detail"] == "exit status 3"
            assert run("job", "tail", job).stdout.strip() == carol.pw_name
            assert (Path(carol.pw_dir) / f"portico-{job}.out").stat().st_uid == carol.pw_uid
            late = person.http.post(
                "/api/v1/clusters/local/jobs",
                json={"script": "#!/bin/sh\nsleep 1000\n", "memory_gb": 0.1, "hours": 1 / 3600},
            ).json()["id"]
            path = f"/api/v1/clusters/local/jobs/{late}"
            wait_until(lambda: person.http.get(path).json()["reason"] == "time-limit", 30)
            assert run("stop").returncode == 0
            process.wait(20)
        state = Path(carol.pw_dir) / ".local/share/portico"
        assert (state / "portico.db").stat().st_mode & 0o077 == 0
        assert state.stat().st_mode & 0o077 == 0
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(20)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    if not shutil.which("openssl"):
        pytest.skip("needs openssl, to make a certificate")
    folder = tmp_path_factory.mktemp("tls")
    files = (str(folder / "certificate.pem"), str(folder / "key.pem"))
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost", "-out", files[0], "-keyout", files[1]],
        check=True, capture_output=True,
    )  # fmt: skip
    os.chmod(files[1], 0o600)
    return files


def test_tls_with_a_key_that_only_root_can_read(
    certificate: tuple[str, str], portico_factory: Callable[..., RunningPortico]
) -> None:
    portico = portico_factory(options=("--tls-certificate", certificate[0], "--tls-key", certificate[1]))
    assert portico.admin_link.startswith(f"https://localhost:{portico.port}/enrol#")
    context = ssl.create_default_context(cafile=certificate[0])
    with httpx.Client(base_url=f"https://localhost:{portico.port}", verify=context, trust_env=False) as http:
        answer = http.get("/sign-in")
        assert answer.status_code == 200
        assert "max-age" in answer.headers["Strict-Transport-Security"]
        http.headers["Origin"] = f"https://localhost:{portico.port}"
        code = portico.admin_link.partition("#")[2]
        http.post("/enrol", data={"code": code, "password": PASSWORD, "again": PASSWORD})
        http.post("/sign-in", data={"name": portico.admin_name, "password": PASSWORD})
        cookie = next(cookie for cookie in http.cookies.jar if "portico" in cookie.name)
        assert cookie.name == "__Host-portico"
        assert cookie.secure
        assert http.get("/api/v1/me").json()["role"] == "admin"
    key = portico.run_dir / "tls/key.pem"
    assert key.stat().st_mode & 0o007 == 0
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://localhost:{portico.port}/", trust_env=False)
    with contextlib.suppress(KeyError):
        stranger = pwd.getpwnam("nobody")
        done = subprocess.run(
            ["cat", str(key)],
            user=stranger.pw_uid,
            group=stranger.pw_gid,
            extra_groups=[],
            check=False,
            capture_output=True,
        )
        assert done.returncode != 0
