"""Tiny model directories to merge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.model.families import family_for
from leveret.model.init import init_weights
from leveret.tokenizer.files import Tokenizer
from leveret.tokenizer.train import train_byte_bpe
from leveret.weights.save import save_model

MakeModel = Callable[..., Path]


@pytest.fixture(scope="session")
def tokenizer_json() -> str:
    return train_byte_bpe(["a hare runs, 野兔在跑。"] * 8, vocab_size=300, special_tokens=["<s>", "</s>"]).to_json()


@pytest.fixture
def make_model(tmp_path: Path, tokenizer_json: str) -> MakeModel:
    """Write a tiny random model under a name; `seed` decides its weights, other keys its config."""

    def make(name: str, seed: int = 0, *, dtype: str = "float32", shard_bytes: int = 10**9,
             tokenizer: str | None = tokenizer_json, added: tuple[str, ...] = (), **changes: Any) -> Path:  # fmt: skip
        import torch

        settings: dict[str, Any] = {
            "vocab_size": 310,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
            "initializer_range": 0.2,
        }
        family = family_for(str(changes.get("family", "mistral")))
        settings["norm_scales_in_float32"] = family.norm_scales_in_float32
        model = Decoder(ModelConfig(**(settings | changes)))
        init_weights(model, seed)
        path = tmp_path / name
        save_model(model.to(getattr(torch, dtype)), path, shard_bytes=shard_bytes, generation={"max_new_tokens": 7})
        if tokenizer is not None:
            words = Tokenizer(tokenizer, bos_token="<s>", eos_token="</s>")
            words.add_special_tokens(added)
            words.save(path)
        (path / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
        return path

    return make
