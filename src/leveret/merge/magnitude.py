"""The k-th largest magnitude of a tensor that is seen in blocks, exactly, in constant memory.

Sorting needs the whole tensor at once. But the bits of a positive float32, read as an integer, are in the order of the
numbers. So a first look counts by the upper 16 bits of each |value| and finds the bin that the k-th largest lies in;
a second look counts the lower 16 bits inside that bin and finds the number itself.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BINS = 1 << 16
Counts = NDArray[np.int64]


def no_counts() -> Counts:
    """What sums of counts begin with."""
    return np.zeros(BINS, dtype=np.int64)


def upper_counts(values: NDArray[np.float32]) -> Counts:
    """How many |values| have each upper half (BINS,)."""
    return np.bincount(_bits(values) >> 16, minlength=BINS)


def lower_counts(values: NDArray[np.float32], upper: int) -> Counts:
    """Among those |values| whose upper half is `upper`, how many have each lower half (BINS,)."""
    bits = _bits(values)
    return np.bincount(bits[bits >> 16 == upper] & 0xFFFF, minlength=BINS)


def find_bin(counts: Counts, rank: int) -> tuple[int, int]:
    """The bin that holds the `rank`-th largest (from 1), and its rank among the values of this bin."""
    from_above = np.cumsum(counts[::-1])
    place = int(np.searchsorted(from_above, rank))
    above = int(from_above[place - 1]) if place else 0
    return BINS - 1 - place, rank - above


def magnitude(upper: int, lower: int) -> float:
    """The number with these two halves."""
    return float(np.array([upper << 16 | lower], dtype=np.uint32).view(np.float32)[0])


def _bits(values: NDArray[np.float32]) -> NDArray[np.int32]:
    return values.view(np.int32) & np.int32(0x7FFFFFFF)
