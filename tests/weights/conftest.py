"""A tiny model and its saved directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.model.init import init_weights
from leveret.weights.save import save_model


@pytest.fixture
def model() -> Decoder:
    config = ModelConfig(
        vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, bos_token_id=1, eos_token_id=(2, 3),
    )  # fmt: skip
    built = Decoder(config).eval()
    init_weights(built, seed=0)
    return built


@pytest.fixture
def directory(model: Decoder, tmp_path: Path) -> Path:
    save_model(model, tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def sharded(model: Decoder, tmp_path: Path) -> Path:
    save_model(model, tmp_path / "sharded", shard_bytes=20_000)
    return tmp_path / "sharded"
