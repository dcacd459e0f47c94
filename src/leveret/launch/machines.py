"""The machines of a launch: a hostfile, the variables of SLURM, or just this one.

# hostfile, as DeepSpeed reads it           SLURM_JOB_NODELIST=gpu[01-03,07]
192.168.0.2 slots=8                         SLURM_GPUS_ON_NODE=8
192.168.0.3 slots=8  # comments are fine
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from leveret.errors import ConfigError

_LINE = re.compile(r"(?P<host>[^\s#=]+)\s+slots=(?P<slots>\d+)")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One machine and how many processes it gets."""

    host: str
    """A name or an address; for ssh it may begin with `user@`."""
    slots: int

    @property
    def address(self) -> str:
        """The host without the user."""
        return self.host.rpartition("@")[2]


def read_hostfile(path: Path) -> list[Machine]:
    """The machines of a hostfile. ConfigError naming file and line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"the hostfile {path} cannot be read: {error.strerror}") from error
    found: dict[str, tuple[Machine, int]] = {}
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        match = _LINE.fullmatch(text)
        if match is None:
            raise ConfigError(f"{path}:{number}: expected `HOST slots=N`, not {text!r}")
        machine = Machine(host=match["host"], slots=int(match["slots"]))
        if machine.slots < 1:
            raise ConfigError(f"{path}:{number}: {machine.host} has no slots", hint="take the line out, or comment it")
        if machine.address in found:
            first = found[machine.address][1]
            raise ConfigError(f"{path}:{number}: {machine.host} stands in line {first} already")
        found[machine.address] = (machine, number)
    if not found:
        raise ConfigError(f"{path}: names no machine", hint="a line `HOST slots=N` for each")
    return [machine for machine, _ in found.values()]


@dataclass(frozen=True, kw_only=True)
class SlurmJob:
    """What SLURM says about the job this process is in."""

    machines: tuple[Machine, ...]
    node: int | None
    """Which of them this process is on, when `srun` started it once on each; None in the script of the job."""

    @classmethod
    def from_environment(cls, environment: Mapping[str, str], *, nproc: int | None) -> SlurmJob | None:
        """None outside of SLURM."""
        if "SLURM_JOB_ID" not in environment:
            return None
        in_step = environment.get("SLURM_STEP_ID", "").isdigit()
        names = environment.get("SLURM_STEP_NODELIST" if in_step else "SLURM_JOB_NODELIST", "")
        if not names:
            return None
        slots = nproc or _number(environment, "SLURM_GPUS_ON_NODE") or 1
        machines = tuple(Machine(host=host, slots=slots) for host in expand_nodes(names))
        if not in_step:
            return cls(machines=machines, node=None)
        tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", "1")
        if re.fullmatch(r"1(\(x\d+\))?", tasks) is None:
            raise ConfigError(
                f"srun started {tasks} tasks on a node, but `leveret launch` starts the processes itself",
                hint="srun --ntasks-per-node=1 leveret launch ...",
            )
        return cls(machines=machines, node=_number(environment, "SLURM_NODEID") or 0)


def expand_nodes(names: str) -> list[str]:
    """`gpu[01-03,07],login` -> gpu01, gpu02, gpu03, gpu07, login."""
    hosts: list[str] = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", names):
        match = re.fullmatch(r"(.*)\[(.*)\](.*)", part)
        if match is None:
            hosts.append(part)
            continue
        for piece in match[2].split(","):
            first, _, last = piece.partition("-")
            numbers = range(int(first), int(last or first) + 1)
            hosts += [f"{match[1]}{number:0{len(first)}d}{match[3]}" for number in numbers]
    return hosts


def is_here(machine: Machine) -> bool:
    """Whether a machine is the one this runs on: whether its address can be bound to."""
    try:
        found = socket.getaddrinfo(machine.address, 0, type=socket.SOCK_STREAM)
    except OSError:
        return False
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as one:
                one.bind(address)
                return True
        except OSError:
            continue
    return False


def count_accelerators(environment: Mapping[str, str], devices: Path = Path("/dev")) -> int:
    """The NVIDIA devices that a process here would see, without asking a driver."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([entry for entry in visible.split(",") if entry.strip() not in ("", "-1")])
    return len([entry for entry in os.listdir(devices) if re.fullmatch(r"nvidia\d+", entry)])


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name, "")
    return int(text) if text.isdigit() else None
