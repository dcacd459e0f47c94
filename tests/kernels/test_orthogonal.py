"""Muon's direction: the compiled kernel against its twin in PyTorch and against the exact one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from leveret.kernels.orthogonal import exact_orthogonalize, orthogonalize, orthogonalize_unit_, plain_orthogonalize_unit

SHAPES = [(64, 64), (100, 40), (40, 100), (1, 7), (130, 200), (192, 65)]


def unit_matrices(shape: tuple[int, int], number: int = 4) -> Tensor:
    x = torch.randn(number, *shape, generator=torch.Generator().manual_seed(0))
    return (x / x.norm(dim=(1, 2), keepdim=True)).bfloat16()


def in_double(x: Tensor) -> Tensor:
    """The same rounds without a rounding."""
    x = x.double()
    for _ in range(5):
        square = x @ x.transpose(1, 2)
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
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
    assert values.max() < 1.3
    assert torch.linalg.svdvals(exact_orthogonalize(x[0])).sub(1).abs().max() < 1e-5
