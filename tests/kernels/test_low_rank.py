"""The fused adapter product equals the one written out, and computes no gradient of the frozen matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from leveret.kernels.low_rank import low_rank_linear, plain_low_rank_linear

N, INPUTS, OUTPUTS, R = 2 * 30, 24, 40, 4


def problem(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, N // 2, INPUTS), (OUTPUTS, INPUTS), (R, INPUTS), (OUTPUTS, R))
    x, weight, a, b = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return x.requires_grad_(), weight, a.requires_grad_(), b.requires_grad_()


def outcome(function, tensors: tuple[Tensor, Tensor, Tensor, Tensor]) -> list[Tensor]:
    x, weight, a, b = tensors
    y = function(x, weight, a, b, scale=0.5)
    trained = [tensor for tensor in (x, a, b) if tensor.requires_grad]
    slope = torch.linspace(-1, 1, y.numel()).view(y.shape).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, trained, slope)]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
def test_fused_equals_plain_in_value_and_gradients(dtype: torch.dtype, tolerance: float) -> None:
    for fused, plain in zip(outcome(low_rank_linear, problem(dtype)), outcome(plain_low_rank_linear, problem(dtype)),
                            strict=True):  # fmt: skip
        assert fused.shape == plain.shape and fused.dtype == plain.dtype
        assert (fused - plain).norm() <= tolerance * plain.norm()


def test_an_input_without_gradient_gets_none() -> None:
    x, weight, a, b = problem(torch.float32)
    fused = outcome(low_rank_linear, (x.detach(), weight, a, b))
    whole = outcome(low_rank_linear, (x, weight, a, b))
    assert len(fused) == 3
    assert torch.equal(fused[1], whole[2]) and torch.equal(fused[2], whole[3])


def test_backward_multiplies_by_the_large_matrix_once() -> None:
    tensors = problem(torch.float32)
    with FlopCounterMode(display=False) as flops:
        outcome(low_rank_linear, tensors)
    large, thin = 2 * N * INPUTS * OUTPUTS, 2 * N * R
    counted = 2 * large + 2 * thin * (INPUTS + OUTPUTS)  # the counter does not see the two that are added in place
    assert flops.get_total_flops() == counted
