"""A tiny model directory with everything a release has."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.model.families import family_for
from leveret.model.init import init_weights
from leveret.tokenizer.train import train_byte_bpe
from leveret.weights.save import save_model

MakeDirectory = Callable[..., Path]


@pytest.fixture(scope="session")
def make_directory(tmp_path_factory: pytest.TempPathFactory) -> MakeDirectory:
    """Write a tiny random model (two layers of 64 and 128 inputs unless changed) and return its directory."""
    tokenizer = train_byte_bpe(["a hare runs, 野兔在跑。"] * 8, vocab_size=300, special_tokens=["<s>", "</s>"])

    def make(**changes: object) -> Path:
        settings = {
            "vocab_size": 320,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
            "initializer_range": 0.2,
        }
        family = family_for(str(changes.get("family", "mistral")))
        settings["norm_scales_in_float32"] = family.norm_scales_in_float32
        model = Decoder(ModelConfig(**(settings | changes)))
        init_weights(model, 0)
        path = tmp_path_factory.mktemp("models") / "whole"
        save_model(model, path, generation={"max_new_tokens": 7})
        tokenizer.save(path)
        (path / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
        (path / "tools.json").write_text(json.dumps({"tools": []}))
        (path / "README.md").write_text("the card of the unquantized model")
        return path

    return make


@pytest.fixture(scope="session")
def directory(make_directory: MakeDirectory) -> Path:
    return make_directory()


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("a hare runs over the field, 野兔在跑。" * 40, encoding="utf-8")
    return path
