"""A small tokenizer and a few documents, made once."""

from __future__ import annotations

import pytest

from leveret.data.examples import Document
from leveret.tokenizer.files import Tokenizer
from leveret.tokenizer.train import train_byte_bpe

TEXTS = [
    "a hare",
    "",
    "野兔跑得很快",
    "x",
    "the tortoise walks slowly but it does not sleep",
    "号码是13800138000。",
    "end",
]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    special = ["<|endoftext|>", "<round_start>", "<round_end>"]
    return train_byte_bpe(TEXTS * 3, vocab_size=300, special_tokens=special, eos_token=special[0], bos_token=special[0])


@pytest.fixture(scope="session")
def documents() -> list[Document]:
    return [Document(text=text, source=f"test:{number}") for number, text in enumerate(TEXTS)]
