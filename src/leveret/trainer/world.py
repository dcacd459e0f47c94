"""The processes that train one model together, seen from one of them; alone, everything here does nothing.

Small things (counts, losses, decisions) go through gloo on the CPU, tensors of an accelerator through NCCL. Three rules
keep a group exact and alive:

* what a step divides by, and every decision (stop, refuse, resume from), is summed or told by process 0, so that all
  processes do the same thing in the same step;
* work that only process 0 does (tokenizing, saving) is waited for without a limit: if it dies, torchrun ends the rest;
* a peer that is gone becomes an error that says so, and the same command goes on from the last checkpoint.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from leveret.errors import ConfigError, TrainingError
from leveret.ranks import Ranks
from leveret.trainer.config import TrainingConfig

T = TypeVar("T")

_POLL_SECONDS = 0.05


class World:
    """One process among `size`. Made by `joined`."""

    def __init__(self, device: torch.device, *, ranks: Ranks | None = None, store: Store | None = None) -> None:
        self.device = device
        self.ranks = ranks
        self.rank = 0 if ranks is None else ranks.rank
        self.size = 1 if ranks is None else ranks.world_size
        self._store = store
        self._waits = 0

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes."""
        return self.rank == 0

    @property
    def is_group(self) -> bool:
        """Whether torchrun started this process (with others, or as a group of one)."""
        return self.ranks is not None

    def sum(self, *values: float) -> list[float]:
        """Each value, summed over all processes in float64."""
        return self._reduced(values, dist.ReduceOp.SUM)

    def largest(self, value: float) -> float:
        """The largest value of any process."""
        return self._reduced([value], dist.ReduceOp.MAX)[0]

    def sum_(self, tensor: Tensor) -> None:
        """Replace `tensor` by its sum over all processes."""
        if self.size > 1:
            with naming_the_lost():
                dist.all_reduce(tensor)

    def largest_(self, tensor: Tensor) -> None:
        """Replace each number of `tensor` by the largest that any process has there."""
        if self.size > 1:
            with naming_the_lost():
                dist.all_reduce(tensor, op=dist.ReduceOp.MAX)

    def agree(self, value: T) -> T:
        """What process 0 has for `value`."""
        if self.size == 1:
            return value
        box: list[Any] = [value]
        with naming_the_lost():
            dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        agreed: T = box[0]
        return agreed

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        if self.size == 1:
            return [value]
        box: list[Any] = [None] * self.size
        with naming_the_lost():
            dist.all_gather_object(box, value)
        return box

    def refuse_difference(self, what: Mapping[str, object]) -> None:
        """TrainingError naming the entries of `what` that are not the same in all processes."""
        everywhere = self.gather({name: str(value) for name, value in what.items()})
        for name in what:
            values = [there[name] for there in everywhere]
            if len(set(values)) > 1:
                other = next(rank for rank, value in enumerate(values) if value != values[0])
                raise TrainingError(
                    f"process {other} has another {name} than process 0",
                    hint="all machines must see the same files under the same paths (a shared folder)",
                )

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """Process 0 runs the block first, then the others do, who find its files there."""
        self._waits += 1
        name = f"after {self._waits}"
        if not self.is_main:
            self._wait(name)
        yield
        if self.is_main and self._store is not None:
            self._store.set(name, "done")

    def _wait(self, name: str) -> None:
        assert self._store is not None
        with naming_the_lost():
            while not self._store.check([name]):
                time.sleep(_POLL_SECONDS)

    def _reduced(self, values: Any, operation: Any) -> list[float]:
        if self.size == 1:
            return list(values)
        numbers = torch.tensor(list(values), dtype=torch.float64)
        with naming_the_lost():
            dist.all_reduce(numbers, op=operation)
        return numbers.tolist()


@contextlib.contextmanager
def joined(config: TrainingConfig) -> Iterator[World]:
    """Within the block, the world that torchrun made this process part of, or one of its own.

    The device is `config.device`, with processes of a machine on accelerators of their own. ConfigError when there are
    too few of them. At the end of the block the others wait for process 0.
    """
    ranks = Ranks.from_environment()
    device = device_of(config.device, ranks)
    if ranks is None:
        yield World(device)
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    timeout = timedelta(minutes=config.parallel.timeout_minutes)
    store = meeting_place(ranks, ranks.gathering)
    with naming_the_lost():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", store=PrefixStore("group", store),
            rank=ranks.rank, world_size=ranks.world_size, timeout=timeout,
        )  # fmt: skip
    world = World(device, ranks=ranks, store=store)
    yield world
    with world.main_first():  # not left to a collective: process 0 may still have a large model to save
        pass
    dist.destroy_process_group()


def device_of(name: str, ranks: Ranks | None) -> torch.device:
    """The device that `training.device` means for this process."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ConfigError("training.device is cuda, but PyTorch finds no such device", hint="leave it at auto, or cpu")
    if name == "cpu" or not available:
        return torch.device("cpu")
    local_rank = 0 if ranks is None else ranks.local_rank
    if local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"{ranks} is number {local_rank} on its machine, which has {torch.cuda.device_count()} accelerators",
            hint="start as many processes on a machine as it has accelerators, or set training.device=cpu",
        )
    return torch.device("cuda", local_rank)


def meeting_place(ranks: Ranks, gathering: str) -> Store:
    """The part of torchrun's store that belongs to one gathering of one attempt."""
    with naming_the_lost():
        store = TCPStore(ranks.address, ranks.port, is_master=False, timeout=timedelta(minutes=5))
    return PrefixStore(f"leveret/{ranks.attempt}/{gathering}", store)


@contextlib.contextmanager
def naming_the_lost() -> Iterator[None]:
    """Turn the many ways in which PyTorch says that a peer is gone into one error."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not isinstance(error, dist.DistError) and "gloo" not in text and "onnection" not in text:
            raise
        first = text.strip().splitlines()[0]
        raise TrainingError(
            f"another process of this run is gone, or cannot be reached: {first}",
            hint="it says why itself, above or below; the same command goes on from the last checkpoint",
        ) from error
