"""A cluster's script on this machine: which of its #SBATCH lines count, and which are refused."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portico.errors import Invalid
from portico.schedulers.directives import apply
from portico.schedulers.protocol import JobOptions, JobRequest

MIB = 1 << 20


def ask(lines: str, **more: object) -> JobRequest:
    script = f"#!/bin/bash\n{lines}\n".encode()
    return replace(JobRequest("k00000000001", "alice", 0, 0, 0, datetime.now(UTC), script=script, batch=True), **more)  # type: ignore[arg-type]


def test_what_the_script_asks_for() -> None:
    found = apply(
        ask("""
# about this job
#SBATCH --job-name="my job" -c 2 --mem=500M   # a remark
#SBATCH -t1-00:30:00
#SBATCH --ntasks 3
#SBATCH --partition=batch --account=a --mail-type=END --no-requeue
##SBATCH --time=5
#SBATCH -o out-%j -H

echo begins
#SBATCH --mem=9G""")
    )
    assert (found.cores, found.memory_bytes, found.time_limit_s) == (2, 500 * MIB, 88200)
    assert found.options == JobOptions(name="my job", tasks=3, output="out-%j", held=True)
    assert apply(ask("echo\n#SBATCH --nonsense")).options == JobOptions()


def test_what_stands_in_the_form_counts_for_more() -> None:
    options = JobOptions(name="form")
    found = apply(ask("#SBATCH -J script -c 4 --time=10 -o out", cores=1.0, time_limit_s=60.0, options=options))
    assert (found.cores, found.time_limit_s, found.options) == (1, 60, JobOptions(name="form", output="out"))


def test_memory_for_each_core() -> None:
    assert apply(ask("#SBATCH --mem-per-cpu=100M -c2 -n3")).memory_bytes == 600 * MIB
    assert apply(ask("#SBATCH --mem-per-cpu=100M", memory_bytes=5)).memory_bytes == 5


@pytest.mark.parametrize(
    "line",
    ["--nonsense=1", "--wrap=ls", "-x n1", "word", "--time", "--time=soon", "--time=0", "--mem=much", "-c 0", "-n -1",
     "--nodes=1-2", "-c 99999999", f"--mem={'9' * 400}", f"--time={'9' * 400}", '--job-name="half', "--ntasks-per-node=2", "-c ２"],
)  # fmt: skip
def test_what_is_not_understood_is_refused_with_its_line(line: str) -> None:
    with pytest.raises(Invalid, match=r"^Line 2 of the script") as refused:
        apply(ask(f"#SBATCH {line}"))
    assert refused.value.field == "script" and refused.value.hint


@given(st.text("#SBATCH -=cntJo\"'\n1:aé", max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        apply(ask(f"#SBATCH {text}"))
    except Invalid as error:
        assert error.field == "script"
