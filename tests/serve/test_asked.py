"""What requests become before the worker sees them: read once, looked at for their length first, choices apart."""

from __future__ import annotations

from typing import Any

import pytest

from leveret.engine.grammar import GrammarBook
from leveret.engine.text import TextModel
from leveret.errors import RequestError
from leveret.serve.asked import ask_chat, ask_text
from leveret.serve.protocol import ChatBody, CompletionBody
from leveret.tokenizer.files import Tokenizer

USER = {"role": "user", "content": "Which way to Paris?"}
ROUTE = {"type": "function", "function": {"name": "find_route", "parameters": {"properties": {"to": {"enum": ["x"]}}}}}


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that a tokenizer has read."""
    texts: list[str] = []
    encode = Tokenizer.encode

    def counted(self: Tokenizer, text: str, **keys: Any) -> list[int]:
        texts.append(text)
        return encode(self, text, **keys)

    monkeypatch.setattr(Tokenizer, "encode", counted)
    return texts


def test_a_prompt_is_read_once_for_all_its_choices(model: TextModel, read: list[str]) -> None:
    asked = ask_text(model, CompletionBody(prompt=["Set", "Call"], n=3, guided_regex="[a-z]+"))
    assert read == ["Set", "Call"] and len(asked.jobs) == 6
    requests = [job.request for job in asked.jobs]
    assert len({id(request.constraint) for request in requests}) == len({id(job.answer) for job in asked.jobs}) == 6
    assert requests[0].prompt_ids == requests[2].prompt_ids != requests[3].prompt_ids


def test_a_prompt_that_is_too_long_is_refused_before_its_choices_are_made(model: TextModel, read: list[str]) -> None:
    with pytest.raises(RequestError, match="tokens") as caught:
        ask_text(model, CompletionBody(prompt=["call Alice " * 2000, "Set"], n=8, max_tokens=1))
    assert caught.value.param == "prompt" and len(read) == 1


def test_no_schema_is_compiled_for_a_chat_that_is_too_long(model: TextModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(GrammarBook, "check", lambda *_: 1 // 0)
    body = {"messages": [{"role": "user", "content": "call Alice " * 2000}], "tools": [ROUTE], "max_tokens": 4}
    with pytest.raises(RequestError) as caught:
        ask_chat(model, ChatBody.model_validate(body))
    assert (caught.value.param, caught.value.code) == ("messages", "context_length_exceeded")


def test_each_choice_has_a_seed_of_its_own_and_the_highest_is_followed_by_the_lowest(model: TextModel) -> None:
    for seed, expected in ((5, [5, 6, 7]), (2**63 - 2, [2**63 - 2, 2**63 - 1, -(2**63)])):
        bodies = CompletionBody(prompt=["Set"], n=3, seed=seed), ChatBody(messages=[USER], n=3, seed=seed)
        for asked in (ask_text(model, bodies[0]), ask_chat(model, bodies[1])):
            assert [job.request.params.seed for job in asked.jobs] == expected
    with pytest.raises(RequestError, match=str(2**63)):
        ask_text(model, CompletionBody(prompt=["Set"], seed=2**63))
