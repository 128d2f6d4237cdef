"""Places in which a Scheduler is tested for real: this machine's own, and a Slurm cluster. What runs is a shell script."""

from __future__ import annotations

import asyncio
import contextlib
import grp
import pwd
import secrets
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, Protocol, TypeVar

from brokered import Brokered

from portico.model import Reason, now
from portico.schedulers.local import LocalScheduler
from portico.schedulers.protocol import Capacity, JobOptions, JobRequest, JobState, JobStatus, Scheduler
from portico.schedulers.slurm.command import Command, Result
from portico.schedulers.slurm.scheduler import SlurmScheduler
from portico.sessions.commands import CommandRunner

T = TypeVar("T")

GB = 10**9


class Rig(Protocol):
    """What the tests need of a running Slurm, which the fixture ``slurm`` returns."""

    conf: str | Path

    def run(self, *argv: str, check: bool = True) -> str:
        """Run one of Slurm's programs as root; return its output."""

    def stop_controller(self) -> None:
        """End slurmctld with TERM; return when it is gone."""

    def kill_controller(self) -> None:
        """End it with KILL."""

    def start_controller(self) -> None:
        """Start it again."""

    def hang_controller(self) -> None:
        """Stop it with SIGSTOP."""

    def wake_controller(self) -> None:
        """Let it go on."""

    def kill_node(self, name: str) -> None:
        """End a node with all that runs there, at once."""

    def start_node(self, name: str) -> None:
        """Start a node again."""

    def stop_accounting(self) -> None:
        """End slurmdbd."""

    def start_accounting(self) -> None:
        """Start it again."""


class Place:
    """A scheduler with a real broker, agents and POSIX users behind it; one event loop for its whole life."""

    limit_s: float
    """Shortest time limit that this scheduler keeps."""
    wait_s = 30.0

    def __init__(self) -> None:
        self.loop = asyncio.Runner()
        self.brokered = Brokered(Capacity(4, 4 * GB))
        self.brokered.start_broker()
        self.scheduler: Any
        self.run(self._begin())

    async def _begin(self) -> None:
        await self.brokered.start_portal(keeper=False)
        self.machine = self.brokered.machine
        if not self.brokered.names:
            self.alice = await self.make_user("alice")
        self.scheduler = self.make_scheduler()

    def make_scheduler(self) -> Scheduler:
        """Return a new life of the scheduler on the same spool."""
        raise NotImplementedError

    async def make_user(self, first_name: str) -> str:
        """Make a POSIX user; return the name."""
        name = f"pt-{self.brokered.suffix}-{first_name}"
        self.brokered.names.append(name)
        await self.machine.make(name)
        return name

    def find_home(self, name: str) -> Path:
        """Return a user's home."""
        return Path(pwd.getpwnam(name).pw_dir)

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float = 150) -> T:
        """Run to its end."""
        return self.loop.run(asyncio.wait_for(work, timeout_s))

    async def restart(self) -> None:
        """End all of Portico with no chance to tidy up, and begin again."""
        await self.scheduler.close()
        await self.brokered.kill_everything()
        self.brokered.start_broker()
        await self._begin()

    async def submit(self, body: str, *, key: str = "", user: str = "", **changes: Any) -> str:
        """Submit a script; return its key."""
        key = key or make_key()
        await self.scheduler.submit(await self.make_request(key, user or self.alice, body, changes))
        return key

    async def make_request(self, key: str, user: str, body: str, changes: dict[str, Any]) -> JobRequest:
        """Return the request for a script."""
        raise NotImplementedError

    async def until(self, key: str, condition: Callable[[JobStatus], Any], timeout_s: float = 0) -> JobStatus:
        """Return the job's status once it is so.

        Raises:
            TimeoutError: It is not.
        """
        deadline = asyncio.get_running_loop().time() + (timeout_s or self.wait_s)
        while True:
            status: JobStatus | None = (await self.scheduler.query()).get(key)
            if status and condition(status):
                return status
            if asyncio.get_running_loop().time() > deadline:
                raise TimeoutError(f"{key}: {status}")
            await asyncio.sleep(0.1)

    async def until_running(self, key: str) -> JobStatus:
        """Return its status once it runs."""
        return await self.until(key, lambda status: status.state is JobState.RUNNING)

    async def until_ended(self, key: str, timeout_s: float = 0) -> JobStatus:
        """Return its status once it has ended."""
        return await self.until(key, lambda status: status.state is JobState.ENDED, timeout_s)

    async def destroy_now(self) -> None:
        """End what runs, remove what was made."""
        for key, status in (await self.scheduler.query()).items():
            if status.state is not JobState.ENDED:
                await self.scheduler.cancel(key, Reason.STOPPED)
        for key, status in (await self.scheduler.query()).items():
            if status.state is not JobState.ENDED:
                with contextlib.suppress(TimeoutError):
                    await self.until_ended(key)
        await self.scheduler.close()
        await self.brokered.destroy()

    def destroy(self) -> None:
        """As destroy_now()."""
        try:
            self.run(self.destroy_now())
        finally:
            self.loop.close()


