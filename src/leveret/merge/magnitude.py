"""The k-th largest magnitude of a tensor that is seen in blocks, exactly, in little memory.

Sorting needs the whole tensor at once. A sample tells between which two bounds the number will lie; one look at all
values then counts those above and keeps the few between, and among these it is found by rank. Should the sample have
misled (the tensor's parts are unlike one another), nothing is lost but time: two more looks count. The bits of a
positive float32, read as an integer, are in the order of the numbers; so the first counts by the upper 16 bits and
finds the bin that the k-th largest lies in, the second counts the lower 16 bits inside it and finds the number.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BINS = 1 << 16
Counts = NDArray[np.int64]
Magnitudes = NDArray[np.float32]


MARGIN = 0.03
"""How far, as a share of all values, the bounds are from where the sample has the number."""


def bounds(sample: Magnitudes, share: float) -> tuple[float, float]:
    """Between which magnitudes the smallest of the largest `share` of values probably lies."""
    if not sample.size:
        return 0.0, np.inf
    low, high = 1 - share - MARGIN, 1 - share + MARGIN
    return (
        float(np.quantile(sample, low)) if low > 0 else 0.0,
        float(np.quantile(sample, high)) if high < 1 else np.inf,
    )


def look(values: Magnitudes, low: float, high: float) -> tuple[int, Magnitudes]:
    """How many magnitudes are above `high`, and those in [low, high]."""
    return int(np.count_nonzero(values > high)), values[(values >= low) & (values <= high)]


def pick(above: int, between: Magnitudes, rank: int) -> float | None:
    """The `rank`-th largest of all, if it is between the bounds."""
    place = between.size - (rank - above)
    if not 0 <= place < between.size:
        return None
    return float(np.partition(between, place)[place])


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
