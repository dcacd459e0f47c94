"""Fresh weights: the same for a seed, of the right size, and attention that copies when asked."""

from __future__ import annotations

import torch

from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.model.init import init_weights


def _model(attention: str, seed: int = 0) -> Decoder:
    config = ModelConfig(
        family="mistral", vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    model = Decoder(config)
    init_weights(model, seed, attention=attention)
    return model


def test_a_seed_decides_every_weight_in_both_ways_to_start() -> None:
    for attention in ("normal", "copying"):
        first, again, other = _model(attention), _model(attention), _model(attention, seed=1)
        for name, parameter in first.named_parameters():
            assert torch.equal(parameter, dict(again.named_parameters())[name])
            if parameter.dim() == 2:
                assert not torch.equal(parameter, dict(other.named_parameters())[name])


def test_only_attention_differs_between_the_two() -> None:
    normal, copying = dict(_model("normal").named_parameters()), dict(_model("copying").named_parameters())
    changed = {name.split(".")[-2] for name in normal if not torch.equal(normal[name], copying[name])}
    assert changed == {"q_proj", "k_proj", "v_proj", "o_proj"}


def test_copying_attention_finds_equal_inputs_and_passes_them_on() -> None:
    attention = _model("copying").layers[0].self_attn
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    query = attention.q_proj(x).view(5, 4, 16)
    key = attention.k_proj(x).view(5, 2, 16).repeat_interleave(2, dim=1)
    scores = torch.einsum("ihd,jhd->hij", query, key)
    same, other = scores.diagonal(dim1=1, dim2=2).mean(), (scores.sum() - scores.diagonal(dim1=1, dim2=2).sum()) / 80
    assert same > 5 * other.abs()
    passed = attention.o_proj(attention.v_proj(x).view(5, 2, 16).repeat_interleave(2, dim=1).flatten(1))
    assert torch.cosine_similarity(passed, x).mean() > 0.3
