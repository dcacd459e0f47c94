"""The machines of a launch: a hostfile, the variables of SLURM, or just this one.

# hostfile, as DeepSpeed reads it           SLURM_JOB_NODELIST=gpu[01-03,07]
192.168.0.2 slots=8                         SLURM_GPUS_ON_NODE=8  (or SLURM_GPUS_PER_NODE=h100:8(S:0-1),
192.168.0.3 slots=8  # comments are fine    or SLURM_NTASKS_PER_NODE=8)

MPI's `max_slots=N` after the slots is a bound that they must keep to.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from leveret.errors import ConfigError

_FIRST_SPECIAL_STEP = 0xFFFFFFF0
"""From here on a SLURM_STEP_ID is none of `srun`: the script of a job, or a shell in it."""
_LINE = re.compile(r"(?P<host>[^\s#=]+)\s+slots=(?P<slots>\d+)(\s+max[_-]slots=(?P<most>\d+))?")


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

    @property
    def is_loopback(self) -> bool:
        """Whether its address means another machine wherever it is used."""
        try:
            return ipaddress.ip_address(self.address).is_loopback
        except ValueError:  # a name
            return self.address.partition(".")[0] == "localhost"


def read_hostfile(path: Path) -> list[Machine]:
    """The machines of a hostfile. ConfigError naming file and line."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise ConfigError(f"the hostfile {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the hostfile {path} is not UTF-8: {error.reason} at byte {error.start}",
                          hint="convert it, or write it anew") from error  # fmt: skip
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
        if match["most"] is not None and machine.slots > int(match["most"]):
            raise ConfigError(
                f"{path}:{number}: {machine.host} has {machine.slots} slots, and max_slots is {int(match['most'])}"
            )
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
        step = _number(environment, "SLURM_STEP_ID")
        in_step = step is not None and step < _FIRST_SPECIAL_STEP
        names = environment.get("SLURM_STEP_NODELIST" if in_step else "", "") or environment.get("SLURM_JOB_NODELIST")
        if not names:
            return None
        slots = nproc or _slots(environment)
        machines = tuple(Machine(host=host, slots=slots) for host in expand_nodes(names))
        if not in_step:
            return cls(machines=machines, node=None)
        tasks = environment.get("SLURM_STEP_TASKS_PER_NODE", "1")
        if re.fullmatch(r"1(\(x\d+\))?", tasks) is None:
            raise ConfigError(
                f"srun started {tasks} tasks on a node, but `leveret launch` starts the processes itself",
                hint="srun --ntasks-per-node=1 leveret launch ...",
            )
        node = _number(environment, "SLURM_NODEID") or 0
        if node >= len(machines):
            raise ConfigError(
                f"SLURM_NODEID is {node}, but SLURM's list names {len(machines)} machines: {names}",
                hint="name the machines in a hostfile: --hostfile",
            )
        return cls(machines=machines, node=node)


def _slots(environment: Mapping[str, str]) -> int:
    """Processes on each machine: its GPUs, else the tasks that were asked for, else what is seen here, else one."""
    per_node = re.sub(r"\([^)]*\)", "", environment.get("SLURM_GPUS_PER_NODE", ""))  # without sockets, as in (S:0-1)
    gpus = sum(int(count) for count in (entry.rpartition(":")[2] for entry in per_node.split(",")) if count.isdigit())
    tasks = _number(environment, "SLURM_NTASKS_PER_NODE")
    return _number(environment, "SLURM_GPUS_ON_NODE") or gpus or tasks or count_accelerators(environment) or 1


def expand_nodes(names: str) -> list[str]:
    """`gpu[01-02,07],r[1-2]n[1-2]` -> gpu01, gpu02, gpu07, r1n1, r1n2, r2n1, r2n2. ConfigError for what is none."""
    hosts: list[str] = []
    for part in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", names):
        match = re.fullmatch(r"([^\[]*)\[([^\]]*)\](.*)", part)
        if match is None:
            hosts.append(part)
            continue
        rests = expand_nodes(match[3]) or [""]
        hosts += [f"{match[1]}{number}{rest}" for number in _numbers(match[2], names) for rest in rests]
    return hosts


def _numbers(ranges: str, names: str) -> list[str]:
    """`01-03,07` -> 01, 02, 03, 07."""
    numbers: list[str] = []
    for piece in ranges.split(","):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", piece)
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ConfigError(
                f"SLURM's list of machines {names!r} has {piece!r} in brackets, not a number or a range",
                hint="name the machines in a hostfile: --hostfile",
            )
        first, last = match[1], match[2] or match[1]
        numbers += [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]
    return numbers


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
