"""Products of bfloat16 matrices: the compiled kernel against its twin in PyTorch and against float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from leveret.kernels import dense
from leveret.kernels.dense import linear, matmul, plain_matmul
from leveret.kernels.native.build import X86_FLAGS

SHAPES = [(4, 1, 1), (5, 7, 3), (37, 45, 61), (300, 300, 300), (130, 513, 700), (12, 32, 256), (2000, 8, 40)]
"""M, N, K: smaller than a register, in pieces of every kind, and whole."""


@pytest.fixture
def every_build(build: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """As `build`; and it multiplies, whatever the processor has."""
    monkeypatch.setattr(dense, "BUILDS", (build,))
    return build


def factor(rows: int, columns: int, *, turned: bool, seed: int) -> Tensor:
    numbers = torch.randn(columns, rows, generator=torch.Generator().manual_seed(seed)).bfloat16()
    return numbers.t() if turned else numbers.t().contiguous()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("turned", [(False, False), (True, False), (False, True), (True, True)], ids=str)
def test_the_product_is_that_of_float64(
    every_build: str, shape: tuple[int, int, int], turned: tuple[bool, bool]
) -> None:
    rows, columns, depth = shape
    left, right = factor(rows, depth, turned=turned[0], seed=1), factor(depth, columns, turned=turned[1], seed=2)
    exact = left.double() @ right.double()
    sums = matmul(left, right, out=torch.full((rows, columns), float("nan")))
    assert (sums - exact).abs().max() <= 1e-5 * exact.abs().max()
    assert torch.equal(matmul(left, right), sums.bfloat16())
    assert matmul(left, right).sub(plain_matmul(left, right)).abs().max() <= 2**-7 * exact.abs().max()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_it_adds_to_what_is_there_and_touches_nothing_else(every_build: str, dtype: torch.dtype) -> None:
    left, right = factor(50, 90, turned=False, seed=1), factor(90, 33, turned=True, seed=2)
    whole = torch.randn(70, 40, generator=torch.Generator().manual_seed(3)).to(dtype)
    before, piece = whole.clone(), whole[10:60, 3:36]
    assert matmul(left, right, out=piece, adds=True, scale=0.5) is piece
    exact = before[10:60, 3:36].double() + 0.5 * (left.double() @ right.double())
    assert (piece - exact).abs().max() <= (1e-5 if dtype == torch.float32 else 2**-8) * exact.abs().max()
    whole[10:60, 3:36] = before[10:60, 3:36]
    assert torch.equal(whole, before)


def test_rows_and_columns_of_other_matrices_are_read_where_they_lie(every_build: str) -> None:
    left, right = torch.randn(80, 200).bfloat16()[5:45, 20:180], torch.randn(160, 90).bfloat16()[:, ::3]
    assert torch.equal(matmul(left, right), matmul(left.contiguous(), right.contiguous()))


def test_the_result_is_the_same_for_any_number_of_threads_and_beside_any_rows(every_build: str) -> None:
    left, right = factor(500, 700, turned=False, seed=1), factor(700, 300, turned=True, seed=2)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        together = matmul(left, right)
        torch.set_num_threads(1)
        assert torch.equal(matmul(left, right), together)
        assert torch.equal(matmul(left[100:107], right), together[100:107])
    finally:
        torch.set_num_threads(threads)


def test_what_is_no_number_stays_none(every_build: str) -> None:
    left, right = torch.ones(40, 64).bfloat16(), torch.ones(64, 40).bfloat16()
    left[7, 5], left[9, 1], right[3, 11] = float("nan"), float("inf"), float("nan")
    product = matmul(left, right)
    assert product[7].isnan().all()
    assert product[:, 11].isnan().all()
    assert torch.isposinf(product[9, :11]).all()
    assert torch.equal(product[0, :11], torch.full((11,), 64).bfloat16())


@pytest.mark.parametrize("shape", [(40,), (3, 40), (7, 40), (2, 9, 40)], ids=str)
def test_a_linear_and_its_gradients_are_those_of_pytorch(every_build: str, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(4)
    x, weight = torch.randn(*shape, generator=generator).bfloat16(), torch.randn(56, 40, generator=generator).bfloat16()
    slope = torch.randn(*shape[:-1], 56, generator=generator).bfloat16()
    results = []
    for product in (linear, F.linear):
        x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
        y = product(x, weight)
        y.backward(slope)  # type: ignore[no-untyped-call]
        results.append((y.detach(), x.grad, weight.grad))
    for mine, theirs in zip(*results, strict=True):
        assert mine is not None and theirs is not None
        assert mine.dtype == torch.bfloat16
        assert mine.shape == theirs.shape
        assert (mine.float() - theirs.float()).abs().max() <= 2**-7 * theirs.float().abs().max()


def test_a_frozen_weight_gets_no_gradient(every_build: str) -> None:
    x, weight = torch.randn(8, 40).bfloat16().requires_grad_(), torch.randn(56, 40).bfloat16()
    linear(x, weight).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert weight.grad is None


def test_pytorch_multiplies_what_the_kernel_is_not_for(every_build: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other dtypes, few rows, nothing to multiply, a bias; and everything where the processor can do it itself."""
    asked: list[str] = []
    monkeypatch.setattr(dense, "plain_matmul", lambda *given, **named: asked.append("plain"))
    number = torch.ones(8, 8)
    matmul(number, number)
    matmul(number.bfloat16()[:3], number.bfloat16())
    matmul(number.bfloat16()[:, :0], number.bfloat16()[:0])
    assert len(asked) == 3
    half = number.bfloat16()
    assert torch.equal(linear(half, half, half[0]), F.linear(half, half, half[0]))
    matmul(half, half)
    assert len(asked) == 3
    monkeypatch.setattr(dense, "BUILDS", ())
    matmul(half, half)
    assert len(asked) == 4


def test_processors_with_the_instruction_leave_it_to_pytorch() -> None:
    assert set(dense.BUILDS) == {name for name, flags in X86_FLAGS.items() if "-mavx512bf16" not in flags}
