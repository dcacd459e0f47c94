"""A tiny random model with tools behind a real server on a free loopback port."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import openai
import pytest

from leveret.chat.template import builtin_template
from leveret.engine.text import TextModel
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.model.init import init_weights
from leveret.serve.config import ServeConfig
from leveret.serve.running import running
from leveret.tokenizer.train import train_byte_bpe
from leveret.tools.functional import FunctionalDialect
from leveret.tools.schema import Parameter, Tool, ToolSet
from leveret.weights.save import save_model

TOOLS = ToolSet(
    [
        Tool(name="set_timer", parameters=(Parameter(name="minutes", type="integer", minimum=1, maximum=600),)),
        Tool(name="call_contact", parameters=(Parameter(name="name", type="string", extractive=True),)),
        Tool(name="take_photo", parameters=(Parameter(name="camera", type="enum", choices=("front", "rear")),)),
    ]
)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models") / "phone"
    template = builtin_template("hare")
    tokenizer = train_byte_bpe(
        ["Set a timer for five minutes and call Alice 🐢", "明天早上七点半叫我起床"] * 3,
        vocab_size=380,
        special_tokens=["</s>", *template.special_tokens, *FunctionalDialect(TOOLS).tokens],
        eos_token="</s>",
        chat_template=template.source,
    )
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = Decoder(ModelConfig(vocab_size=tokenizer.vocab_size, initializer_range=0.3, **sizes))
    init_weights(model, 7)
    tokenizer.save(directory)
    save_model(model, directory)
    TOOLS.save(directory)
    return directory


@pytest.fixture(scope="session")
def model(model_dir: Path) -> TextModel:
    return TextModel.load(model_dir)


@pytest.fixture(scope="session")
def url(model: TextModel) -> Iterator[str]:
    with running(model, ServeConfig(model="phone", port=0)) as url:
        yield url


@pytest.fixture(scope="session")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="EMPTY", max_retries=0) as client:
        yield client
