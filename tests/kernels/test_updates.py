"""The updates over flat buffers: the compiled kernels against their twins in PyTorch, masters and rounded weights."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from leveret.kernels.updates import (
    collect_,
    muon_apply_,
    muon_directions,
    plain_muon_apply_,
    plain_muon_directions,
)

STARTS = torch.tensor([0, 20_032, 40_064])
SHAPE = (100, 200)  # more than one piece of 16,384 numbers


def flat_buffers(number: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(60_100, generator=generator) for _ in range(number)]


@pytest.mark.parametrize("factor", [1.0, 0.3])
def test_muon_directions_and_momenta_are_those_of_the_twin(build: str, factor: float) -> None:
    gradients, momenta = flat_buffers(2)
    kept = [momenta.clone(), momenta.clone()]
    mine = muon_directions(gradients, kept[0], STARTS, SHAPE, factor=factor, momentum=0.95)
    twin = plain_muon_directions(gradients, kept[1], STARTS, SHAPE, factor=factor, momentum=0.95)
    torch.testing.assert_close(kept[0], kept[1], rtol=1e-6, atol=1e-6)
    assert (mine != twin).float().mean() < 0.01  # a last bit where the lengths differ in theirs
    torch.testing.assert_close(mine, twin)
    torch.testing.assert_close(mine.float().norm(dim=(1, 2)), torch.ones(3), rtol=1e-3, atol=0)
    between = slice(20_000, 20_032)
    assert torch.equal(kept[0][between], momenta[between]), "what lies between two matrices was touched"


@pytest.mark.parametrize("bf16", [True, False])
def test_muon_updates_arrive_as_in_the_twin(build: str, bf16: bool) -> None:
    (masters,) = flat_buffers(1)
    updates = torch.randn(3, *SHAPE, generator=torch.Generator().manual_seed(1)).bfloat16()
    found = []
    for call in (muon_apply_, plain_muon_apply_):
        moved = masters.clone()
        weights = masters.bfloat16() if bf16 else None
        call(moved, weights, STARTS, updates, keep=0.99, step_size=0.05)
        if weights is not None:
            assert torch.equal(weights[:20_000], moved[:20_000].bfloat16())
            assert torch.equal(weights[20_000:20_032], masters[20_000:20_032].bfloat16())
        found.append(moved)
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_gradients_are_summed_in_float32(build: str, dtype: torch.dtype) -> None:
    first, second = (each[:1003].to(dtype).view(17, 59) for each in flat_buffers(2))
    total = torch.full((17, 59), 5.0)
    collect_(total, first, adds=False)
    collect_(total, second, adds=True)
    assert torch.equal(total, first.float() + second.float())
    turned = torch.empty(59, 17)
    collect_(turned, first.t(), adds=False)  # not in one piece: by PyTorch
    assert torch.equal(turned, first.float().t())


def test_the_update_does_not_depend_on_the_number_of_threads(build: str) -> None:
    gradients, momenta = flat_buffers(2)
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append(muon_directions(gradients, momenta.clone(), STARTS, SHAPE, factor=1.0, momentum=0.95))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(found[0], other) for other in found[1:])
