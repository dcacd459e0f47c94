"""Work shared among forked processes gives what one process gives, also when a process fails."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from leveret.errors import DataError
from leveret.forked import in_processes, usable_cores

ITEMS = list(range(101))


def children() -> str:
    """The processes that this one has begun and not seen end; "" where the system does not tell."""
    told = Path(f"/proc/self/task/{os.getpid()}/children")
    return told.read_text() if told.exists() else ""


def squares(part: Sequence[int]) -> list[int]:
    return [item * item for item in part]


@pytest.mark.parametrize("processes", [1, 2, 3, 7])
def test_results_are_in_order_whatever_the_number_of_processes(processes: int) -> None:
    assert in_processes(squares, ITEMS, processes=processes, least=10) == [item * item for item in ITEMS]
    assert in_processes(squares, [], processes=processes, least=1) == []


def test_the_shares_are_done_by_different_processes() -> None:
    found = in_processes(lambda part: [(os.getpid(), len(part))], ITEMS, processes=3, least=10)
    assert found[0][0] == os.getpid() and len({process for process, _ in found}) == 3
    assert sum(number for _, number in found) == 101


def test_few_items_are_done_here() -> None:
    assert in_processes(lambda part: [os.getpid()], ITEMS, processes=4, least=60) == [os.getpid()]


def test_more_comes_back_than_a_pipe_holds() -> None:
    def long(part: Sequence[int]) -> list[str]:
        return ["x" * 10_000 for _ in part]

    assert in_processes(long, ITEMS, processes=2, least=10) == ["x" * 10_000] * 101


def test_the_share_of_a_process_that_was_killed_is_done_here() -> None:
    here = os.getpid()

    def dies(part: Sequence[int]) -> list[int]:
        if os.getpid() != here:
            os.kill(os.getpid(), 9)
        return squares(part)

    assert in_processes(dies, ITEMS, processes=3, least=10) == squares(ITEMS)


@pytest.mark.parametrize("bad", [3, 50, 99])
def test_an_error_is_raised_as_it_is_and_no_process_is_left(bad: int) -> None:
    def refuses(part: Sequence[int]) -> list[int]:
        if bad in part:
            raise DataError(f"item {bad} is bad", hint="leave it out")
        return squares(part)

    before = children()
    with pytest.raises(DataError, match=f"item {bad} is bad"):
        in_processes(refuses, ITEMS, processes=3, least=10)
    assert children() == before


def test_no_more_processes_than_threads_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert usable_cores() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "1000")
    cores = usable_cores()
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert usable_cores() == cores >= 1
