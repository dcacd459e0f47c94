"""New rows come at the end and are means; old rows and old logits do not move."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from leveret.errors import ConfigError
from leveret.model.decoder import Decoder
from leveret.weights.load import load_model
from leveret.weights.save import save_model
from leveret.weights.tokens import resize_tokens


def test_old_rows_are_bit_identical_and_new_ones_are_means(model: Decoder) -> None:
    old = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    resize_tokens(model, 103, sources=[[4, 5], [], [7]])
    for name in ("embed_tokens.weight", "lm_head.weight"):
        rows = model.state_dict()[name]
        assert rows.shape == (103, 32) and torch.equal(rows[:100], old[name])
        torch.testing.assert_close(rows[100], (old[name][4] + old[name][5]) / 2)
        torch.testing.assert_close(rows[101], old[name].mean(0))
        assert torch.equal(rows[102], old[name][7])


def test_old_logits_do_not_change_and_the_model_saves_and_trains(model: Decoder, tmp_path: Path) -> None:
    ids = torch.arange(10).unsqueeze(0)
    before = model(ids)
    resize_tokens(model, 120)
    torch.testing.assert_close(model(ids)[..., :100], before)
    save_model(model, tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.config.vocab_size == 120
    loaded(torch.tensor([[119, 3]])).logsumexp(-1).sum().backward()
    assert loaded.embed_tokens.weight.grad[119].abs().max() > 0
    assert loaded.lm_head.weight.grad[119].abs().max() > 0


def test_a_tied_head_stays_tied(model: Decoder) -> None:
    tied = Decoder(dataclasses.replace(model.config, tie_word_embeddings=True))
    resize_tokens(tied, 105)
    assert tied.lm_head.weight is tied.embed_tokens.weight and tied(torch.tensor([[104]])).shape == (1, 1, 105)


def test_rows_are_averaged_in_float32_and_kept_in_the_models_dtype(model: Decoder) -> None:
    resize_tokens(model.to(torch.bfloat16), 101)
    assert model.lm_head.weight.dtype == torch.bfloat16
    exact = model.embed_tokens.weight[:100].float().mean(0).to(torch.bfloat16)
    assert torch.equal(model.embed_tokens.weight[100], exact)


def test_the_same_size_changes_nothing(model: Decoder) -> None:
    before = model.lm_head.weight.clone()
    resize_tokens(model, 100)
    assert torch.equal(model.lm_head.weight, before)


@pytest.mark.parametrize(
    ("size", "sources", "message"),
    [
        (99, None, "cannot shrink to 99"),
        (101, [], "1 rows are added, but 0"),
        (101, [[100]], r"\[100\] are no old rows"),
    ],
)
def test_impossible_sizes_are_refused(size, sources, message, model: Decoder) -> None:
    with pytest.raises(ConfigError, match=message):
        resize_tokens(model, size, sources=sources)
