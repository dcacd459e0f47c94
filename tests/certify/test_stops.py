"""Where a reply ends: what a form's files name must count in the other, and ordinary text must end nothing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from leveret.certify.form import Stops
from leveret.certify.stops import compare_stops
from leveret.tokenizer.files import Tokenizer


def form(tokenizer: Tokenizer, declared: set[int], implied: set[int] = frozenset()) -> Any:
    return SimpleNamespace(
        stops=Stops(declared=frozenset(declared), implied=frozenset(implied)), own_tokenizer=tokenizer
    )


def test_each_way_of_losing_an_end_is_told(tokenizer: Tokenizer) -> None:
    end, text = tokenizer.special_ids["<|im_end|>"], tokenizer.special_ids["<|endoftext|>"]
    comma = tokenizer.encode(",")[0]
    for first, second, verdict, words in [
        (({end}, set()), ({end}, set()), "same", "both end a reply at"),
        (({end}, set()), (set(), {end}), "same", "both end a reply at"),
        (({end}, set()), (set(), set()), "different", "the second does not end a reply at"),
        (({end}, set()), ({end, text}, set()), "different", "only the second ends one at"),
        (({end}, set()), ({end}, {text}), "same", "by its reader's own rules, one alone also ends it"),
        (({end}, set()), ({end}, {end, comma}), "different", "only the second ends one at"),
        ((set(), {end}), (set(), set()), "reported", "by its reader's own rules"),
    ]:
        check = compare_stops(form(tokenizer, *first), form(tokenizer, *second))
        assert (check.verdict, words in check.measured) == (verdict, True), check


@pytest.mark.parametrize("count", [1, 9])
def test_many_ids_are_not_all_written_out(tokenizer: Tokenizer, count: int) -> None:
    ids = set(range(20, 20 + count))
    check = compare_stops(form(tokenizer, ids), form(tokenizer, set()))
    assert ("and 5 more" in check.measured) == (count == 9)
