"""Tiny models for the engine's tests: a random Mistral with a sliding window, and its twin in transformers."""

from __future__ import annotations

import pytest
import torch

from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder

TINY = ModelConfig(
    vocab_size=97,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    sliding_window=16,
)


@pytest.fixture(scope="session")
def decoder() -> Decoder:
    """Random weights, large enough that the next id is clear and sequences do not repeat at once."""
    generator = torch.Generator().manual_seed(7)
    model = Decoder(TINY).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
            else:
                parameter.fill_(1.0)
    return model
