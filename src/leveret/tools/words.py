"""Where a word may begin or end in a request: the cut points of copied arguments.

Arguments such as a name or a message are copied out of the request. A copy that starts or stops inside a word
("lice", "Ali") is never wanted, so both ends must be *cut points*. A position is no cut point when the characters
on its two sides belong to one run of cased letters and digits, or when the right one is a combining mark.
Scripts without spaces (Han, kana, Thai: Unicode category Lo) may be cut between any two characters.
"""

from __future__ import annotations

import unicodedata


def cut_points(text: str) -> list[bool]:
    """For each position 0..len(text): may a word begin or end there?"""
    cuts = [True] * (len(text) + 1)
    for position in range(1, len(text)):
        left, right = text[position - 1], text[position]
        cuts[position] = not (_joins(left, right) or unicodedata.category(right).startswith("M"))
    return cuts


def find_words(text: str, words: str) -> int:
    """First position where `words` stands in `text` between cut points; otherwise anywhere; -1 when absent."""
    first = position = text.find(words) if words else -1
    cuts = cut_points(text) if position >= 0 else []
    while position >= 0:
        if cuts[position] and cuts[position + len(words)]:
            return position
        position = text.find(words, position + 1)
    return first


def _joins(left: str, right: str) -> bool:
    return _in_run(left) and _in_run(right)


def _in_run(character: str) -> bool:
    category = unicodedata.category(character)
    return category[0] in "LNM" and category != "Lo"
