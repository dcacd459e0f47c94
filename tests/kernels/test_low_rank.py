"""The fused adapter product equals the one written out, and computes no gradient of the frozen matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from leveret.kernels.low_rank import draw_kept, low_rank_linear, masked, plain_low_rank_linear

N, INPUTS, OUTPUTS, R = 2 * 30, 24, 40, 4


def problem(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, N // 2, INPUTS), (OUTPUTS, INPUTS), (R, INPUTS), (OUTPUTS, R))
    x, weight, a, b = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return x.requires_grad_(), weight, a.requires_grad_(), b.requires_grad_()


def outcome(function, tensors: tuple[Tensor, Tensor, Tensor, Tensor], kept: Tensor | None = None) -> list[Tensor]:
    x, weight, a, b = tensors
    y = function(x, weight, a, b, scale=0.5, kept=kept)
    trained = [tensor for tensor in (x, a, b) if tensor.requires_grad]
    slope = torch.linspace(-1, 1, y.numel()).view(y.shape).to(y.dtype)
    return [y.detach(), *torch.autograd.grad(y, trained, slope)]


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2)]
)
@pytest.mark.parametrize("dropped", [False, True])
def test_fused_equals_plain_in_value_and_gradients(dtype: torch.dtype, tolerance: float, dropped: bool) -> None:
    kept = draw_kept(torch.empty(2, N // 2, INPUTS), 0.3) if dropped else None
    fused, plain = outcome(low_rank_linear, problem(dtype), kept), outcome(plain_low_rank_linear, problem(dtype), kept)
    for mine, wanted in zip(fused, plain, strict=True):
        assert mine.shape == wanted.shape and mine.dtype == wanted.dtype
        assert (mine - wanted).norm() <= tolerance * wanted.norm()


@pytest.mark.parametrize("dropout", [0.0, 0.05, 0.5, 0.999])
def test_as_many_inputs_are_dropped_as_asked_for_and_each_by_itself(dropout: float) -> None:
    torch.manual_seed(0)
    drawn = draw_kept(torch.empty(301, 331), dropout)
    assert drawn.shape == (301, 331) and set(drawn.unique().tolist()) <= {0, -1}
    kept = drawn != 0
    assert abs(kept.float().mean() - (1 - dropout)) < 0.005
    if 0 < dropout < 0.9:
        pairs = (kept[:, 1:] & kept[:, :-1]).float().mean()
        assert abs(pairs - (1 - dropout) ** 2) < 0.005
    torch.manual_seed(0)
    assert torch.equal(draw_kept(torch.empty(301, 331), dropout), drawn)


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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_dropped_is_zero_and_the_rest_is_whole(dtype: torch.dtype) -> None:
    x = problem(dtype)[0].detach()
    kept = draw_kept(x, 0.4)
    assert torch.equal(masked(x, kept), torch.where(kept != 0, x, 0.0))
    one = torch.eye(INPUTS, dtype=dtype)
    y = low_rank_linear(x, torch.zeros_like(one), one, one, scale=1.0, kept=kept)
    assert torch.equal(y, masked(x, kept))
