"""The likeliest ids: every compiled build against PyTorch's."""

from __future__ import annotations

import pytest
import torch

from leveret.kernels.likeliest import likeliest, plain_likeliest


@pytest.mark.parametrize("width", [1, 7, 64, 1001])
def test_it_is_the_first_of_the_largest(build: str, width: int) -> None:
    logits = torch.randn(9, width, generator=torch.Generator().manual_seed(width)).bfloat16()
    logits[1] = 2.5  # all equal
    logits[2] = -torch.inf
    logits[3, width // 2 :] = 9.0
    logits[4, width // 3] = torch.nan
    logits[5, -1] = torch.inf
    logits[6] = -torch.nan
    found = likeliest(logits)
    for row in (0, 1, 3, 7, 8):
        assert found[row] == int((logits[row] == logits[row].max()).nonzero()[0])
    assert found == [likeliest(row[None])[0] for row in logits]
    assert found == plain_likeliest(logits) and found[2] == 0 and found[4] is found[5] is found[6] is None


def test_other_tensors_are_left_to_pytorch() -> None:
    logits = torch.randn(3, 40)
    assert likeliest(logits) == logits.argmax(-1).tolist()
    assert likeliest(logits.bfloat16()[:, ::2]) == logits.bfloat16()[:, ::2].argmax(-1).tolist()
