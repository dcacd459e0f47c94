"""The counting formulas equal the built models, and the released models have the sizes they are known by."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from leveret.model.config import ModelConfig, MoeConfig
from leveret.model.count import cache_bytes_per_token, count, flops_per_token
from leveret.model.decoder import Decoder
from leveret.model.families import family_for

SHARED = {"hidden_act": "silu", "tie_word_embeddings": False, "initializer_range": 0.02}

HARE = {
    "model_type": "mistral", "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
    "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 32000, "max_position_embeddings": 32768,
    "sliding_window": 4096, "rope_theta": 10000.0, "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2,
    "torch_dtype": "bfloat16",
}  # fmt: skip
AQUILA_7B = {
    "model_type": "aquila", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 100008, "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5, "bos_token_id": 100006, "eos_token_id": 100007, "pad_token_id": 0,
}  # fmt: skip
AQUILA_34B = AQUILA_7B | {
    "hidden_size": 6144, "intermediate_size": 24576, "num_hidden_layers": 60, "num_attention_heads": 48,
    "num_key_value_heads": 8, "max_position_embeddings": 4096, "rope_scaling": {"type": "linear", "factor": 4.0},
}  # fmt: skip
HUOZI = {
    "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8, "num_experts_per_tok": 2,
    "vocab_size": 57002, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "max_position_embeddings": 32768,
    "sliding_window": None, "router_aux_loss_coef": 0.02, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LINGOWHALE = {
    "model_type": "lingowhale", "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 36,
    "num_attention_heads": 32, "vocab_size": 96000, "max_position_embeddings": 8192, "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "attention_dropout": 0.0,
}  # fmt: skip

RELEASED = {
    "HARE-1.1B": (HARE, 1.123, 1.123),
    "Aquila2-7B": (AQUILA_7B, 7.296, 7.296),
    "Aquila2-34B": (AQUILA_34B, 33.694, 33.694),
    "Huozi 3.5": (HUOZI, 46.908, 13.085),
    "LingoWhale-8B": (LINGOWHALE, 8.072, 8.072),
}


@pytest.mark.parametrize("name", list(RELEASED))
def test_released_models_have_their_known_size_on_the_meta_device(name: str) -> None:
    values, total, active = RELEASED[name]
    config = family_for(values["model_type"]).config_from_hf(SHARED | values)
    with torch.device("meta"):
        model = Decoder(config)
    built = sum(parameter.numel() for parameter in model.parameters())
    assert built == count(config).total
    assert built / 1e9 == pytest.approx(total, abs=0.0006)
    assert count(config).active / 1e9 == pytest.approx(active, abs=0.0006)


@pytest.mark.parametrize(
    "fields",
    [{}, {"tie_word_embeddings": True}, {"head_dim": 6}, {"moe": MoeConfig(num_experts=4)}],
    ids=["plain", "tied", "odd heads", "experts"],
)
def test_the_formula_equals_the_built_model(fields: dict[str, Any]) -> None:
    config = ModelConfig(
        vocab_size=70, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, **fields,
    )  # fmt: skip
    assert count(config).total == sum(parameter.numel() for parameter in Decoder(config).parameters())


def test_flops_equal_those_that_pytorch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    config = ModelConfig(
        vocab_size=70, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        Decoder(config)(torch.zeros(1, 16, dtype=torch.long))
    matrices = 2 * count(config).multiplied * 16
    square = 4 * 16 * 16 * 4 * 8 * 3  # PyTorch counts all keys for every query, also the masked ones
    assert counter.get_total_flops() in (matrices, matrices + square)
    attention = flops_per_token(config, 16, training=False) * 16 - matrices
    assert attention == square * (16 * 17 / 2) / (16 * 16)


def test_a_window_bounds_the_attention_and_training_costs_three_forwards() -> None:
    def cost(window: int | None, training: bool = False) -> float:
        config = ModelConfig(
            vocab_size=70, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
            sliding_window=window,
        )  # fmt: skip
        return flops_per_token(config, 100, training=training)

    assert cost(None) == cost(100) == cost(500) > cost(10) > cost(1)
    assert cost(10, training=True) == 3 * cost(10)


def test_cache_bytes_equal_a_cache() -> None:
    from leveret.model.cache import KVCache

    config = ModelConfig(
        vocab_size=70, hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    cache = KVCache(config, 1, 10, dtype=torch.bfloat16)
    assert sum(tensor.nbytes for tensor in cache.keys + cache.values) == 10 * cache_bytes_per_token(config, 2)
