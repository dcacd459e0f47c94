"""Segmentation of English, Chinese and everything between."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leveret.segment.words import beginning, count_han, normalize, segment, segment_with_spans


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("The Hare's 2 legs, don’t!", ["the", "hare's", "2", "legs", "don’t"]),
        ("野兔跑得快。", ["野", "兔", "跑", "得", "快"]),
        ("用GPT4写代码v1.5", ["用", "gpt4", "写", "代", "码", "v1", "5"]),
        ("ＡＢＣ　ｶﾞ①", ["abc", "ガ", "1"]),
        ("カタカナ 한국어 мир", ["カ", "タ", "カ", "ナ", "한국어", "мир"]),
        ("at 9:30 costs 1,000.50", ["at", "9:30", "costs", "1,000.50"]),
        ("नमस्ते दुनिया", ["नमस्ते", "दुनिया"]),
        ("snake_case 👩‍👩‍👧 — …", ["snake", "case"]),
        ("", []),
    ],
)
def test_tokens(text: str, tokens: list[str]) -> None:
    assert segment(text) == tokens


def test_a_rare_han_character_is_one_token() -> None:
    assert segment("𠮷野家") == ["𠮷", "野", "家"]
    assert count_han("𠮷野家 abc 々") == 4


def test_a_beginning_cuts_no_character_in_two() -> None:
    assert [beginning("a野b", num_bytes) for num_bytes in range(6)] == ["", "a", "a", "a", "a野", "a野b"]


@given(st.text())
def test_spans_point_at_the_tokens_and_segmenting_twice_changes_nothing(text: str) -> None:
    folded = normalize(text)
    assert all(folded[start:end] == token for token, start, end in segment_with_spans(text))
    assert [token for token, _, _ in segment_with_spans(text)] == segment(text)
