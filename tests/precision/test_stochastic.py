"""Stochastic rounding: right in the mean, one of the two neighbours always, and a function of its generator."""

import pytest
import torch

from leveret.precision.stochastic import generator_for, round_to_bf16

CPU = torch.device("cpu")


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("base", [1.0, -1.0, 2.0**-97, -(2.0**66)])
def test_the_mean_of_many_roundings_is_the_number(base, share):
    below, above = base, base * (1 + 2**-7)  # neighbours in bf16
    number = below + share * (above - below)
    draws = 40_000
    rounded = round_to_bf16(torch.full((draws,), number), generator_for(CPU, 7)).float()
    assert {*rounded.tolist()} <= {*torch.tensor([below, above]).bfloat16().float().tolist()}
    went = ((rounded - below) / (above - below)).mean()
    assert went == pytest.approx(share, abs=4 * (share * (1 - share) / draws) ** 0.5 + 1e-3)


def test_what_bf16_can_represent_does_not_move():
    numbers = torch.randn(1001, generator=torch.Generator().manual_seed(0)).bfloat16()
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf]).bfloat16()
    for exact in (numbers, special):
        assert torch.equal(round_to_bf16(exact.float(), generator_for(CPU, 1)), exact)


def test_a_thousand_small_updates_arrive_in_the_mean_where_rounding_to_nearest_stands_still():
    chance, nearest = torch.ones(4096).bfloat16(), torch.ones(4096).bfloat16()
    for step in range(1000):
        chance = round_to_bf16(chance.float() + 1e-4, generator_for(CPU, step))
        nearest = (nearest.float() + 1e-4).bfloat16()
    assert torch.equal(nearest, torch.ones(4096).bfloat16())
    assert chance.float().mean() == pytest.approx(1.1, abs=2e-3)


def test_the_same_numbers_give_the_same_rounding_and_others_another():
    numbers = torch.randn(500, generator=torch.Generator().manual_seed(0))
    first, again, other = (round_to_bf16(numbers, generator_for(CPU, *seed)) for seed in [(0, 1), (0, 1), (0, 2)])
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_neighbours_are_rounded_independently():
    rounded = round_to_bf16(torch.full((40_000,), 1 + 2**-8), generator_for(CPU, 3)).float() - 1
    up = (rounded > 0).float() - 0.5
    for distance in (1, 2, 3, 4):
        assert (up[distance:] * up[:-distance]).mean().abs() < 0.01
