"""Documents packed into one row are as separate as if each were alone (the silent bug of half the trainers)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from leveret.model import attention
from leveret.model.config import MoeConfig, RopeConfig
from leveret.model.decoder import Decoder
from leveret.model.documents import group_documents

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
@pytest.mark.parametrize("grouped", [True, False], ids=["grouped", "masked"])
@torch.no_grad()
def test_packed_logits_equal_each_document_alone(
    fields: dict[str, Any], grouped: bool, tiny: Tiny, ids: Ids, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not grouped:
        monkeypatch.setattr(attention, "group_documents", lambda *_, **__: None)
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


def test_grouping_equals_masking_in_value_and_gradient(tiny: Tiny, ids: Ids, monkeypatch: pytest.MonkeyPatch) -> None:
    model, text = tiny(), ids(3, 40)
    documents = torch.arange(40).div(7, rounding_mode="floor").repeat(3, 1)
    documents[1] = torch.arange(40).div(9, rounding_mode="floor")
    documents[2, 30:] = -1
    trained = documents >= 0

    def outcome() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        model.zero_grad()
        logits = model(text, document_ids=documents)[trained]
        logits.square().mean().backward()
        query = model.layers[0].self_attn.q_proj.weight.grad
        return logits.detach(), query.clone(), model.embed_tokens.weight.grad.clone()

    assert group_documents(documents, longest=None) is not None
    grouped = outcome()
    monkeypatch.setattr(attention, "group_documents", lambda *_, **__: None)
    for got, wanted in zip(grouped, outcome(), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)


def test_groups_hold_every_token_once_and_give_way_where_they_do_not_pay() -> None:
    documents = torch.tensor([[0, 0, 0, 1, 1, -1, -1, -1], [5, 5, 6, 6, 6, 7, 7, 8]])
    groups = group_documents(documents, longest=None)
    assert groups is not None and groups.shape == (6, 3)
    tokens = torch.arange(16).view(2, 8, 1)
    assert groups.gather(tokens)[:, :, 0].tolist() == [
        [0, 1, 2],
        [3, 4, 0],
        [8, 9, 0],
        [10, 11, 12],
        [13, 14, 0],
        [15, 0, 0],
    ]
    back = groups.scatter(groups.gather(tokens), 2)[:, :, 0]
    assert torch.equal(back[documents >= 0], tokens[:, :, 0][documents >= 0])
    assert group_documents(documents, longest=2) is None  # a window cuts a document: it needs a mask
    one_long = torch.tensor([[0] * 6 + [1, 2]])
    assert group_documents(one_long, longest=None) is None
    assert group_documents(torch.full((1, 4), -1), longest=None) is None


@pytest.mark.parametrize("moe", [None, MoeConfig(num_experts=4)], ids=["dense", "experts"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_of_some_places_are_those_of_all_in_value_and_gradient(
    moe: MoeConfig | None, dtype: torch.dtype, tiny: Tiny, ids: Ids
) -> None:
    model = tiny(moe=moe).to(dtype)
    row, positions, documents = packed(ids(1, 24))
    places = torch.tensor([3, 4, 6, 11, 18, 21])
    found = []
    for only in (None, places):
        model.zero_grad()
        states = model.hidden(row, positions=positions, document_ids=documents, only=only)
        states = states.flatten(0, 1)[places] if only is None else states
        # The length of a normed state is no more than rounding: its gradient would be a difference of equals.
        (states.float() * torch.linspace(-1, 2, states.numel()).view_as(states).sin()).sum().backward()
        found.append(
            (states.detach(), [parameter.grad for parameter in model.parameters() if parameter.grad is not None])
        )
    (all_states, all_grads), (states, grads) = found
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(states, all_states, atol=tolerance, rtol=tolerance)
    assert len(grads) == len(all_grads)
    for grad, expected in zip(grads, all_grads, strict=True):
        assert float((grad - expected).float().norm() / expected.float().norm().clamp_min(1e-6)) < tolerance
