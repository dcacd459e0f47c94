"""The likeliest ids: every compiled build against PyTorch's argmax."""

from __future__ import annotations

import pytest
import torch

from leveret.kernels.likeliest import likeliest


@pytest.mark.parametrize("width", [1, 7, 64, 1001])
def test_it_is_the_first_of_the_largest(build: str, width: int) -> None:
    logits = torch.randn(9, width, generator=torch.Generator().manual_seed(width)).bfloat16()
    logits[1] = 2.5  # all equal
    logits[2] = -torch.inf
    logits[3, width // 2 :] = 9.0
    logits[4, width // 3] = torch.nan
    logits[5, -1] = torch.inf
    for row in (0, 1, 3, 4, 5, 6, 7, 8):
        values = logits[row].float()
        largest = values.isnan() if values.isnan().any() else values == values.max()
        assert likeliest(logits[row : row + 1]) == [int(largest.nonzero()[0])]
    assert likeliest(logits) == [likeliest(row[None])[0] for row in logits]
    assert likeliest(logits)[2] == 0


def test_other_tensors_are_left_to_pytorch() -> None:
    logits = torch.randn(3, 40)
    assert likeliest(logits) == logits.argmax(-1).tolist()
    assert likeliest(logits.bfloat16()[:, ::2]) == logits.bfloat16()[:, ::2].argmax(-1).tolist()
