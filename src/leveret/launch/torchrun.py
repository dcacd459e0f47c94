"""The commands that a launch consists of: one torchrun for each machine.

torchrun is PyTorch's own starter: on each machine it starts the processes, tells them who they are (ranks.py), keeps
the store they meet at, and ends all of its machine when one dies. What is left to us is to start it everywhere, with
the same numbers, and to end all machines when one of them fails (together.py). agent.py is torchrun with less noise.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from leveret.container import allowed_cores
from leveret.errors import ConfigError
from leveret.launch.config import LaunchConfig
from leveret.launch.machines import Machine, SlurmJob, count_accelerators, is_here, read_hostfile

CARRIED = ("CUDA_", "NCCL_", "GLOO_", "TORCH_", "OMP_", "MKL_", "HF_", "LEVERET_", "PYTHONPATH")
"""Variables (by how they begin) that processes on other machines get too."""
_SSH_OPTIONS = ("-o", "BatchMode=yes", "-o", "ServerAliveInterval=10", "-o", "ServerAliveCountMax=3", "-tt")
"""Ask nothing; notice a dead machine within 30 seconds; end what runs there when the connection ends."""


@dataclass(frozen=True, kw_only=True)
class Start:
    """One command to be executed here."""

    host: str
    """The machine it brings to work."""
    arguments: tuple[str, ...]
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables to set besides those that are there."""

    def __str__(self) -> str:
        """As one would type it."""
        return shlex.join([*(f"{name}={value}" for name, value in self.environment.items()), *self.arguments])


def starts_of(config: LaunchConfig, inner: Sequence[str], environment: Mapping[str, str]) -> list[Start]:
    """The commands for `leveret INNER...` in all processes. ConfigError from a hostfile or from SLURM's variables."""
    if config.hostfile is not None:
        machines = read_hostfile(config.hostfile)
        if config.nproc is not None:
            machines = [Machine(host=machine.host, slots=config.nproc) for machine in machines]
        _refuse_unreachable(machines, config.hostfile)
        return _everywhere(machines, config, inner, environment)
    job = SlurmJob.from_environment(environment, nproc=config.nproc)
    if job is not None and len(job.machines) > 1:
        if job.node is None:
            return [_through_srun(job, config, inner)]
        return [_here(job.machines, job.node, config, inner, environment)]
    slots = config.nproc or (job.machines[0].slots if job is not None else count_accelerators(environment)) or 1
    return [_here([Machine(host="localhost", slots=slots)], 0, config, inner, environment)]


def torchrun(machines: Sequence[Machine], node: int, config: LaunchConfig, inner: Sequence[str]) -> list[str]:
    """The torchrun command of one machine."""
    slots = f"--nproc-per-node={machines[node].slots}"
    if len(machines) == 1:
        where = ["--standalone", "--local-addr=127.0.0.1", slots]
    else:
        where = [
            f"--nnodes={len(machines)}", f"--node-rank={node}", slots,
            f"--master-addr={machines[0].address}", f"--master-port={config.master_port}",
        ]  # fmt: skip
    return [sys.executable, "-m", "leveret.launch.agent", *where, "-m", "leveret", *inner]


def _refuse_unreachable(machines: Sequence[Machine], hostfile: Path) -> None:
    """ConfigError when the first machine, where all meet, is named so that others would look for it at home."""
    others = [machine for machine in machines[1:] if machines[0].is_loopback and not is_here(machine)]
    if others:
        raise ConfigError(
            f"{hostfile}: all processes meet at the first machine {machines[0].host}, which {others[0].address} would "
            "take for itself",
            hint="write the name or the address by which the other machines reach it",
        )


def _everywhere(
    machines: Sequence[Machine], config: LaunchConfig, inner: Sequence[str], environment: Mapping[str, str]
) -> list[Start]:
    return [
        _here(machines, node, config, inner, environment)
        if is_here(machine)
        else _there(machines, node, config, inner, environment)
        for node, machine in enumerate(machines)
    ]


def _here(
    machines: Sequence[Machine], node: int, config: LaunchConfig, inner: Sequence[str], environment: Mapping[str, str]
) -> Start:
    """Without a word about threads, torchrun gives each process one; the cores of a machine are shared out instead."""
    threads = max(1, allowed_cores() // machines[node].slots)
    shared = {} if "OMP_NUM_THREADS" in environment else {"OMP_NUM_THREADS": str(threads)}
    arguments = tuple(torchrun(machines, node, config, inner))
    return Start(host=machines[node].host, arguments=arguments, environment=shared)


def _there(
    machines: Sequence[Machine], node: int, config: LaunchConfig, inner: Sequence[str], environment: Mapping[str, str]
) -> Start:
    carried = [f"{name}={environment[name]}" for name in sorted(environment) if name.startswith(CARRIED)]
    command = ["exec", "env", *carried, *torchrun(machines, node, config, inner)]
    line = f"cd {shlex.quote(str(Path.cwd()))} && {shlex.join(command)}"
    host = machines[node].host
    return Start(host=host, arguments=(*shlex.split(config.ssh), *_SSH_OPTIONS, host, line))


def _through_srun(job: SlurmJob, config: LaunchConfig, inner: Sequence[str]) -> Start:
    """SLURM starts this very command once on each node of the job, and ends all when one fails."""
    nodes = len(job.machines)
    arguments = [
        "srun", f"--nodes={nodes}", f"--ntasks={nodes}", "--ntasks-per-node=1", "--kill-on-bad-exit=1",
        sys.executable, "-m", "leveret", "launch", f"--nproc={job.machines[0].slots}",
        f"--master-port={config.master_port}", f"--grace-seconds={config.grace_seconds:g}", *inner,
    ]  # fmt: skip
    return Start(host=f"{nodes} nodes of SLURM", arguments=tuple(arguments))
