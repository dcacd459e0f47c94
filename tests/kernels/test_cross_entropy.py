"""The chunked head-and-loss equals the plain one: value, both gradients, weights, ignored positions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from leveret.kernels import cross_entropy, dense
from leveret.kernels.cross_entropy import chunked_cross_entropy, plain_cross_entropy


def problem(dtype: torch.dtype, *, num: int = 50, hidden: int = 16, vocab: int = 40) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(num, hidden, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(vocab, hidden, generator=generator).to(dtype).requires_grad_()
    targets = torch.randint(vocab, (num,), generator=generator)
    targets[::3] = -100
    return states, weight, targets


def outcome(function, states: Tensor, weight: Tensor, targets: Tensor, **options: Tensor) -> tuple[Tensor, ...]:
    states.grad = weight.grad = None
    loss, count = function(states, weight, targets, **options)
    (loss / count).backward()
    return loss.detach(), count, states.grad.clone(), weight.grad.clone()


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "CHUNK_LOGITS", 40 * 7)  # 7 positions, which do not divide the 33 trained ones
    monkeypatch.setattr(cross_entropy, "CHUNK_POSITIONS", 1)


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("weighted", [False, True])
def test_chunked_equals_plain_in_value_and_gradients(dtype: torch.dtype, tolerance: float, weighted: bool) -> None:
    states, weight, targets = problem(dtype)
    options = {"token_weights": torch.linspace(0, 2, len(targets))} if weighted else {}
    fast = outcome(chunked_cross_entropy, states, weight, targets, **options)
    slow = outcome(plain_cross_entropy, states, weight, targets, **options)
    assert fast[0].dtype == torch.float32 and fast[1].item() == slow[1].item() == 33
    for ours, theirs in zip(fast, slow, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, atol=tolerance, rtol=tolerance)


@pytest.mark.usefixtures("small_chunks")
def test_bfloat16_gradient_of_the_weight_is_summed_in_float32() -> None:
    states, weight, targets = problem(torch.bfloat16, num=2000)
    chunked = outcome(chunked_cross_entropy, states, weight, targets)[3].float()
    exact_states, exact_weight = (x.detach().float().requires_grad_() for x in (states, weight))
    exact = outcome(plain_cross_entropy, exact_states, exact_weight, targets)[3]
    assert (chunked - exact).norm() / exact.norm() < 0.01


def test_a_chunk_has_positions_enough_for_a_product_and_not_too_many_logits() -> None:
    assert cross_entropy.chunk_positions(100_000, 4096) == 1024
    assert cross_entropy.chunk_positions(100_000, 100) == 41_943
    assert cross_entropy.chunk_positions(100_000, 32_000) == 1024
    assert cross_entropy.chunk_positions(100_000, 152_000) == 441
    assert cross_entropy.chunk_positions(7, 4096) == 7
    assert cross_entropy.chunk_positions(0, 10**9) == 1


def test_ignored_positions_get_no_gradient_and_cost_nothing() -> None:
    states, weight, targets = problem(torch.float32)
    gradient = outcome(chunked_cross_entropy, states, weight, targets)[2]
    assert gradient[::3].abs().max() == 0 and gradient[1].abs().max() > 0


def test_nothing_trained_gives_zero_loss_and_zero_gradients() -> None:
    states, weight, targets = problem(torch.float32)
    loss, count = chunked_cross_entropy(states, weight, torch.full_like(targets, -100))
    loss.backward()
    assert loss.item() == 0 and count.item() == 0 and states.grad.abs().max() == 0


def test_huge_logits_stay_finite() -> None:
    states, weight, targets = problem(torch.float32)
    loss, _ = chunked_cross_entropy(states.detach() * 1e4, weight.detach(), targets)
    plain, _ = plain_cross_entropy(states.detach() * 1e4, weight.detach(), targets)
    torch.testing.assert_close(loss, plain)


def test_without_gradients_none_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cross_entropy, "_add_product", lambda *_: pytest.fail("computed a gradient"))
    states, weight, targets = problem(torch.float32)
    with torch.no_grad():
        loss, _ = chunked_cross_entropy(states, weight, targets)
    torch.testing.assert_close(loss, plain_cross_entropy(states, weight, targets)[0].detach())


@pytest.mark.parametrize("weighted", [False, True])
def test_the_compiled_kernel_gives_the_loss_and_gradients_of_float32(build: str, weighted: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    hidden, weight = (torch.randn(n, 24, generator=generator).bfloat16().requires_grad_() for n in (70, 90))
    targets = torch.randint(0, 90, (70,), generator=generator)
    targets[::9] = cross_entropy.IGNORED
    factors = torch.rand(70, generator=generator) if weighted else None
    loss, number = chunked_cross_entropy(hidden, weight, targets, token_weights=factors)
    loss.backward()
    exact = [each.detach().float().requires_grad_() for each in (hidden, weight)]
    expected, expected_number = plain_cross_entropy(exact[0], exact[1], targets, token_weights=factors)
    expected.backward()
    assert int(number) == int(expected_number)
    assert abs(float(loss.detach() - expected.detach())) < 2e-3 * float(expected.detach())
    for mine, reference in zip((hidden, weight), exact, strict=True):
        assert mine.grad is not None and reference.grad is not None
        assert (mine.grad.float() - reference.grad).norm() < 0.006 * reference.grad.norm()


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_frozen_head_costs_no_gradient_and_changes_none(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dense, "BUILDS", ())  # only what PyTorch multiplies can be counted
    states, weight, targets = problem(dtype)
    *_, expected, _ = outcome(chunked_cross_entropy, states, weight, targets)
    states.grad, weight = None, weight.detach()
    with FlopCounterMode(display=False) as flops:
        loss, count = chunked_cross_entropy(states, weight, targets)
        (loss / count).backward()
    assert torch.equal(states.grad, expected)
    assert flops.get_total_flops() == 2 * 2 * int(count) * weight.numel()  # logits, and the gradient of the states
