"""From the click to a drawn desktop: Portico beside the same job script started by hand, in the same run.

Both are measured by the same RFB client, from the request to the first picture with more than 100 colours, for the
same POSIX user, alternately. By hand means: the app's job script as the user, the client on the socket itself. With
Portico it is: POST a session, wait until it is ready, open the WebSocket through the gateway.

    bench/click_to_desktop.py [--app desktop-xfce] [--rounds 5]

Needs root, for users. Prints the medians and their ratio; the target is 1.3.
"""

from __future__ import annotations

import argparse
import os
import pwd
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests/support"), str(ROOT / "src")]

from person import Person  # noqa: E402
from rfb import RfbClient, connect_unix  # noqa: E402
from running import INSTALL_DIR, RunningPortico  # noqa: E402

COLOURS = 100


def is_drawn(client: RfbClient) -> bool:
    return client.count_colours(COLOURS) >= COLOURS


def measure_by_hand(app: Path, user: str, install_dir: Path) -> float:
    """Return the seconds from exec of the job script to a drawn desktop."""
    account = pwd.getpwnam(user)
    with tempfile.TemporaryDirectory(prefix="byhand-", dir="/run") as folder:
        os.chown(folder, account.pw_uid, account.pw_gid)
        environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "HOME": account.pw_dir,
            "USER": user,
            "LOGNAME": user,
            "SHELL": account.pw_shell,
            "LANG": "C.UTF-8",
            "XDG_RUNTIME_DIR": folder,
            "PORTICO_SESSION": "byhand",
            "PORTICO_SESSION_DIR": folder,
            "PORTICO_SOCKET": f"{folder}/app.sock",
            "PORTICO_CORES": "1",
            "PORTICO_MEMORY_BYTES": str(2 << 30),
            "PORTICO_FORM_GEOMETRY": "1280x800",
            "PORTICO_TERMINAL": str(ROOT / "src/portico/agent/terminal.py"),
            "PORTICO_VNC_DOOR": str(ROOT / "src/portico/agent/vnc_door.py"),
            "PORTICO_VNC_PASSWORDS": f"{folder}/vnc-passwords",
            "PORTICO_PYTHON": f"{install_dir}/venv/bin/python",
            "PORTICO_APPS": str(install_dir),
        }
        begin = time.monotonic()
        job = subprocess.Popen(
            ["/usr/bin/setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups",
             "/bin/bash", str(app / "job.sh")],
            env=environment, cwd=account.pw_dir, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            sock = connect_unix(f"{folder}/app.sock", 20)
            RfbClient(sock).wait(is_drawn, 60)
            elapsed = time.monotonic() - begin
            sock.close()
        finally:
            os.killpg(job.pid, 15)
            job.wait(20)
    return elapsed


def measure_portico(person: Person, app: str) -> float:
    """Return the seconds from the click to a drawn desktop in the browser's place."""
    begin = time.monotonic()
    session = person.start(app, cores=os.cpu_count())  # as many as by hand, where nothing limits it
    ready = person.wait(session["id"])
    if os.environ.get("BENCH_STEPS"):
        print({name: ready[name] for name in ("created", "started", "ready")}, f"seen {time.monotonic() - begin:.3f} s")
    client, connection = person.open_desktop(f"/sessions/{session['id']}/stream")
    client.wait(is_drawn, 60)
    elapsed = time.monotonic() - begin
    connection.close()
    person.http.post(f"/api/v1/sessions/{session['id']}/stop").raise_for_status()
    person.wait(session["id"], "ended")
    return elapsed


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--app", default="desktop-xfce")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    portico = RunningPortico()
    try:
        portico.start()
        person, name = portico.user("desk"), portico.get_name("desk")
        measure_portico(person, arguments.app)  # the account, caches and first-start files are there from now on
        by_hand, with_portico = [], []
        for _ in range(arguments.rounds):
            by_hand.append(measure_by_hand(ROOT / "src/portico/catalog" / arguments.app, name, INSTALL_DIR))
            with_portico.append(measure_portico(person, arguments.app))
    finally:
        portico.destroy()
    hand, ours = statistics.median(by_hand), statistics.median(with_portico)
    print(f"| {arguments.app}, median of {arguments.rounds} | seconds |\n| --- | --- |")
    print(f"| by hand | {hand:.2f} |")
    print(f"| Portico, click to picture | {ours:.2f} |")
    print(f"| ratio (target 1.3) | {ours / hand:.2f} |")


if __name__ == "__main__":
    main()
