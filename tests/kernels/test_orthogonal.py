"""Muon's direction: the compiled kernel against its twin in PyTorch and against the exact one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from leveret.kernels.orthogonal import (
    ROUNDS,
    SLACK,
    exact_orthogonalize,
    orthogonalize,
    orthogonalize_unit_,
    plain_orthogonalize_unit,
)

SHAPES = [(64, 64), (100, 40), (40, 100), (1, 7), (130, 200), (192, 65)]


def unit_matrices(shape: tuple[int, int], number: int = 4) -> Tensor:
    x = torch.randn(number, *shape, generator=torch.Generator().manual_seed(0))
    return (x / x.norm(dim=(1, 2), keepdim=True)).bfloat16()


def in_double(x: Tensor) -> Tensor:
    """The same rounds without a rounding."""
    x = x.double()
    x = x / (SLACK * torch.linalg.svdvals(x).pow(4).sum(-1).pow(0.25)[:, None, None])
    for a, b, c in ROUNDS:
        square = x @ x.transpose(1, 2)
        x = a * x + (b * square + c * square @ square) @ x
    return x


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_as_near_to_the_polynomial_as_its_twin(attention_build: str, shape: tuple[int, int]) -> None:
    x = unit_matrices(shape)
    mine, twin, exact = orthogonalize_unit_(x.clone()), plain_orthogonalize_unit(x.clone()), in_double(x)
    far = (twin - exact).norm() / exact.norm()
    assert (mine - exact).norm() / exact.norm() <= max(1.3 * float(far), 1e-2)
    assert not torch.equal(mine, x)


def test_whole_matrices_keep_their_places(build: str) -> None:
    """One by one gives what all together give: nothing leaks from a matrix into the next one."""
    x = unit_matrices((96, 160), number=5)
    together = orthogonalize_unit_(x.clone())
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = [orthogonalize_unit_(x[n : n + 1].clone()) for n in range(5)]
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_singular_values_come_near_one_at_any_scale(build: str, scale: float) -> None:
    x = torch.randn(2, 48, 80, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(orthogonalize(x * scale))
    assert values.min() > 0.5
    assert values.max() < 1.36
    assert torch.linalg.svdvals(exact_orthogonalize(x[0])).sub(1).abs().max() < 1e-5


def test_each_round_is_the_minimax_polynomial_for_what_the_round_before_leaves() -> None:
    """It is farthest from 1 by the same at four places, by turns below and above: no quintic can be nearer."""
    low, high = 0.002, 1.0
    for number, (a, b, c) in enumerate(ROUNDS):
        cushion = 1.01 if number in (1, 2) else 1.0
        x = torch.linspace(low, high, 200_001, dtype=torch.float64) * cushion
        errors = 1 - (a * x + b * x**3 + c * x**5)
        inner = errors[1:-1]
        turns = (inner - errors[:-2]) * (errors[2:] - inner) <= 0
        extremes = torch.cat([errors[:1], inner[turns], errors[-1:]])
        assert len(extremes) == 4
        signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
        torch.testing.assert_close(extremes * signs, extremes.abs().max().expand(4), rtol=0, atol=5e-4)
        low, high = 1 - float(extremes.abs().max()), 1 + float(extremes.abs().max())
    assert low > 0.66 and high < 1.34


def test_small_singular_values_are_raised_and_none_runs_away(build: str) -> None:
    """From 0.002 of the Schatten 4-norm up."""
    generator = torch.Generator().manual_seed(3)
    left, right = (torch.linalg.qr(torch.randn(64, 64, generator=generator))[0] for _ in range(2))
    values = torch.logspace(-2.5, 0, 64)
    assert values.min() / values.pow(4).sum().pow(0.25) > 0.002
    x = (left * values) @ right
    found = torch.linalg.svdvals(orthogonalize(x[None])[0])
    assert found.min() > 0.6
    assert found.max() < 1.36


def test_matrices_of_rank_one_and_of_zeros_stay_finite(build: str) -> None:
    generator = torch.Generator().manual_seed(4)
    one = torch.outer(torch.randn(48, generator=generator), torch.randn(80, generator=generator))
    both = orthogonalize(torch.stack([one, torch.zeros(48, 80)]))
    assert torch.linalg.matrix_norm(both[0], ord=2) == pytest.approx(1, abs=0.36)
    assert not both[1].any()
