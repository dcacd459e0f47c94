"""The phone's tools and a small tokenizer that knows their functional tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from leveret.tokenizer.files import Tokenizer
from leveret.tokenizer.train import train_byte_bpe
from leveret.tools.functional import FunctionalDialect
from leveret.tools.grammar import CallGrammar
from leveret.tools.schema import ToolSet, tools_from_json

PHONE_TOOLS = Path(__file__).parents[2] / "recipes" / "phone" / "tools.json"

CORPUS = [
    'Call Alice and tell Bob: "I am running late, see you at 19:30" ("Alice","I am running late") ("07:00") (5,true)',
    'Text Mom that I will be home soon. Weather in Paris tomorrow? (" Paris","tomorrow") ("wifi",true) ("rear")',
    '给妈妈打电话，告诉张伟我晚点到。明天上海天气怎么样？("张伟","我晚点到") ("上海","today")',
] * 8


@pytest.fixture(scope="session")
def phone() -> ToolSet:
    return ToolSet(tools_from_json(PHONE_TOOLS))


@pytest.fixture(scope="session")
def dialect(phone: ToolSet) -> FunctionalDialect:
    return FunctionalDialect(phone)


@pytest.fixture(scope="session")
def tokenizer(dialect: FunctionalDialect) -> Tokenizer:
    return train_byte_bpe(CORPUS, vocab_size=600, special_tokens=["<eos>", *dialect.tokens], eos_token="<eos>")


@pytest.fixture(scope="session")
def grammar(dialect: FunctionalDialect, tokenizer: Tokenizer) -> CallGrammar:
    return CallGrammar(dialect, tokenizer)
