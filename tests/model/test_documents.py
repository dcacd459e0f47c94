"""Documents packed into one row are as separate as if each were alone (the silent bug of half the trainers)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from leveret.model.config import MoeConfig, RopeConfig
from leveret.model.decoder import Decoder

Tiny = Callable[..., Decoder]
Ids = Callable[..., torch.Tensor]

LENGTHS = [7, 12, 3]


def packed(text: torch.Tensor, padding: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One row of LENGTHS documents and padding: ids, positions, document ids."""
    total = sum(LENGTHS) + padding
    positions = torch.cat([torch.arange(length) for length in [*LENGTHS, padding]]).unsqueeze(0)
    documents = torch.repeat_interleave(torch.tensor([*range(len(LENGTHS)), -1]), torch.tensor([*LENGTHS, padding]))
    return text[:, :total], positions, documents.unsqueeze(0)


@pytest.mark.parametrize(
    "fields",
    [{}, {"sliding_window": 5}, {"moe": MoeConfig(num_experts=4)}, {"rope": RopeConfig(kind="dynamic", factor=2.0),
     "max_position_embeddings": 8}],
    ids=["full", "window", "experts", "dynamic rope"],
)  # fmt: skip
@torch.no_grad()
def test_packed_logits_equal_each_document_alone(fields: dict[str, Any], tiny: Tiny, ids: Ids) -> None:
    model = tiny(**fields)
    row, positions, documents = packed(ids(1, 24))
    logits = model(row, positions=positions, document_ids=documents)
    start = 0
    for length in LENGTHS:
        alone = model(row[:, start : start + length])
        torch.testing.assert_close(logits[:, start : start + length], alone, atol=1e-5, rtol=0)
        start += length


@torch.no_grad()
def test_changing_one_document_leaves_the_others_bit_for_bit(tiny: Tiny, ids: Ids) -> None:
    model = tiny()
    row, positions, documents = packed(ids(1, 24))
    before = model(row, positions=positions, document_ids=documents)
    row = row.clone()
    row[0, 2] = (row[0, 2] + 1) % 100
    after = model(row, positions=positions, document_ids=documents)
    assert not torch.equal(before[:, 2:7], after[:, 2:7])
    assert torch.equal(before[:, 7:], after[:, 7:])


@torch.no_grad()
def test_without_isolation_documents_would_mix(tiny: Tiny, ids: Ids) -> None:
    model = tiny()
    row, positions, documents = packed(ids(1, 24))
    isolated = model(row, positions=positions, document_ids=documents)
    mixed = model(row, positions=positions)
    assert (isolated[:, 7:22] - mixed[:, 7:22]).abs().max() > 0.01


@torch.no_grad()
def test_rows_of_one_document_with_padding_on_the_right_need_no_mask_and_agree(tiny: Tiny, ids: Ids) -> None:
    model, text = tiny(), ids(2, 10)
    documents = torch.zeros(2, 10, dtype=torch.long)
    documents[1, 6:] = -1
    logits = model(text, document_ids=documents)
    torch.testing.assert_close(logits[0], model(text[:1])[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(logits[1, :6], model(text[1:, :6])[0], atol=1e-5, rtol=0)


def test_rows_full_of_padding_stay_finite_forward_and_backward(tiny: Tiny, ids: Ids) -> None:
    model = tiny()
    documents = torch.full((2, 8), -1)
    documents[0, :4] = 0
    documents[0, 4:6] = 1
    model(ids(2, 8), document_ids=documents).sum().backward()
    assert all(bool(parameter.grad.isfinite().all()) for parameter in model.parameters() if parameter.grad is not None)
