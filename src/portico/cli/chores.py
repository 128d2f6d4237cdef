"""``./portico test``: ruff, mypy and all rings of tests in one go, as at home so in continuous integration.

Runs with the system's Python; the tools are those of the install folder's venv-test. A missing tool is told, never
taken for a pass.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path


def run_tests(source: Path, target: Path, arguments: list[str]) -> int:
    """Run every check; return 0 where all pass. pytest comes last, so that its summary is the last line.

    Args:
        source: The clone.
        target: The install folder.
        arguments: More arguments for pytest, e.g. ``tests/fast -k wire``.

    """
    python = str(target / "venv-test/bin/python")
    env = {name: value for name, value in os.environ.items() if not name.startswith("PORTICO_")}
    env |= {"PYTHONPATH": str(source / "src"), "PORTICO_TEST_INSTALL_DIR": str(target), "PYTHONDONTWRITEBYTECODE": "1"}
    checks = [
        ("ruff check", ["-m", "ruff", "check", "--no-cache", "."]),
        ("ruff format", ["-m", "ruff", "format", "--no-cache", "--check", "."]),
        ("mypy --strict", ["-m", "mypy", "--cache-dir", str(target / ".mypy_cache")]),
    ]
    failed = []
    for name, command in checks:
        print(f"== {name}", flush=True)
        if subprocess.run([python, *command], cwd=source, env=env, check=False, stdin=subprocess.DEVNULL).returncode:
            failed.append(name)
    if failed:
        print(f"FAILED before the tests: {', '.join(failed)}. The exit status will say so too.", flush=True)
    print("== pytest", flush=True)
    # Modules stay whole and in order (tests/conftest.py has it): each worker starts its shared Portico once.
    count = min(4, max(2, os.cpu_count() or 1))
    workers = ["-n", str(count), "--dist", "loadscope", "--no-loadscope-reorder"]
    cache = ["-o", f"cache_dir={target / '.pytest_cache'}"]
    status = subprocess.run(
        [python, "-m", "pytest", "-q", *workers, *cache, *arguments],
        cwd=source,
        env=env,
        check=False,
        stdin=subprocess.DEVNULL,
    ).returncode
    return status or (1 if failed else 0)
