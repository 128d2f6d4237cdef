"""The configuration files of the demo cluster: pure text. Sources: slurm.conf(5), slurmdbd.conf(5) of 22.05."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CORES = 4
"""Of each node, as Slurm is told; they share the machine's own."""


@dataclass(frozen=True)
class Site:
    """What the files are made from."""

    name: str
    folder: Path
    controller: str
    nodes: tuple[str, ...]
    addresses: tuple[str, ...]
    elastic: tuple[str, ...]
    memory_mb: int


def render_slurm(site: Site) -> str:
    """Return slurm.conf: accounting with limits, memory that counts, quick decisions, nodes that are noticed soon."""
    folder = site.folder
    lines = [
        f"ClusterName={site.name}",
        f"SlurmctldHost=ctl({site.controller})",
        "SlurmctldPort=6817",
        "SlurmUser=slurm",
        "SlurmdUser=root",
        "AuthType=auth/munge",
        "CredType=cred/munge",
        f"AuthInfo=socket={folder}/munge/socket,cred_expire=5",
        f"StateSaveLocation={folder}/state",
        f"SlurmdSpoolDir={folder}/spool/%n",
        f"SlurmctldPidFile={folder}/run/slurmctld.pid",
        f"SlurmdPidFile={folder}/run/slurmd.%n.pid",
        f"SlurmctldLogFile={folder}/log/slurmctld.log",
        f"SlurmdLogFile={folder}/log/slurmd.%n.log",
        "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none",
        "JobAcctGatherType=jobacct_gather/linux",
        "JobAcctGatherFrequency=task=2",
        "JobAcctGatherParams=OverMemoryKill",
        "SwitchType=switch/none",
        "MpiDefault=none",
        "SelectType=select/cons_tres",
        "SelectTypeParameters=CR_Core_Memory",
        "DefMemPerCPU=500",
        "SlurmdParameters=config_overrides",
        "ReturnToService=2",
        "SchedulerType=sched/backfill",
        "SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1,bf_interval=1",
        "SlurmctldTimeout=30",
        "SlurmdTimeout=10",
        "MessageTimeout=3",
        "KillWait=2",
        "MinJobAge=300",
        "AccountingStorageType=accounting_storage/slurmdbd",
        f"AccountingStorageHost={site.controller}",
        "AccountingStoragePort=6819",
        f"AccountingStoragePass={folder}/munge/socket",
        "AccountingStorageEnforce=associations,limits,qos",
        "AccountingStoreFlags=job_comment,job_script",
        "PriorityType=priority/multifactor",
        "PriorityWeightAge=1000",
        "PreemptType=preempt/partition_prio",
        "PreemptMode=REQUEUE",
        "EnforcePartLimits=ALL",
        "MaxJobCount=25000",
        "MaxArraySize=20001",
        "DebugFlags=NO_CONF_HASH",
    ]
    for node, address in zip(site.nodes, site.addresses, strict=False):
        lines.append(f"NodeName={node} NodeAddr={address} CPUs={CORES} RealMemory={site.memory_mb} State=UNKNOWN")
    fixed = ",".join(site.nodes)
    lines += [
        f"PartitionName=batch Nodes={fixed} Default=YES MaxTime=INFINITE DefaultTime=60 State=UP PriorityTier=10",
        f"PartitionName=short Nodes={','.join(site.nodes[:2])} MaxTime=30 State=UP PriorityTier=10",
        f"PartitionName=closed Nodes={site.nodes[-1]} State=DOWN",
        f"PartitionName=spare Nodes={fixed} MaxTime=INFINITE DefaultTime=60 State=UP PriorityTier=1",
    ]
    if site.elastic:
        elastic = ",".join(site.elastic)
        lines += [
            f"ResumeProgram={folder}/bin/resume",
            f"SuspendProgram={folder}/bin/suspend",
            "SuspendTime=INFINITE",
            "ResumeTimeout=60",
            "SuspendTimeout=3",
            "ResumeRate=0",
            "SuspendRate=0",
            "SlurmctldParameters=cloud_reg_addrs,idle_on_node_suspend",
            "PrivateData=cloud",
            "TreeWidth=65533",
            f"NodeName={elastic} CPUs={CORES} RealMemory={site.memory_mb} State=CLOUD",
            f"PartitionName=elastic Nodes={elastic} MaxTime=INFINITE DefaultTime=60 State=UP SuspendTime=20 "
            "ResumeTimeout=60 SuspendTimeout=3",
        ]
    return "\n".join(lines) + "\n"


def render_slurmdbd(site: Site) -> str:
    """Return slurmdbd.conf."""
    folder = site.folder
    return f"""AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
DbdHost=ctl
DbdAddr={site.controller}
DbdPort=6819
SlurmUser=slurm
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StorageLoc=slurm_acct
CommitDelay=0
"""


def render_hosts(site: Site) -> str:
    """Return /etc/hosts of controller and nodes."""
    names: Sequence[tuple[str, str]] = [*zip((*site.nodes, *site.elastic), site.addresses, strict=False)]
    return "".join(
        f"{address} {name}\n" for name, address in [("localhost", "127.0.0.1"), ("ctl", site.controller), *names]
    )


def render_provider_script(folder: Path, word: str) -> str:
    """Return the ResumeProgram or SuspendProgram: it runs as SlurmUser, so it asks who may boot nodes."""
    return f"""#!/bin/sh
export SLURM_CONF={folder}/etc/slurm.conf
for node in $(scontrol show hostnames "$1"); do echo "{word} $node" >{folder}/run/elastic; done
"""
