"""The folder that the guide's commands run in: a tiny random model with the phone's tools, and a little of each data.

models/tiny/               a Mistral with random weights, a chat template and the phone's tool set
text/train.txt, text/held_out.txt
conversations.jsonl        messages
requests.jsonl             {"query", "calls"}, what `leveret evaluate --tools` reads
tools.json                 the phone's tool set
my_tools.py                functions that `leveret chat` runs
person.json                a JSON Schema
phrases.en.yaml, phrases.zh.yaml   its phrase books
tiny.yaml                  a recipe of quick stages
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from .source import ROOT

TEXT = (
    "A leveret is a young hare: small and quick. It is born with its eyes open.\n"
    "一只小野兔跑得很快。它生下来就睁着眼睛。明天早上七点半叫我起床。\n"
    "def hop(times: int) -> str:\n    return 'hop ' * times\n"
)
CONVERSATIONS = [
    [{"role": "user", "content": "What is a leveret?"}, {"role": "assistant", "content": "A young hare."}],
    [{"role": "user", "content": "野兔跑得快吗？"}, {"role": "assistant", "content": "很快。"}],
]
REQUESTS = [
    {"query": "Set a timer for 5 minutes", "calls": [{"name": "set_timer", "arguments": {"minutes": 5}}]},
    {"query": "打开前置摄像头拍照", "calls": [{"name": "take_photo", "arguments": {"camera": "front"}}]},
    {"query": "Why is the sky blue?", "calls": []},
]
MY_TOOLS = """\
from leveret.tools.act import act


def add(a: int, b: int) -> int:
    \"""Add two numbers.\"""
    return a + b


@act
def remember(text: str) -> str:
    \"""Write a note.\"""
    with open("notes.txt", "a", encoding="utf-8") as notes:
        notes.write(text)
    return "noted"
"""
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
RECIPE = """\
name: tiny
stages:
  - quantize: {model: models/tiny, group_size: 16, search: false}
  - evaluate: {model: "@quantize", text: [text/held_out.txt]}
  - inspect: {path: "@quantize"}
"""


def build(folder: Path) -> None:
    """Fill `folder`."""
    _model(folder / "models/tiny")
    (folder / "text").mkdir()
    (folder / "text/train.txt").write_text(TEXT * 40, encoding="utf-8")
    (folder / "text/held_out.txt").write_text(TEXT[::-1] + TEXT, encoding="utf-8")
    _write_lines(folder / "conversations.jsonl", [{"messages": messages} for messages in CONVERSATIONS * 8])
    _write_lines(folder / "requests.jsonl", REQUESTS)
    for name in ("tools.json", "phrases.en.yaml", "phrases.zh.yaml"):
        shutil.copy(ROOT / "recipes/phone" / name, folder / name)
    (folder / "my_tools.py").write_text(MY_TOOLS, encoding="utf-8")
    (folder / "person.json").write_text(json.dumps(PERSON), encoding="utf-8")
    (folder / "tiny.yaml").write_text(RECIPE, encoding="utf-8")


def _model(directory: Path) -> None:
    from leveret.chat.template import builtin_template
    from leveret.model.config import ModelConfig
    from leveret.model.decoder import Decoder
    from leveret.model.init import init_weights
    from leveret.tokenizer.train import train_byte_bpe
    from leveret.tools.functional import FunctionalDialect
    from leveret.tools.schema import ToolSet, tools_from_json
    from leveret.weights.save import save_model

    template = builtin_template("hare")
    tools = ToolSet(tools_from_json(ROOT / "recipes/phone/tools.json"))
    tokenizer = train_byte_bpe(
        [TEXT] * 4,
        vocab_size=400,
        special_tokens=["<s>", "</s>", *template.special_tokens, *FunctionalDialect(tools).tokens],
        bos_token="<s>",
        eos_token="</s>",
        chat_template=template.source,
    )
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
    )
    model = Decoder(config)
    init_weights(model, seed=0)
    save_model(model, directory)
    tokenizer.save(directory)
    tools.save(directory)


def _write_lines(file: Path, records: list[dict[str, object]]) -> None:
    file.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