class LocalPlace(Place):
    """This machine, with the embedded scheduler."""

    limit_s = 2

    def make_scheduler(self) -> Scheduler:
        return LocalScheduler(Path(self.brokered.config.state_dir) / "local", self.machine, self.brokered.capacity)

    async def make_request(self, key: str, user: str, body: str, changes: dict[str, Any]) -> JobRequest:
        args = {"session": key, "record": {}, "files": {"job.sh": f"#!/bin/sh\n{body}\n"}}
        await self.machine.ask(user, "prepare", args)
        folder = (await self.machine.look(user, key))["folder"]
        values = {"cores": 1.0, "memory_bytes": GB // 10, "time_limit_s": 600.0, "argv": (f"{folder}/job.sh",)}
        return JobRequest(key, user, submitted=now(), **(values | changes))


class LocalBatchPlace(LocalPlace):
    """The same, with batch jobs in place of sessions."""

    async def make_request(self, key: str, user: str, body: str, changes: dict[str, Any]) -> JobRequest:
        options = JobOptions(output="out-%j", **changes.pop("options", {}))
        values = {"cores": 1.0, "memory_bytes": GB // 10, "time_limit_s": 600.0, "options": options, "batch": True}
        script = changes.pop("script", f"#!/bin/sh\n{body}\n".encode())
        return JobRequest(key, user, submitted=now(), script=script, **(values | changes))


class SlurmPlace(Place):
    """A Slurm cluster: users with accounts there, and Portico's own account asking about all jobs.

    Args:
        rig: A running cluster.
    """

    limit_s = 60

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.account = f"pt{secrets.token_hex(2)}"
        self.operator = False
        rig.run("sacctmgr", "--immediate", "add", "account", self.account)
        super().__init__()

    def make_scheduler(self) -> SlurmScheduler:
        path = "/usr/local/bin:/usr/bin:/bin"
        return SlurmScheduler(
            Path(self.brokered.config.state_dir) / "slurm",
            PortalsRunner(self.machine),
            environment=(("SLURM_CONF", str(self.rig.conf)), ("PATH", path)),
            interval_s=0.5,
            operator=self.operator,
        )

    async def make_user(self, first_name: str) -> str:
        name = await super().make_user(first_name)
        self.rig.run("sacctmgr", "--immediate", "add", "user", name, f"account={self.account}")
        return name

    async def make_request(self, key: str, user: str, body: str, changes: dict[str, Any]) -> JobRequest:
        home = self.find_home(user)
        options = JobOptions(folder=str(home), output=f"{home}/out-%j", **changes.pop("options", {}))
        values = {"cores": 1.0, "memory_bytes": 100 << 20, "time_limit_s": 600.0, "options": options}
        script = changes.pop("script", f"#!/bin/sh\n{body}\n".encode())
        return JobRequest(key, user, submitted=now(), script=script, **(values | changes))

    def find_ids(self, key: str) -> list[str]:
        """Return the ids of all jobs that Slurm ever had with a key and still knows."""
        lines = self.rig.run("squeue", "-h", "-t", "all", "-o", "%A %k").splitlines()
        return [line.split()[0] for line in lines if f"portico:{key}" in line]

    async def destroy_now(self) -> None:
        for name in self.brokered.names:
            self.rig.run("scancel", "--user", name)
        await super().destroy_now()
        for kind, names in (("user", self.brokered.names), ("account", [self.account])):
            self.rig.run("sacctmgr", "--immediate", "delete", kind, ",".join(names), check=False)


class PortalsRunner(CommandRunner):
    """Runs Portico's own commands as Portico's account, as the portal does, and not as root."""

    asked: list[str]

    async def _run_here(self, command: Command[T]) -> Result:
        self.asked = [*getattr(self, "asked", []), command.argv[0]]
        account = pwd.getpwnam("portico")
        group = grp.getgrgid(account.pw_gid).gr_name
        prefix = ("/usr/bin/setpriv", "--reuid=portico", f"--regid={group}", "--clear-groups", "--")
        return await super()._run_here(Command((*prefix, *command.argv), command.parse, command.stdin, command.env))


def make_key() -> str:
    """Return a new key."""
    return f"k{secrets.token_hex(6)[:11]}"
