"""A tiny model in several forms: a directory, its copy, quantized, in bfloat16, and as a checkpoint of a run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from leveret.chat.template import builtin_template
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.model.init import init_weights
from leveret.tokenizer.files import Tokenizer
from leveret.tokenizer.train import train_byte_bpe
from leveret.weights.save import save_model

TEXTS = ["The hare runs over the field, and nobody catches it.", "野兔在清晨的田野里奔跑，没有人追得上它。"] * 6

MakeForm = Callable[..., Path]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    trained = train_byte_bpe(TEXTS, vocab_size=380, special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    trained.chat_template = builtin_template("chatml").source
    return trained


@pytest.fixture(scope="session")
def config(tokenizer: Tokenizer) -> ModelConfig:
    return ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.1,
        eos_token_id=tokenizer.special_ids["<|im_end|>"],
    )


@pytest.fixture
def make_form(config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path) -> MakeForm:
    """Save the model under a name in tmp_path, after `change(model)` if given."""

    def make(name: str, *, change: Callable[[Decoder], None] | None = None, dtype: torch.dtype = torch.float32) -> Path:
        model = Decoder(config)
        init_weights(model, 0)
        if change is not None:
            with torch.no_grad():
                change(model)
        path = tmp_path / name
        save_model(model.to(dtype), path)
        tokenizer.save(path)
        return path

    return make


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(" ".join(TEXTS), encoding="utf-8")
    return path
