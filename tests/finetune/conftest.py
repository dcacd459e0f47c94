"""A tiny base model, conversations and tool requests, and a config that fine-tunes on them in a second."""

import json

import pytest

from leveret.config import parse_config
from leveret.finetune.config import FinetuneConfig
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.model.init import init_weights
from leveret.tokenizer.train import train_byte_bpe
from leveret.weights.save import save_model

TOOLS = [
    {"name": "set_timer", "description": "Start a timer.", "parameters": {
        "type": "object", "properties": {"minutes": {"type": "integer"}}, "required": ["minutes"]}},
    {"name": "open_app", "description": "Open an application.", "parameters": {
        "type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}},
]  # fmt: skip
REQUESTS = [
    {"query": f"set a timer for {n} minutes", "calls": [{"name": "set_timer", "arguments": {"minutes": n}}]}
    for n in range(1, 20)
] + [
    {"query": "打开 music", "calls": [{"name": "open_app", "arguments": {"name": "music"}}]},
    {"query": "what is the meaning of life", "calls": []},
]


def write_lines(path, records):
    path.write_text("\n".join(json.dumps(record, ensure_ascii=False) for record in records), encoding="utf-8")
    return path


def chat(*turns):
    roles = ("user", "assistant")
    return {"messages": [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]}


@pytest.fixture
def base(tmp_path):
    texts = [record["query"] for record in REQUESTS] + ["hello there, how are you today? I am fine. 你好！"] * 3
    tokenizer = train_byte_bpe(texts, vocab_size=330, special_tokens=["<eos>"], eos_token="<eos>", pad_token="<eos>")
    config = ModelConfig(vocab_size=tokenizer.vocab_size, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                         num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
                         tie_word_embeddings=True, eos_token_id=tokenizer.eos_id)  # fmt: skip
    model = Decoder(config)
    init_weights(model, 0)
    save_model(model, tmp_path / "base")
    tokenizer.save(tmp_path / "base")
    write_lines(tmp_path / "chats.jsonl", [chat("hello", f"I am fine, {i}", "today?", "你好！") for i in range(24)])
    write_lines(tmp_path / "requests.jsonl", REQUESTS)
    (tmp_path / "tools.json").write_text(json.dumps(TOOLS))
    return tmp_path


@pytest.fixture
def make_config(base):
    def make(output="run", **changes):
        data = {
            "model": str(base / "base"),
            "output": str(base / output),
            "data": [str(base / "chats.jsonl")],
            "template": "chatml",
            "training": {
                "max_steps": 4, "sequence_length": 96, "rows_per_step": 4, "micro_batch_rows": 2,
                "learning_rate": 5e-3, "checkpoint_every_steps": 2,
            },
        }  # fmt: skip
        for key, value in changes.items():
            data[key] = {**data[key], **value} if key == "training" else value
        return parse_config(FinetuneConfig, data, source="test")

    make.folder = base
    return make
