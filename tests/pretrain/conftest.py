"""A few hundred short texts in two languages, a tokenizer, and a config that trains on them in a second."""

import json
import random

import pytest

from leveret.config import parse_config
from leveret.pretrain.config import PretrainConfig
from leveret.tokenizer.train import train_byte_bpe


def make_texts(count, seed):
    chosen = random.Random(seed)
    things = ["hare", "leveret", "meadow", "clover", "fox", "moon"]
    return [
        f"Story {seed}-{i}: the {chosen.choice(things)} saw the {chosen.choice(things)}. 野兔看见了月亮，{i}次。"
        for i in range(count)
    ]


@pytest.fixture
def texts(tmp_path):
    for name, count, seed in (("train", 120, 1), ("other", 60, 2), ("held_out", 30, 3)):
        lines = [json.dumps({"text": text}, ensure_ascii=False) for text in make_texts(count, seed)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines), encoding="utf-8")
    return tmp_path


@pytest.fixture
def tokenizer_folder(tmp_path):
    tokenizer = train_byte_bpe(make_texts(100, 4), vocab_size=320, special_tokens=["<eos>"], eos_token="<eos>")
    tokenizer.save(tmp_path / "tokenizer")
    return tmp_path / "tokenizer"


@pytest.fixture
def make_config(texts, tokenizer_folder):
    def make(output="run", **changes):
        data = {
            "output": str(texts / output),
            "documents": [str(texts / "train.jsonl"), {"path": str(texts / "other.jsonl"), "weight": 2.0}],
            "validation": [str(texts / "held_out.jsonl")],
            "tokenizer": str(tokenizer_folder),
            "model": {
                "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                "num_key_value_heads": 2, "max_position_embeddings": 128,
            },
            "training": {
                "max_steps": 6, "sequence_length": 64, "rows_per_step": 4, "micro_batch_rows": 4,
                "learning_rate": 5e-3, "checkpoint_every_steps": 2, "log_every_steps": 2, "evaluate_rows": 4,
            },
        }  # fmt: skip
        for key, value in changes.items():
            data[key] = {**data[key], **value} if isinstance(value, dict) and isinstance(data.get(key), dict) else value
        return parse_config(PretrainConfig, {k: v for k, v in data.items() if v is not None}, source="test")

    return make
