#!/usr/bin/python3
"""Fuzz a parser of the gateway for some time, guided by coverage (atheris, libFuzzer).

    python tests/fuzz/run.py head --seconds 60      one target
    python tests/fuzz/run.py all --seconds 60       one after the other

Any Python from 3.11 on will do. What is needed is installed once, into an environment below --cache. It begins with the
kept corpus (tests/fuzz/corpus) and what earlier runs have found; what it finds wrong is written to a file, with how to
see it again. A file that shows something new is kept by copying it into the corpus, under a name that says what it
shows; tests/fast/gateway/test_gateway_fuzz.py replays them all.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CORPUS = ROOT / "tests/fuzz/corpus"
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "portico-fuzz"
ATHERIS = "atheris==3.0.0"
FUZZER = """
import sys
sys.path[:0] = [{fuzz!r}, {src!r}]
import atheris
with atheris.instrument_imports(include=["portico.gateway", "httptools", "fuzz_targets", "slow_parsers"]):
    import fuzz_targets
atheris.Setup([{target!r}, *sys.argv[1:]], fuzz_targets.TARGETS[{target!r}])
atheris.Fuzz()
"""


def make_environment(cache: Path) -> Path:
    """Return the Python of an environment that has atheris and what Portico and its tests need."""
    python = cache / "venv/bin/python"
    stamp = cache / "venv/complete"
    if not stamp.exists():
        venv.create(cache / "venv", with_pip=True, clear=True)
        locks = [str(ROOT / name) for name in ("requirements.lock", "requirements-test.lock")]
        argv = [
            str(python),
            "-m",
            "pip",
            "install",
            "--quiet",
            ATHERIS,
            *(part for lock in locks for part in ("-r", lock)),
        ]
        subprocess.run(argv, check=True)
        stamp.touch()
    return python


def fuzz(python: Path, target: str, seconds: int, cache: Path) -> int:
    """Fuzz one target; return 0 where nothing is wrong."""
    found, kept = cache / "found" / target, CORPUS / target
    found.mkdir(parents=True, exist_ok=True)
    wrong = cache / "wrong" / f"{target}-"
    wrong.parent.mkdir(exist_ok=True)
    script = FUZZER.format(fuzz=str(ROOT / "tests/fuzz"), src=str(ROOT / "src"), target=target)
    argv = [
        str(python), "-c", script, str(found), *([str(kept)] if kept.exists() else []), f"-max_total_time={seconds}",
        "-max_len=3000", "-timeout=20", "-rss_limit_mb=2048", f"-artifact_prefix={wrong}", "-print_final_stats=1",
    ]  # fmt: skip
    dictionary = CORPUS / f"{target}.dict"
    if dictionary.exists():
        argv.append(f"-dict={dictionary}")
    code = subprocess.run(argv, check=False).returncode
    if code:
        print(f"{target}: wrong; see {wrong}*. Once mended, keep it: cp FILE {kept}/what-it-shows", file=sys.stderr)
    return code


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", help="all, or the name of one in tests/fuzz/fuzz_targets.py: head, frames, rfb, ...")
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--cache", type=Path, default=CACHE, help="for the environment and what is found")
    options = parser.parse_args()
    python = make_environment(options.cache)
    names = sorted(path.name for path in CORPUS.iterdir() if path.is_dir())
    if options.target != "all" and options.target not in names:
        parser.error(f"there is no target {options.target}; there are {', '.join(names)}")
    targets = names if options.target == "all" else [options.target]
    return max(fuzz(python, target, options.seconds, options.cache) for target in targets)


if __name__ == "__main__":
    sys.exit(main())
