"""Scripts to begin a job with: those that come with Portico, and those of the site."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from portico.errors import NotFound

log = logging.getLogger(__name__)

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z")
SIZE_MAX: Final = 256 * 1024
OURS: Final = Path(__file__).parent / "scripts"


@dataclass(frozen=True)
class Template:
    """A script by its name. ``title`` is its first comment: what it is good for."""

    name: str
    title: str
    script: str


class Templates:
    """The scripts ``*.sh`` of some folders, read when they are asked for. A later folder's counts for more."""

    def __init__(self, folders: Sequence[Path] = ()) -> None:
        self._folders = [OURS, *folders]

    def list(self) -> list[Template]:
        """Return all, by name. One that can't be read is left out, and the log says so."""
        paths = {path.stem: path for folder in self._folders for path in sorted(folder.glob("*.sh"))}
        found = []
        for name, path in sorted(paths.items()):
            try:
                if not NAME.match(name) or path.stat().st_size > SIZE_MAX:
                    raise ValueError("its name is no name, or it is too large")
                found.append(parse_template(name, path.read_text()))
            except (OSError, ValueError) as error:
                log.warning("the job template %s is left out: %s", path, error)
        return found

    def get(self, name: str) -> Template:
        """Return one.

        Raises:
            NotFound: There is none of that name.
        """
        if found := next((one for one in self.list() if one.name == name), None):
            return found
        raise NotFound("There is no such template.", hint="portico job template lists them.")


def parse_template(name: str, script: str) -> Template:
    """Return the template that a script is."""
    comments = (line[1:].strip() for line in script.splitlines() if re.match(r"#(?!!|SBATCH)", line))
    return Template(name, next((text for text in comments if text), "")[:200], script)
