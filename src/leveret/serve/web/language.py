"""Which of the two languages a browser asks for."""

from __future__ import annotations

from typing import Literal

Language = Literal["en", "zh"]
LANGUAGES: dict[Language, str] = {"en": "English", "zh": "中文"}


def preferred(accept_language: str) -> Language:
    """The language an Accept-Language header likes best; English where it likes neither: `fr, zh;q=0.4` is `zh`."""
    best: Language = "en"
    weight = 0.0
    for part in accept_language.split(","):
        tag, _, quality = part.strip().partition(";")
        name = tag.split("-")[0].strip().lower()
        try:
            liking = float(quality.strip().removeprefix("q=")) if quality else 1.0
        except ValueError:
            continue
        if liking > weight and name in ("en", "zh"):
            best, weight = ("zh" if name == "zh" else "en"), liking
    return best
