"""A command and its parser as one value. It is run by somebody else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, Protocol, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

ENVIRONMENT: Final = (
    ("TZ", "UTC"),
    ("LC_ALL", "C"),
    ("SLURM_TIME_FORMAT", "%s"),  # Unix seconds; ISO in UTC, where a version or a field does not heed it
    ("SLURM_BITSTR_LEN", "0"),  # array tasks in full; by default squeue cuts them after 64 bytes
)
"""For commands that ask. Not for sbatch, which hands its environment on to the job."""


@dataclass(frozen=True)
class Result:
    """What a command said."""

    status: int
    stdout: bytes = b""
    stderr: bytes = b""
    timed_out: bool = False
    cut: bool = False

    @property
    def message(self) -> str:
        """What it said to people, its output where that is all it said."""
        return (self.stderr.strip() or self.stdout.strip()).decode("utf-8", errors="replace")


@dataclass(frozen=True)
class Command(Generic[T]):
    """A program with arguments, and what its result means.

    Attributes:
        parse: Takes the result; raises a PorticoError that a person understands where it was no success.
        env: Added to the runner's own.
    """

    argv: tuple[str, ...]
    parse: Callable[[Result], T]
    stdin: bytes = b""
    env: tuple[tuple[str, str], ...] = ENVIRONMENT
    timeout_s: float = 30.0
    limit_bytes: int = 32 << 20


class Runner(Protocol):
    """Runs commands where the scheduler's programs are."""

    async def run(self, user_name: str | None, command: Command[T]) -> Result:
        """Run it as that user, or as Portico's own account; the caller has it parsed.

        Raises:
            NotFound: There is no such program.
            Unavailable: It could not be run.
        """
