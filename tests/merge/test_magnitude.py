"""The k-th largest magnitude by counting is the one by sorting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from leveret.merge.magnitude import bounds, find_bin, look, lower_counts, magnitude, no_counts, pick, upper_counts


def kth(blocks: list[np.ndarray], rank: int) -> float:
    upper, rank = find_bin(sum((upper_counts(block) for block in blocks), start=no_counts()), rank)
    lower, _ = find_bin(sum((lower_counts(block, upper) for block in blocks), start=no_counts()), rank)
    return magnitude(upper, lower)


@settings(max_examples=40, deadline=None)
@given(
    st.data(),
    arrays.arrays(np.float32, st.integers(1, 60), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
)
def test_it_is_the_one_that_sorting_finds(data: st.DataObject, values: np.ndarray) -> None:
    rank = data.draw(st.integers(1, values.size))
    cut = data.draw(st.integers(0, values.size))
    expected = float(np.sort(np.abs(values))[::-1][rank - 1])
    assert kth([values[:cut], values[cut:]], rank) == expected


@pytest.mark.parametrize("rank", [1, 500, 1000])
def test_many_equal_values_do_no_harm(rank: int) -> None:
    values = np.repeat(np.array([0.5, -0.5, 0.0, 2.0], np.float32), 250)
    expected = {1: 2.0, 500: 0.5, 1000: 0.0}[rank]
    assert kth([values], rank) == expected


@pytest.mark.parametrize("share", [0.001, 0.2, 0.5, 0.99])
def test_a_sample_s_bounds_hold_the_number_and_little_else(share: float) -> None:
    values = np.abs(np.random.default_rng(0).standard_normal(100_000)).astype(np.float32)
    low, high = bounds(values[::10], share)
    above, between = zip(*(look(block, low, high) for block in np.array_split(values, 7)), strict=True)
    rank = int(share * values.size)
    assert pick(sum(above), np.concatenate(between), rank) == np.sort(values)[::-1][rank - 1]
    assert sum(map(len, between)) < 0.08 * values.size


def test_a_sample_that_misleads_is_noticed() -> None:
    values = np.arange(1, 1001, dtype=np.float32)
    low, high = bounds(values[-100:], 0.5)
    assert pick(*look(values, low, high), rank=500) is None
    low, high = bounds(values[:100], 0.5)
    assert pick(*look(values, low, high), rank=500) is None
