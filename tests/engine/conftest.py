"""Tiny models for the engine's tests: a random Mistral with a sliding window, and a model directory with tools."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from leveret.chat.template import builtin_template
from leveret.engine.text import TextModel
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.tokenizer.files import Tokenizer
from leveret.tokenizer.train import train_byte_bpe
from leveret.tools.functional import FunctionalDialect
from leveret.tools.schema import Parameter, Tool, ToolSet
from leveret.weights.save import save_model

TEXTS = [
    "Set a timer for five minutes, please, and call Alice.",
    "Once upon a time a small hare met a slow tortoise 🐢.",
    "明天早上七点半叫我起床，然后打开无线网络。今天天气怎么样？",
] * 3

TOOLS = ToolSet(
    [
        Tool(name="set_timer", parameters=(Parameter(name="minutes", type="integer", minimum=1, maximum=600),)),
        Tool(name="call_contact", parameters=(Parameter(name="name", type="string", extractive=True),)),
        Tool(name="take_photo", parameters=(Parameter(name="camera", type="enum", choices=("front", "rear")),)),
    ]
)


def random_decoder(config: ModelConfig) -> Decoder:
    """Random weights, large enough that the next id is clear and sequences do not repeat at once."""
    generator = torch.Generator().manual_seed(7)
    model = Decoder(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
            else:
                parameter.fill_(1.0)
    return model


def tiny_config(vocab_size: int, **fields: int) -> ModelConfig:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return ModelConfig(vocab_size=vocab_size, **(sizes | {"num_key_value_heads": 2} | fields))


@pytest.fixture(scope="session")
def decoder() -> Decoder:
    return random_decoder(tiny_config(97, max_position_embeddings=128, sliding_window=16))


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """HARE's chat tokens and one functional token a tool, as fine-tuning leaves them."""
    template = builtin_template("hare")
    return train_byte_bpe(
        TEXTS,
        vocab_size=420,
        special_tokens=["<s>", "</s>", *template.special_tokens, *FunctionalDialect(TOOLS).tokens],
        bos_token="<s>",
        eos_token="</s>",
        chat_template=template.source,
    )


@pytest.fixture(scope="session")
def model_dir(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "phone"
    tokenizer.save(directory)
    save_model(random_decoder(tiny_config(tokenizer.vocab_size, max_position_embeddings=512)), directory)
    TOOLS.save(directory)
    return directory


@pytest.fixture(scope="session")
def model(model_dir: Path) -> TextModel:
    return TextModel.load(model_dir)
