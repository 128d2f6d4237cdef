"""The look-up program: the JSON that it writes and reads by itself, and what it says where nobody answers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portico.ssh import lookup

PROGRAM = Path(lookup.__file__)
VALUES = st.recursive(st.text() | st.integers(), lambda inner: st.dictionaries(st.text(), inner, max_size=3))


@given(VALUES)
def test_what_it_writes_is_json(value: Any) -> None:
    assert json.loads(lookup.render(value)) == value


@given(st.recursive(st.text() | st.integers() | st.none() | st.booleans(), st.lists) | VALUES)
def test_it_reads_json(value: Any) -> None:
    assert lookup.parse(json.dumps(value)) == value
    assert lookup.parse(json.dumps(value, ensure_ascii=False)) == value


BROKEN = ("", "x", "{", '{"ok"', '{"ok": [', '{"ok": "', '{"ok": "\\u12', "[1,]", "nu")


def test_what_is_no_json_is_refused_by_a_process_that_has_no_json_module() -> None:
    code = f"""
import sys
sys.path.insert(0, {str(PROGRAM.parent)!r})
import lookup
for text in {BROKEN!r}:
    try:
        lookup.parse(text)
    except ValueError:
        continue
    sys.exit(text)
sys.exit("json" in sys.modules or "enum" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-IS", "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("argv", [[], ["nowhere", "keys", "alice"], ["nowhere", "certificates", "a", "b"]])
def test_what_sshd_never_says_is_refused(argv: list[str]) -> None:
    done = subprocess.run([sys.executable, "-IS", str(PROGRAM), *argv], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and not done.stdout and "not asked" in done.stderr
