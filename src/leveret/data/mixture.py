"""One seeded order over the rows of several sources, computed at any place without counting up to it.

A source's weight is how often it is seen in one epoch: 1 is once, 0.5 is half of it now and the other half in the next
epoch, 3 is three times. An epoch is the rows of all sources so weighted, shuffled; a source's rows are themselves
shuffled anew for each pass over them, and a pass is always finished before the next begins.

The row at place k is a function of (seed, k) alone. A resumed run needs the number k and nothing else, and any
division of the places among processes divides the rows: none is read twice, none is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from leveret.data.packing import PackedRows, Row
from leveret.errors import DataError

_EPOCH, _SOURCE = 0, 1  # first part of a permutation's seed: what is shuffled

MOST_ROWS = 2**28
"""Rows of an epoch beyond what there is to read; their order is held in memory, 8 bytes a row, twice while shuffled."""


class Mixture:
    """`row(place)` for place 0, 1, 2 ... without end; `len` is the rows of one epoch."""

    def __init__(self, sources: Sequence[tuple[PackedRows, float]], *, seed: int) -> None:
        if any(weight <= 0 for _, weight in sources):
            raise DataError(f"weights must be above 0, not {[weight for _, weight in sources]}")
        if not sources or any(len(rows) == 0 for rows, _ in sources):
            raise DataError("there is nothing to train on: a source has no rows")
        lengths = {rows.sequence_length for rows, _ in sources}
        if len(lengths) > 1:
            raise DataError(f"the rows of a mixture must have one length, not {sorted(lengths)}")
        self._sources = [rows for rows, _ in sources]
        self._per_epoch = [rows_per_epoch(len(rows), weight) for rows, weight in sources]
        _refuse_endless_epoch(sum(len(rows) for rows, _ in sources), sum(self._per_epoch), sources)
        self._ends = np.cumsum(self._per_epoch)
        self._seed = seed
        # All that an epoch needs: its own order, and of each source those of the passes that it has a part in.
        passes = (drawn // len(rows) + 2 for drawn, rows in zip(self._per_epoch, self._sources, strict=True))
        self._permutation = lru_cache(maxsize=1 + sum(passes))(_permutation)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def row_at(self, place: int) -> tuple[int, int]:
        """Which source, and which of its rows, stands at `place`."""
        source, index, _ = self._at(place)
        return source, index

    def _at(self, place: int) -> tuple[int, int, int]:
        """The source, its row, and which pass over that source this is."""
        epoch, place_in_epoch = divmod(place, len(self))
        slot = int(self._permutation(len(self), (self._seed, _EPOCH, epoch))[place_in_epoch])
        source = int(np.searchsorted(self._ends, slot, side="right"))
        draw = epoch * self._per_epoch[source] + slot - (int(self._ends[source]) - self._per_epoch[source])
        size = len(self._sources[source])
        turn, rank = divmod(draw, size)
        return source, int(self._permutation(size, (self._seed, _SOURCE, source, turn))[rank]), turn

    def row(self, place: int) -> Row:
        """The row at `place`."""
        source, index, turn = self._at(place)
        return self._sources[source].row(index, turn=turn)

    def key(self, place: int) -> str:
        """A name a person can find the row at `place` by."""
        source, index = self.row_at(place)
        return self._sources[source].key(index)


def rows_per_epoch(num_rows: int, weight: float) -> int:
    """How many rows of a source that has `num_rows` an epoch holds."""
    return max(1, round(weight * num_rows))


def _refuse_endless_epoch(num_rows: int, in_epoch: int, sources: Sequence[tuple[PackedRows, float]]) -> None:
    """DataError when it is the weights, not the data, that make an epoch longer than its order fits into memory."""
    if in_epoch > max(MOST_ROWS, num_rows):
        raise DataError(
            f"the weights {[weight for _, weight in sources]} make an epoch of {in_epoch:,} rows out of {num_rows:,}",
            hint="a weight is how often a source is seen in an epoch: give numbers near 1, and num_epochs for more",
        )


def _permutation(size: int, seed: tuple[int, ...]) -> NDArray[np.int64]:
    """A shuffle of 0 .. size-1, the same on every machine and with every version of numpy.

    The raw output of a bit generator is fixed for ever by numpy's promise; the methods that shuffle are not.
    """
    return np.argsort(np.random.PCG64(np.random.SeedSequence(seed)).random_raw(size), kind="stable")
