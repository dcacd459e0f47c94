"""Side by side: two programs do the same work by turns, each in a process of its own, and are compared.

A figure alone says as much about the machine as about the program. So the peer is timed in the same minute, on the
same input, turn by turn, and who goes first changes with every round: warm caches, a throttling processor and a
neighbour's load meet both alike. Each side lives in its own process, so that neither runs in the other's allocator
settings or thread pool, and its peak memory is its own.

    sides = [Side("leveret", make_ours, shape), Side("transformers", make_theirs, shape)]
    timing, difference = alternate(sides, "decode", amount=128, unit="token", rounds=7, same=compare)

`make(shape)` builds everything outside the clock and returns a dictionary: name of a work -> function without
arguments, whose result (plain data) the script compares between the sides. The rules: docs/contributing/benchmark.md.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from leveret.console import Console
from peak_memory import peak_bytes


@dataclass(frozen=True)
class Staged:
    """A work of which only the second part is timed."""

    prepare: Callable[[], Any]
    work: Callable[[], Any]


Works = Mapping[str, Callable[[], Any] | Staged]
PAUSE_SECONDS = 0.05  # the other side's threads stop spinning before the clock starts


class Side:
    """One program under test, in a process of its own."""

    def __init__(self, name: str, make: Callable[[Any], Works], argument: Any) -> None:
        self.name = name
        self.peak_bytes = 0
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_answer, args=(theirs, make, argument), daemon=True)
        self._process.start()
        theirs.close()

    def do(self, work: str) -> tuple[float, Any]:
        """Do `work` once: seconds on the side's own clock, and the result."""
        try:
            self._connection.send(work)
            seconds, result, self.peak_bytes = self._connection.recv()
        except (EOFError, BrokenPipeError):
            raise SystemExit(f"{self.name} has died at {work!r}; what it said is above") from None
        return seconds, result

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(10)


def _answer(connection: Connection, make: Callable[[Any], Works], argument: Any) -> None:
    works = make(argument)
    while True:
        try:
            work = works[connection.recv()]
        except EOFError:
            return
        if isinstance(work, Staged):
            work.prepare()
            work = work.work
        began = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - began
        connection.send((seconds, result, peak_bytes()))


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What one work took on both sides, round by round."""

    work: str
    amount: int
    """How much was done in a round."""
    unit: str
    """Of what: "token" ..."""
    seconds: Mapping[str, Sequence[float]]
    """Side -> one value a round. The first side is ours."""

    @property
    def ratios(self) -> list[float]:
        """How many times faster than the peer we were, round by round."""
        ours, theirs = self.seconds.values()
        return [their / our for our, their in zip(ours, theirs, strict=True)]

    @property
    def ratio(self) -> float:
        """The peer's median seconds by ours."""
        ours, theirs = (statistics.median(seconds) for seconds in self.seconds.values())
        return theirs / ours

    def as_data(self) -> dict[str, Any]:
        """For the JSON file."""
        sides = {
            name: {
                "median_seconds": statistics.median(seconds),
                "min_seconds": min(seconds),
                "max_seconds": max(seconds),
                f"{self.unit}s_per_second": self.amount / statistics.median(seconds),
            }
            for name, seconds in self.seconds.items()
        }
        return {"sides": sides, "ratio": self.ratio, "ratio_range": [min(self.ratios), max(self.ratios)]}

    def as_row(self) -> list[str]:
        """For the table: work, each side's rate and range, ratio and range."""
        rates = [
            f"{self.amount / statistics.median(seconds):,.0f} "
            f"({self.amount / max(seconds):,.0f} to {self.amount / min(seconds):,.0f})"
            for seconds in self.seconds.values()
        ]
        return [self.work, *rates, f"{self.ratio:.2f} ({min(self.ratios):.2f} to {max(self.ratios):.2f})"]


_HELD = contextlib.ExitStack()
atexit.register(_HELD.close)


def until_the_end(context: AbstractContextManager[Any]) -> None:
    """Enter a context that this process leaves when it ends."""
    _HELD.enter_context(context)


def alternate(
    sides: Sequence[Side], work: str, *, amount: int, unit: str, rounds: int, same: Callable[[Any, Any], str | None]
) -> tuple[Timing, str | None]:
    """Time `work` by turns, after one round that is not counted.

    same: given both results of a round, says what differs, or None. The first difference comes back beside the timing.
    """
    seconds: dict[str, list[float]] = {side.name: [] for side in sides}
    difference = None
    for number in range(-1, rounds):
        results = {}
        for side in sides if number % 2 else reversed(sides):
            time.sleep(PAUSE_SECONDS)
            took, results[side.name] = side.do(work)
            if number >= 0:
                seconds[side.name].append(took)
        found = same(*(results[side.name] for side in sides))  # each round: it may keep what it saw
        difference = difference or found
    return Timing(work=work, amount=amount, unit=unit, seconds=seconds), difference


def report(
    title: str,
    timings: Sequence[Timing],
    sides: Sequence[Side],
    checks: Mapping[str, str | None],
    *,
    settings: Mapping[str, Any],
    packages: Sequence[str],
    file: Path | None,
    peaks: Mapping[str, int] | None = None,
) -> int:
    """Print the table, write `file`, and return the exit code: 1 when the two sides did not do the same.

    peaks: most memory of each process, where there are more of them than these sides.
    """
    console = Console()
    names = [side.name for side in sides]
    units = {timing.unit for timing in timings}
    console.table(
        f"{title} ({' and '.join(sorted(units))}s a second: median, range)",
        ["work", *names, f"{names[0]} / {names[1]}"],
        [timing.as_row() for timing in timings],
    )
    peaks = peaks or {side.name: side.peak_bytes for side in sides}
    console.info("peak memory: " + ", ".join(f"{name} {peak / 2**20:,.0f} MiB" for name, peak in peaks.items()))
    for check, difference in checks.items():
        console.info(f"{check}: {difference or 'yes'}")
    if file is not None:
        data = {
            "title": title,
            "settings": dict(settings),
            "machine": machine(packages),
            "works": {timing.work: timing.as_data() for timing in timings},
            "peak_memory_bytes": peaks,
            "checks": {check: difference or "yes" for check, difference in checks.items()},
        }
        file.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return 1 if any(checks.values()) else 0


def machine(packages: Sequence[str]) -> dict[str, Any]:
    """Where the figures come from."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": names[0] if names else platform.processor(),
        "processors": os.cpu_count(),
        "threads": os.environ.get("OMP_NUM_THREADS", "default"),
        "system": platform.platform(),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }
