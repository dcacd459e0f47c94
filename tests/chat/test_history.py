"""Fitting a conversation into a context."""

from __future__ import annotations

import pytest

from leveret.chat.history import fit_history
from leveret.chat.messages import Message
from leveret.chat.template import builtin_template
from leveret.errors import RequestError
from leveret.tokenizer.files import Tokenizer

SYSTEM = Message("system", "Be brief.")
TURNS = [
    message
    for turn in range(6)
    for message in (Message("user", f"question {turn}"), Message("assistant", f"answer {turn}"))
]
MESSAGES = [SYSTEM, *TURNS[:-1]]


def test_the_newest_turns_are_kept_whole_and_the_system_message_stays(tokenizer: Tokenizer) -> None:
    template = builtin_template("hare")
    before = list(MESSAGES)
    sizes = []
    for budget in range(40, 400, 7):
        fitted = fit_history(template, tokenizer, MESSAGES, max_tokens=budget)
        kept = list(fitted.messages)
        assert len(fitted.ids) <= budget
        assert kept[0] == SYSTEM and kept[1].role == "user" and kept[-1] == MESSAGES[-1]
        assert kept[1:] == MESSAGES[-len(kept) + 1 :]
        assert fitted.num_dropped == len(MESSAGES) - len(kept)
        assert fitted.ids == template.encode(tokenizer, kept, add_generation_prompt=True).ids
        longer = MESSAGES[-len(kept) - 1 :]
        if fitted.num_dropped:
            one_more = template.encode(tokenizer, [SYSTEM, *longer], add_generation_prompt=True).ids
            assert len(one_more) > budget
        sizes.append(len(kept))
    assert sizes == sorted(sizes) and sizes[0] == 2 and sizes[-1] == len(MESSAGES)
    assert before == MESSAGES


def test_a_last_message_that_cannot_fit_is_an_error_with_the_numbers(tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match="10 are left") as caught:
        fit_history(builtin_template("hare"), tokenizer, MESSAGES, max_tokens=10)
    assert caught.value.code == "context_length_exceeded"


def test_a_very_long_history_is_cut_as_a_short_one(tokenizer: Tokenizer) -> None:
    long = [SYSTEM, *[Message("user", "word " * 50), Message("assistant", "ok")] * 200, Message("user", "now?")]
    fitted = fit_history(builtin_template("hare"), tokenizer, long, max_tokens=400)
    assert 2 <= len(fitted.messages) < 10
