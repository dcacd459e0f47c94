"""Of an embedding and a head only the chosen rows are trained; all others stay to the bit."""

from __future__ import annotations

import pytest
import torch

from leveret.kernels.cross_entropy import chunked_cross_entropy
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.model.init import init_weights
from leveret.model.token_rows import TokenRows, train_rows


def build(*, tied: bool) -> Decoder:
    config = ModelConfig(family="llama", vocab_size=30, hidden_size=16, intermediate_size=24, num_hidden_layers=1,
                         num_attention_heads=2, num_key_value_heads=1, tie_word_embeddings=tied)  # fmt: skip
    model = Decoder(config)
    init_weights(model, 0)
    return model.requires_grad_(False)


def loss(model: Decoder, ids: torch.Tensor) -> torch.Tensor:
    summed, _ = chunked_cross_entropy(model.hidden(ids).flatten(0, 1), model.lm_head.weight, ids.roll(-1).flatten())
    return summed


@pytest.mark.parametrize("tied", [False, True])
def test_a_model_answers_the_same_until_its_rows_are_trained(tied: bool) -> None:
    model, ids = build(tied=tied), torch.arange(20).view(2, 10)
    before = model(ids)
    train_rows(model, [3, 7])
    assert torch.equal(model(ids), before)
    assert len({id(parameter) for parameter in model.parameters() if parameter.requires_grad}) == (1 if tied else 2)


@pytest.mark.parametrize("tied", [False, True])
def test_gradients_of_the_rows_are_those_of_the_whole_tables(tied: bool) -> None:
    model, whole, ids = build(tied=tied), build(tied=tied), torch.arange(20).view(2, 10)
    whole.embed_tokens.requires_grad_()
    whole.lm_head.requires_grad_()
    loss(whole, ids).backward()
    train_rows(model, [7, 3], head_ids=None if tied else [25])
    loss(model, ids).backward()
    assert isinstance(model.embed_tokens, TokenRows) and isinstance(model.lm_head, TokenRows)
    torch.testing.assert_close(model.embed_tokens.rows.grad, whole.embed_tokens.weight.grad[[7, 3]])
    if not tied:
        torch.testing.assert_close(model.lm_head.rows.grad, whole.lm_head.weight.grad[[25]])


def test_old_rows_stay_to_the_bit_and_new_rows_move() -> None:
    model, ids = build(tied=True), torch.arange(20).view(2, 10)
    before = model.embed_tokens.weight.clone()
    train_rows(model, [7, 3])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loss(model, ids).backward()
    optimizer.step()
    after = model.lm_head.weight
    moved = (after != before).any(dim=1)
    assert moved.nonzero().flatten().tolist() == [3, 7]
    assert torch.equal(after, model.embed_tokens.weight)
