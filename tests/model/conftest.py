"""Tiny models with weights large enough that a wrong detail shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.model.init import init_weights


@pytest.fixture
def tiny() -> Callable[..., Decoder]:
    """tiny(**fields) -> a Decoder of 2 layers, 4 query and 2 key-value heads, vocabulary 100."""

    def make(**fields: Any) -> Decoder:
        sizes: dict[str, Any] = {
            "vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.2,
        }  # fmt: skip
        model = Decoder(ModelConfig(**sizes | fields)).eval()
        init_weights(model, seed=0)
        return model

    return make


@pytest.fixture
def ids() -> Callable[..., torch.Tensor]:
    """ids(batch, length, seed=0) -> random token ids below 100."""

    def make(batch: int, length: int, seed: int = 0) -> torch.Tensor:
        return torch.randint(100, (batch, length), generator=torch.Generator().manual_seed(seed))

    return make
