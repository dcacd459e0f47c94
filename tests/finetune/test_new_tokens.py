"""New tokens: added in a fixed order, started from their tool's words, old rows untouched."""

import dataclasses

import pytest
import torch

from leveret.chat.template import builtin_template
from leveret.finetune.new_tokens import add_rows, add_tokens
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.model.init import init_weights
from leveret.tokenizer.train import train_byte_bpe
from leveret.tools.functional import FunctionalDialect
from leveret.tools.schema import ToolSet, tools_from_json

TOOLS = [
    {"name": name, "description": description, "parameters": {"properties": {argument: {"type": kind}}}}
    for name, description, argument, kind in (
        ("set_timer", "Start a timer.", "minutes", "integer"),
        ("open_app", "Open an application.", "name", "string"),
    )
]


@pytest.fixture
def tokenizer():
    return train_byte_bpe(["set timer open app start a timer"] * 3, vocab_size=280, special_tokens=["<|end|>"])


@pytest.fixture
def dialect():
    return FunctionalDialect(ToolSet(tools_from_json(TOOLS)))


def make_model(rows, *, tied):
    config = ModelConfig(vocab_size=rows, hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                         num_attention_heads=2, tie_word_embeddings=tied)  # fmt: skip
    model = Decoder(config)
    init_weights(model, 0)
    return model


def test_template_tokens_come_first_and_nothing_is_added_twice(tokenizer, dialect):
    template = builtin_template("hare")
    size = tokenizer.vocab_size
    added = add_tokens(tokenizer, template, dialect.tools)
    assert added == ["<round_start>", "<round_end>", "<api_0>", "<api_1>", "<api_end>", "<no_tool>"]
    assert [tokenizer.id_of(token) for token in added] == list(range(size, size + 6))
    assert add_tokens(tokenizer, template, dialect.tools) == []


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("spare", [0, 3, 20])
def test_a_tool_s_row_is_the_mean_of_its_words_and_old_rows_stay_to_the_bit(tokenizer, dialect, tied, spare):
    old = tokenizer.vocab_size
    model = make_model(old + spare, tied=tied)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    added = add_tokens(tokenizer, builtin_template("chatml"), dialect.tools)
    add_rows(model, tokenizer, added, dialect)
    assert model.config.vocab_size == max(tokenizer.vocab_size, old + spare)
    words = tokenizer.encode("set timer Start a timer.")
    for table, name in ((model.embed_tokens.weight, "embed_tokens.weight"), (model.lm_head.weight, "lm_head.weight")):
        source = before.get(name, before["embed_tokens.weight"])
        assert torch.equal(table[:old], source[:old])
        torch.testing.assert_close(table[tokenizer.id_of("<api_0>")], source[words].mean(dim=0))
        assert not torch.equal(table[tokenizer.id_of("<api_0>")], table[tokenizer.id_of("<api_1>")])
    assert (model.lm_head.weight is model.embed_tokens.weight) == tied


def test_without_new_tokens_the_model_stays_as_it_is(tokenizer):
    model = make_model(tokenizer.vocab_size, tied=True)
    before, config = model.embed_tokens.weight, dataclasses.replace(model.config)
    add_rows(model, tokenizer, [], None)
    assert model.embed_tokens.weight is before and model.config == config
