"""One piece of work on many items, shared among the processor's cores by forking.

Python runs one thread at a time, so reading a hundred thousand conversations keeps one core busy. A forked process
begins with all that this one holds, so nothing is sent to it; what it finds comes back through a pipe. A process that
fails is no loss: its share is then done here, where the error has its usual place and traceback.
"""

from __future__ import annotations

import itertools
import os
import pickle
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import TypeVar

from leveret.container import allowed_cores

T = TypeVar("T")
R = TypeVar("R")

LEAST = 2000
"""Items a process must have for it to be worth its start."""


def in_processes(
    work: Callable[[Sequence[T]], list[R]], items: Sequence[T], *, processes: int | None = None, least: int = LEAST
) -> list[R]:
    """`work(items)`, in order, for a `work` whose results on parts of the items only need to be joined.

    `processes`: at most so many (default: the cores this process may use, OMP_NUM_THREADS if it is fewer). `work` runs
    in a copy of this process: it may start no threads and use no tensors, what it changes is lost, and what it returns
    must be picklable. Only Linux forks; elsewhere, and for few items, it runs here.
    """
    count = min(processes or usable_cores(), len(items) // least) if sys.platform == "linux" else 1
    if count < 2:
        return work(items)
    bounds = [len(items) * part // count for part in range(count + 1)]
    own, *others = [items[start:stop] for start, stop in itertools.pairwise(bounds)]
    children = [_begin(work, part) for part in others]
    try:
        found = work(own)
        for part in others:
            theirs: list[R] | None = _result(*children.pop(0))
            found += work(part) if theirs is None else theirs
        return found
    finally:
        for child, reading in children:  # an error has come before their turn
            os.kill(child, signal.SIGKILL)
            _result(child, reading)


def usable_cores() -> int:
    """The same, or OMP_NUM_THREADS if that is fewer."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(allowed_cores(), int(told))) if told.isdecimal() else allowed_cores()


def _begin(work: Callable[[Sequence[T]], list[R]], part: Sequence[T]) -> tuple[int, int]:
    """Fork a process for a part; its id and the pipe that its result comes through."""
    reading, writing = os.pipe()
    with warnings.catch_warnings():  # since 3.12 Python warns of forking beside threads, which the child never runs
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child:
        os.close(writing)
        return child, reading
    status = 1
    try:
        os.close(reading)
        with os.fdopen(writing, "wb") as pipe:
            pickle.dump(work(part), pipe, protocol=pickle.HIGHEST_PROTOCOL)
        status = 0
    finally:
        os._exit(status)


def _result(child: int, reading: int) -> list[R] | None:
    """What a process has found; None if it failed."""
    with os.fdopen(reading, "rb") as pipe:
        content = pipe.read()
    _, status = os.waitpid(child, 0)
    return pickle.loads(content) if status == 0 else None
