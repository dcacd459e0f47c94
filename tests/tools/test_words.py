"""Where words may be cut."""

from __future__ import annotations

import itertools

import pytest

from leveret.tools.words import cut_points, find_words


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("Call Zoë's mum", ["Call", " ", "Zoë", "'", "s", " ", "mum"]),
        ("给Al打电话", ["给", "Al", "打", "电", "话"]),
        ("7am, 10分钟", ["7am", ",", " ", "10", "分", "钟"]),
        ("cafe\u0301 x", ["cafe\u0301", " ", "x"]),
        ("", []),
    ],
)
def test_runs_of_letters_and_digits_are_not_cut(text: str, pieces: list[str]) -> None:
    cuts = cut_points(text)
    places = [place for place in range(len(text) + 1) if cuts[place]]
    assert [text[first:last] for first, last in itertools.pairwise(places)] == pieces


def test_a_whole_word_is_found_before_a_part_of_one() -> None:
    assert find_words("start art", "art") == 6
    assert find_words("start", "art") == 2
    assert find_words("start", "x") == find_words("start", "") == -1
