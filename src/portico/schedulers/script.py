"""What every batch script must be, whichever scheduler runs it. Pure."""

from __future__ import annotations

from portico.errors import Invalid


def check_script(script: bytes, limit_bytes: int) -> None:
    """Do nothing if this is a batch script.

    Raises:
        Invalid: It is none; the message says what to change. Nothing is changed in it: it is its author's.
    """
    if not script.strip():
        raise Invalid("The script is empty.", field="script")
    if len(script) > limit_bytes:
        raise Invalid(
            f"The script has {len(script) / 1e6:.2f} MB; here it may have {limit_bytes / 1e6:.2f} MB at most.",
            hint="Put data into a file of its own.",
            field="script",
        )
    if script.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        raise Invalid(
            "The script begins with a byte order mark, so its first line is not found.",
            hint="Save it as UTF-8 without BOM.",
            field="script",
        )
    if not script.startswith(b"#!"):
        raise Invalid(
            "This does not look like a batch script: its first line does not say what runs it.",
            why="The first line of a script begins with #! and names a program.",
            hint="Put #!/bin/bash before everything else.",
            field="script",
        )
    if b"\0" in script:
        raise Invalid("The script has a NUL character in it.", hint="It may not be a text file.", field="script")
    if b"\r\n" in script:
        line = script[: script.index(b"\r\n")].count(b"\n") + 1
        raise Invalid(
            f"The script has the line ends of Windows, first in line {line}.",
            why="The shell would take the extra character for a part of each line.",
            hint="Save it with Unix line ends (LF), or run dos2unix on it.",
            field="script",
        )
