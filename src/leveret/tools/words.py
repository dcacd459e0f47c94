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
    categories = [unicodedata.category(character) for character in text]
    in_run = [category[0] in "LNM" and category != "Lo" for category in categories]
    inner = [
        not ((before and here) or category[0] == "M")
        for before, here, category in zip(in_run, in_run[1:], categories[1:], strict=False)
    ]
    return [True, *inner, True] if text else [True]


def find_words(text: str, words: str) -> int:
    """First position where `words` stands in `text` between cut points; otherwise anywhere; -1 when absent."""
    first = position = text.find(words) if words else -1
    cuts = cut_points(text) if position >= 0 else []
    while position >= 0:
        if cuts[position] and cuts[position + len(words)]:
            return position
        position = text.find(words, position + 1)
    return first
