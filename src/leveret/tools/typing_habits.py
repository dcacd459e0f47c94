"""How a request looks when somebody types it: letter case, slips of the finger, a final mark or none.

Only wording slips: values stay as they were drawn, except for letter case, and the caller reads them off the result.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

_FINAL_MARKS = {"en": (".", "!", "?", "..."), "zh": ("。", "！", "？", "~")}
"""For each language: a statement, a loud one, a question, a trailing one."""

_QUESTIONS = ("what", "how", "is ", "will", "can ", "could", "do ", "would")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_SHORTEST_SLIP = 7
"""Characters of wording at the least for a slip: shorter stretches may become another word."""


def as_typed(texts: Sequence[str], is_value: Sequence[bool], language: str, rng: random.Random) -> list[str]:
    """The pieces of a request in one person's letter case, now and then with a slip outside the values."""
    typed = list(texts)
    style = rng.random()
    if language == "en" and style < 0.35:
        typed = [text.lower() for text in typed]
    elif language == "en" and style < 0.8:
        typed = _capitalized(typed)
    if rng.random() < 0.03:
        wording = [i for i, value in enumerate(is_value) if not value and len(typed[i]) >= _SHORTEST_SLIP]
        if wording:
            place = rng.choice(wording)
            typed[place] = _slip(typed[place], language, rng)
    return typed


def final_mark(query: str, language: str, rng: random.Random) -> str:
    """What stands at the end of `query`; most often nothing."""
    if not query or not query[-1].isalnum() or rng.random() < 0.6:
        return ""
    statement, loud, question, trailing = _FINAL_MARKS[language]
    if query.lower().startswith(_QUESTIONS) or query.endswith(("吗", "呢")):
        return question
    return rng.choices((statement, loud, trailing), weights=(24, 5, 1))[0]


def _capitalized(texts: list[str]) -> list[str]:
    for number, text in enumerate(texts):
        if stripped := text.lstrip():
            start = len(text) - len(stripped)
            return [*texts[:number], text[:start] + stripped[0].upper() + stripped[1:], *texts[number + 1 :]]
    return texts


def _slip(text: str, language: str, rng: random.Random) -> str:
    """One mistake: a letter lost, doubled, swapped or wrong (English); a character lost or doubled (Chinese)."""
    place = rng.randrange(1, len(text) - 1)
    kind = rng.randrange(4 if language == "en" else 2)
    if kind == 0:
        return text[:place] + text[place + 1 :]
    if kind == 1:
        return text[:place] + text[place] + text[place:]
    if kind == 2:
        return text[:place] + text[place + 1] + text[place] + text[place + 2 :]
    return text[:place] + rng.choice(_LETTERS) + text[place + 1 :]
