"""RMSNorm and SwiGLU: the compiled kernels against their PyTorch twins, values and gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from leveret.kernels.native import library
from leveret.kernels.rms_norm import add_rms_norm, plain_add_rms_norm, plain_rms_norm, rms_norm
from leveret.kernels.swiglu import plain_swiglu, swiglu

Pair = tuple[Tensor, list[Tensor]]


def value_and_gradients(call: Callable[..., Tensor], inputs: list[Tensor], slope: Tensor) -> Pair:
    leaves = [each.detach().clone().requires_grad_() for each in inputs]
    out = call(*leaves)
    out.backward(slope.to(out.dtype))
    return out.detach(), [leaf.grad for leaf in leaves if leaf.grad is not None]


def assert_near(found: Pair, exact: Pair, tolerance: float) -> None:
    for mine, reference in zip([found[0], *found[1]], [exact[0], *exact[1]], strict=True):
        assert mine.dtype == torch.bfloat16
        error = (mine.float() - reference.float()).norm() / reference.float().norm()
        assert error < tolerance


@pytest.mark.parametrize("scales_in_float32", [False, True])
@pytest.mark.parametrize("width", [8, 48, 256, 333])
def test_the_norm_and_its_gradients_are_those_of_float32(build: str, width: int, scales_in_float32: bool) -> None:
    generator = torch.Generator().manual_seed(width)
    x = (torch.randn(3, 7, width, generator=generator) * 3).bfloat16()
    weight = (1 + 0.2 * torch.randn(width, generator=generator)).bfloat16()
    slope = torch.randn(3, 7, width, generator=generator)
    found = value_and_gradients(
        lambda a, b: rms_norm(a, b, eps=1e-5, scales_in_float32=scales_in_float32), [x, weight], slope.bfloat16()
    )
    exact = value_and_gradients(
        lambda a, b: plain_rms_norm(a, b, eps=1e-5, scales_in_float32=True),
        [x.float(), weight.float()],
        slope.bfloat16().float(),
    )
    assert_near(found, exact, 0.004)


def test_the_norm_rounds_where_the_twin_rounds(build: str) -> None:
    x = torch.randn(64, 96, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight = torch.rand(96, generator=torch.Generator().manual_seed(1)).bfloat16()
    for scales_in_float32 in (False, True):
        mine = rms_norm(x, weight, eps=1e-6, scales_in_float32=scales_in_float32)
        twin = plain_rms_norm(x, weight, eps=1e-6, scales_in_float32=scales_in_float32)
        assert (mine != twin).float().mean() < 0.01  # a last bit, where the mean differs in its own last bit


@pytest.mark.parametrize("read", ["both", "sum", "norm"])
def test_adding_and_norming_together_is_both_one_after_the_other(build: str, read: str) -> None:
    generator = torch.Generator().manual_seed(3)
    inputs = [torch.randn(5, 9, 40, generator=generator).bfloat16() for _ in range(2)]
    weight = (1 + 0.2 * torch.randn(40, generator=generator)).bfloat16()
    slope = torch.randn(5, 9, 40, generator=generator).bfloat16()

    def read_out(both: tuple[Tensor, Tensor]) -> Tensor:
        return {"sum": both[0] * 1, "norm": both[1] * 1, "both": both[0] * 0.5 + both[1]}[read]

    def run(call: Callable[..., tuple[Tensor, Tensor]], dtype: torch.dtype) -> Pair:
        leaves = [each.to(dtype) for each in (*inputs, weight)]
        return value_and_gradients(
            lambda *given: read_out(call(*given, eps=1e-5, scales_in_float32=True)), leaves, slope.to(dtype)
        )

    assert_near(run(add_rms_norm, torch.bfloat16), run(plain_add_rms_norm, torch.float32), 0.006)


@pytest.mark.parametrize("count", [1, 31, 1000])
def test_the_gate_and_its_gradients_are_those_of_float32(build: str, count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    gate, up, slope = ((torch.randn(2, count, generator=generator) * 4).bfloat16() for _ in range(3))
    found = value_and_gradients(swiglu, [gate, up], slope)
    exact = value_and_gradients(plain_swiglu, [gate.float(), up.float()], slope.float())
    assert_near(found, exact, 0.004)


def test_the_gate_is_right_at_the_ends_of_the_number_range(build: str) -> None:
    gate = torch.tensor([-1e30, -200.0, -88.0, 0.0, 88.0, 200.0, 1e30, float("nan")]).bfloat16()
    mine, twin = swiglu(gate, torch.ones_like(gate)), plain_swiglu(gate, torch.ones_like(gate))
    assert torch.allclose(mine, twin, atol=1e-30, equal_nan=True)


def test_float32_never_goes_through_the_compiled_kernels(build: str) -> None:
    assert library.native_for(torch.zeros(4)) is None
    assert library.native_for(torch.zeros(4, 6, dtype=torch.bfloat16).t()) is None
    assert library.native_for(torch.zeros(4, dtype=torch.bfloat16)) is not None


def test_the_result_does_not_depend_on_chance(build: str) -> None:
    x = torch.randn(500, 64).bfloat16()
    weight, slope = torch.randn(64).bfloat16(), torch.randn(500, 64).bfloat16()
    runs = [
        value_and_gradients(lambda a, b: rms_norm(a, b, eps=1e-5, scales_in_float32=False), [x, weight], slope)
        for _ in range(3)
    ]
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0][1], again[1], strict=True))
