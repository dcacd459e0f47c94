"""PretrainConfig: what it refuses, and what a rehearsal makes of it."""

import pytest

from leveret.config import parse_config, rehearsed
from leveret.errors import ConfigError
from leveret.pretrain.config import ModelShape, PretrainConfig

BASE = {"output": "out", "documents": ["text"], "tokenizer": "tokenizer"}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"tokenizer": None}, "tokenizer must be given"),
        ({"documents": []}, "documents"),
        ({"init_from": "m", "model": {"hidden_size": 384}}, "not both"),
        ({"model": {"num_experts": 4}}, "a mixtral has experts"),
        ({"model": {"family": "mixtral"}}, "a mixtral has experts"),
        ({"model": {"num_attention_heads": 6, "num_key_value_heads": 4}}, "multiple of num_key_value_heads"),
        ({"model": {"hidden_size": 100}}, "multiple of num_attention_heads"),
        ({"model": {"experts_per_token": 4}}, "experts_per_token .4. is read by family: mixtral only"),
        ({"model": {"family": "llama", "sliding_window": 8}}, "a llama model cannot have sliding_window 8"),
        ({"model": {"head_dim": 15}}, "head_dim is 15, it must be even"),
        ({"training": {"sequence_length": 4096}}, "max_position_embeddings"),
        ({"documents": [{"path": "a", "weight": 0}]}, "weight"),
        ({"training": {"learningrate": 1}}, "learning_rate"),
        ({"seed": -1}, "seed: should be greater than or equal to 0"),
        ({"seed": 2**63}, "seed: should be less than"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_anything_runs(data, words):
    with pytest.raises(ConfigError, match=words):
        parse_config(PretrainConfig, {**BASE, **data}, source="test")


def test_a_bare_path_is_a_source_of_weight_one():
    config = parse_config(PretrainConfig, {**BASE, "documents": ["a", {"path": "b", "weight": 3}]}, source="test")
    assert [(str(source.path), source.weight) for source in config.documents] == [("a", 1.0), ("b", 3.0)]


@pytest.mark.parametrize(
    "model",
    [
        {},
        {"hidden_size": 2048, "intermediate_size": 11264, "num_hidden_layers": 22, "num_attention_heads": 32,
         "num_key_value_heads": 8},
        {"family": "mixtral", "num_experts": 8, "num_attention_heads": 3, "num_key_value_heads": 3},
    ],
)  # fmt: skip
def test_a_rehearsal_is_small_and_still_a_model(model):
    shape = rehearsed(parse_config(PretrainConfig, {**BASE, "model": model}, source="test")).model
    assert shape.hidden_size <= 64 and shape.num_hidden_layers <= 2
    assert isinstance(shape, ModelShape)


def test_a_rehearsal_takes_few_steps():
    training = {"num_epochs": 4, "warmup_steps": 500, "rows_per_step": 512, "micro_batch_rows": 64}
    small = rehearsed(parse_config(PretrainConfig, {**BASE, "training": training}, source="test")).training
    assert small.max_steps == 20 and small.warmup_steps < 20 and small.rows_per_step <= 4


def test_going_on_from_a_model_can_be_rehearsed():
    config = parse_config(PretrainConfig, {**BASE, "init_from": "there"}, source="test")
    small = rehearsed(config)
    assert small.init_from == "there" and small.training.max_steps == 20
