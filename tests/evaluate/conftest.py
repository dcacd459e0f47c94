"""A tiny random model with two tools, and files to evaluate it on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from leveret.chat.template import builtin_template
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.tokenizer.files import Tokenizer
from leveret.tokenizer.train import train_byte_bpe
from leveret.tools.functional import FunctionalDialect
from leveret.tools.schema import Parameter, Tool, ToolSet
from leveret.weights.save import save_model

TEXTS = ["Set a timer for five minutes, please, and call Alice.", "明天早上七点半叫我起床 🐢"] * 4
TOOLS = ToolSet(
    [
        Tool(name="set_timer", parameters=(Parameter(name="minutes", type="integer", minimum=1, maximum=600),)),
        Tool(name="call_contact", parameters=(Parameter(name="name", type="string", extractive=True),)),
    ]
)
REQUESTS = [
    {"query": "Set a timer for five minutes", "calls": [{"name": "set_timer", "arguments": {"minutes": 5}}]},
    {"query": "给 Alice 打电话", "calls": [{"name": "call_contact", "arguments": {"name": "Alice"}}]},
    {"query": "How are you?", "calls": [], "group": "small talk"},
    {"query": "Set it to a million", "calls": [{"name": "set_timer", "arguments": {"minutes": 1000000}}]},
]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    template = builtin_template("hare")
    return train_byte_bpe(
        TEXTS,
        vocab_size=400,
        special_tokens=["<s>", "</s>", *template.special_tokens, *FunctionalDialect(TOOLS).tokens],
        bos_token="<s>",
        eos_token="</s>",
        chat_template=template.source,
    )


@pytest.fixture(scope="session")
def decoder(tokenizer: Tokenizer) -> Decoder:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    config = ModelConfig(vocab_size=tokenizer.vocab_size, num_key_value_heads=2, max_position_embeddings=256, **sizes)
    model = Decoder(config).eval()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


@pytest.fixture(scope="session")
def base_dir(decoder: Decoder, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory without tools."""
    directory = tmp_path_factory.mktemp("models") / "base"
    save_model(decoder, directory)
    tokenizer.save(directory)
    return directory


@pytest.fixture(scope="session")
def model_dir(decoder: Decoder, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "phone"
    save_model(decoder, directory)
    tokenizer.save(directory)
    TOOLS.save(directory)
    return directory


@pytest.fixture
def requests_file(tmp_path: Path) -> Path:
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(each) + "\n" for each in REQUESTS))
    return file
