"""All experts at once against the loop, and against transformers' own experts: values and every gradient."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from leveret.kernels.grouped_matmul import block_rows, grouped_experts, plain_experts, sort_by_expert

HIDDEN, INNER = 40, 56


@dataclass
class Layer:
    """Tokens, their experts, and the experts' matrices."""

    tokens: Tensor
    chosen: Tensor
    weights: Tensor
    matrices: list[Tensor]
    """gates, ups, downs."""

    @property
    def num_experts(self) -> int:
        return len(self.matrices) // 3

    def run(self, experts: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        """The answers, then the gradients of tokens, weights and matrices, of one fixed slope."""
        count = self.num_experts
        tokens, *matrices = (
            each.bfloat16().to(dtype).requires_grad_() for each in (self.tokens, *self.matrices)
        )  # the same numbers in all dtypes
        weights = self.weights.clone().requires_grad_()
        out = experts(
            tokens, self.chosen, weights, matrices[:count], matrices[count : 2 * count], matrices[2 * count :]
        )
        slope = torch.linspace(-1, 1, out.numel()).view_as(out).bfloat16()
        out.backward(slope.to(dtype))
        zeros = [torch.zeros_like(each) if each.grad is None else each.grad for each in matrices]
        return [out.detach(), tokens.grad, weights.grad, *zeros]


def layer(num_tokens: int, *, num_experts: int = 4, choices: int = 2, idle: int = 0) -> Layer:
    """Random; the last `idle` experts get no token."""
    generator = torch.Generator().manual_seed(num_tokens + choices)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    scores = random(num_tokens, num_experts - idle).softmax(-1)
    weights, chosen = scores.topk(choices, dim=-1)
    sizes = [(INNER, HIDDEN)] * 2 * num_experts + [(HIDDEN, INNER)] * num_experts
    return Layer(random(num_tokens, HIDDEN), chosen, weights, [0.2 * random(*size) for size in sizes])


CASES = {
    "many": layer(67),
    "filled up to blocks of 8": layer(300),
    "one token": layer(1),
    "one choice": layer(33, choices=1),
    "three choices": layer(33, choices=3),
    "every expert": layer(33, choices=4),
    "two idle experts": layer(33, idle=2),
    "one of nine": layer(5, num_experts=9, choices=1),
}


def error(found: Tensor, exact: Tensor) -> float:
    return float((found.float() - exact.float()).norm() / exact.float().norm().clamp(min=1e-20))


@pytest.mark.parametrize("case", CASES)
def test_all_at_once_is_the_loop_in_values_and_every_gradient(case: str) -> None:
    found, exact = CASES[case].run(grouped_experts, torch.float32), CASES[case].run(plain_experts, torch.float32)
    for mine, reference in zip(found, exact, strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("case", CASES)
def test_in_bfloat16_it_is_nearer_to_float32_than_rounding(build: str, case: str) -> None:
    found, exact = CASES[case].run(grouped_experts, torch.bfloat16), CASES[case].run(plain_experts, torch.float32)
    assert [each.dtype for each in found[:3]] == [torch.bfloat16, torch.bfloat16, torch.float32]
    for mine, reference in zip(found, exact, strict=True):
        assert mine.shape == reference.shape
        assert error(mine, reference) < 0.012


def test_the_twin_between_the_products_agrees_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = CASES["many"].run(plain_experts, torch.float32)
    monkeypatch.setattr("leveret.kernels.grouped_matmul.native_for", lambda *tensors: None)
    for mine, reference in zip(CASES["many"].run(grouped_experts, torch.bfloat16), exact, strict=True):
        assert error(mine, reference) < 0.02


def test_an_expert_without_tokens_gets_a_gradient_of_zero() -> None:
    _, _, _, *gradients = CASES["two idle experts"].run(grouped_experts, torch.float32)
    assert [bool(each.any()) for each in gradients] == [True, True, False, False] * 3


def test_frozen_matrices_get_no_gradient_and_the_others_theirs() -> None:
    case = CASES["many"]
    exact = case.run(plain_experts, torch.float32)
    tokens = case.tokens.bfloat16().float().requires_grad_()
    matrices = [each.bfloat16().float() for each in case.matrices]
    downs = [each.requires_grad_() for each in matrices[8:]]
    out = grouped_experts(tokens, case.chosen, case.weights, matrices[:4], matrices[4:8], downs)
    out.backward(torch.linspace(-1, 1, out.numel()).view_as(out).bfloat16().float())
    assert all(each.grad is None for each in matrices[:8])
    for mine, reference in zip(downs, exact[11:], strict=True):
        torch.testing.assert_close(mine.grad, reference, rtol=1e-4, atol=1e-5)


def test_sorting_puts_each_expert_s_tokens_side_by_side_in_their_order() -> None:
    groups = sort_by_expert(torch.tensor([[2, 0], [0, 2], [3, 2]]), 5)
    assert groups.tokens.tolist() == [0, 1, 0, 1, 2, 2]
    assert groups.slices == [(0, slice(0, 2)), (2, slice(2, 5)), (3, slice(5, 6))]
    assert groups.places.tolist() == [2, 0, 1, 3, 5, 4]


def test_groups_are_filled_up_to_blocks_and_every_pair_still_finds_its_row() -> None:
    groups = sort_by_expert(torch.tensor([[2, 0], [0, 2], [3, 2]]), 5, block=4)
    assert groups.tokens.tolist() == [0, 1, -1, -1, 0, 1, 2, -1, 2, -1, -1, -1]
    assert groups.slices == [(0, slice(0, 4)), (2, slice(4, 8)), (3, slice(8, 12))]
    assert groups.tokens[groups.places].tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(("pairs", "block"), [(2, 1), (128, 1), (256, 2), (4095, 16), (8192, 64), (10**6, 64)])
def test_blocks_add_few_rows_and_there_are_few_numbers_of_them(pairs: int, block: int) -> None:
    assert block_rows(pairs, 8) == block
    assert block * 8 <= pairs / 16 or block == 1


def test_all_at_once_is_what_transformers_experts_answer() -> None:
    modeling = pytest.importorskip("transformers.models.mixtral.modeling_mixtral", reason="the oracle")
    case = CASES["many"]
    config = modeling.MixtralConfig(hidden_size=HIDDEN, intermediate_size=INNER, num_local_experts=4)
    oracle = modeling.MixtralExperts(config)
    gates, ups, downs = (torch.stack(case.matrices[i : i + 4]) for i in (0, 4, 8))
    with torch.no_grad():
        oracle.gate_up_proj.copy_(torch.cat([gates, ups], dim=1))
        oracle.down_proj.copy_(downs)
    mine = grouped_experts(case.tokens, case.chosen, case.weights, gates, ups, downs)
    torch.testing.assert_close(mine, oracle(case.tokens, case.chosen, case.weights), rtol=1e-4, atol=1e-5)
