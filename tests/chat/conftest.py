"""A small tokenizer with the special tokens of every built-in template."""

from __future__ import annotations

import pytest

from leveret.chat.template import BUILTIN_NAMES, builtin_template
from leveret.tokenizer.files import Tokenizer
from leveret.tokenizer.train import train_byte_bpe

TEXTS = ["Human: hello\n### Assistant: yes, it is small.", "system user assistant You are a helpful", "你好，世界 系统"]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    special = [token for name in BUILTIN_NAMES for token in builtin_template(name).special_tokens]
    special += ["<|endoftext|>", "<api_0>", "<api_end>"]
    return train_byte_bpe(
        TEXTS * 5, vocab_size=400, special_tokens=list(dict.fromkeys(special)), eos_token="<|endoftext|>"
    )
