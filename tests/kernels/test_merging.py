"""Merging's arithmetic on stored values: the compiled kernels against their twins, and what must come out exact."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from leveret.kernels.merging import (
    all_finite,
    gram_matrix,
    plain_gram_matrix,
    plain_weighted_sum,
    weighted_sum,
)

COUNT = 9_003  # two runs of 4,096, and some that fill no register


def blocks(number: int, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(COUNT, generator=generator).to(dtype) for _ in range(number)]


@pytest.mark.parametrize("weights", [[0.4, 0.6], [1.5, -0.25, 0.5], [0.2, 0.0, 0.1, 0.3], [1.0]])
def test_weighted_sums_are_those_of_the_twin(build: str, weights: list[float]) -> None:
    values = blocks(len(weights))
    mine, twin = weighted_sum(values, weights, torch.bfloat16), plain_weighted_sum(values, weights, torch.bfloat16)
    exact = sum(weight * value.double() for weight, value in zip(weights, values, strict=True))
    assert mine.dtype == torch.bfloat16
    assert (mine != twin).float().mean() < 0.01  # sums that lie between two numbers, but for the last bit
    torch.testing.assert_close(mine.double(), exact, rtol=2.0**-8, atol=1e-5)


@pytest.mark.parametrize("weights", [[0.4, 0.4, 0.2], [1 / 3, 1 / 3, 1 / 3], [2.0, -0.7, -0.3]])
def test_a_model_with_itself_stays_what_it_is_to_the_bit_with_its_smallest_numbers(
    build: str, weights: list[float]
) -> None:
    (value,) = blocks(1)
    value[::7] = torch.tensor([1e-40, -2e-39, 1.2e-38, -0.0, 3e38], dtype=torch.bfloat16).repeat(300)[: len(value[::7])]
    merged = weighted_sum([value] * 3, weights, torch.bfloat16)
    assert torch.equal(merged.view(torch.int16)[value != 0], value.view(torch.int16)[value != 0])
    assert torch.equal(merged, value)


def test_a_model_of_weight_zero_is_not_looked_at(build: str) -> None:
    value, other = blocks(2)
    nothing = torch.full_like(value, float("nan"))
    assert torch.equal(weighted_sum([nothing, value, nothing], [0.0, 1.0, 0.0], torch.bfloat16), value)
    assert all_finite(weighted_sum([nothing, value, other], [0.0, 0.5, 0.5], torch.bfloat16))
    assert torch.equal(weighted_sum([nothing, value], [0.0, 0.0], torch.bfloat16), torch.zeros_like(value))


@pytest.mark.parametrize("changes", [False, True])
@pytest.mark.parametrize("models", [1, 2, 4])
def test_inner_products_are_those_of_the_twin(build: str, models: int, changes: bool) -> None:
    base, *values = blocks(models + 1)
    values = [base + 0.1 * value for value in values] if changes else values
    mine, twin = (gram(values, base if changes else None) for gram in (gram_matrix, plain_gram_matrix))
    assert mine.dtype == torch.float64
    assert torch.equal(mine, mine.T)
    torch.testing.assert_close(mine, twin, rtol=1e-6, atol=1e-6 * float(twin.diagonal().mean()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("strange", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("place", [0, 4_099, COUNT - 1])
def test_a_value_that_is_not_finite_is_seen_wherever_it_is(
    build: str, place: int, strange: float, dtype: torch.dtype
) -> None:
    (value,) = blocks(1, dtype)
    value[0] = torch.finfo(dtype).max
    assert all_finite(value)
    value[place] = strange
    assert not all_finite(value)


def test_other_dtypes_are_summed_in_float32_and_rounded_once(build: str) -> None:
    values = blocks(2, torch.float16)
    merged = weighted_sum(values, [0.25, 0.75], torch.float16)
    assert torch.equal(merged, (0.25 * values[0].float() + 0.75 * values[1].float()).half())
    assert weighted_sum(values, [0.25, 0.75]).dtype == torch.float32
