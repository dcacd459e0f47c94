"""Invented values that no list can hold, so that a model learns to copy instead of to remember.

Rules of plain text for phrase books: `<made_up_name>`: pronounceable invented names; `<han_name>`, `<han_words>`: names
and words of random common Han characters (GB 2312, level 1, the 3755 most used); `<span>`: stretches of real text.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

_SURNAMES = (
    "王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗梁宋郑谢韩唐冯于董萧程曹袁邓许傅沈曾彭吕苏卢蒋蔡贾丁魏薛叶阎余潘杜戴夏钟汪田任姜范方石姚谭廖"
    "邹熊金陆郝孔白崔康毛邱秦江史顾侯邵孟龙万段雷钱汤尹黎易常武乔贺赖龚文"
)
_ONSETS = (
    *("b", "c", "d", "f", "g", "h", "j", "k", "l", "m", "n", "p", "r", "s", "t", "v", "w", "z"),
    *("br", "ch", "cl", "cr", "dr", "fl", "gr", "kr", "pl", "sh", "st", "th", "tr"),
)
_RHYMES = (
    *("a", "e", "i", "o", "u", "an", "ar", "el", "en", "er", "ia", "in", "io", "is", "on", "or", "us", "y", "ay", "ee"),
    *("ell", "ick", "oon", "ock", "ing", "ert", "ath"),
)


def made_up_rules(seed: int, spans: Sequence[str] = (), *, count: int = 4000) -> dict[str, list[str]]:
    """`count` invented texts for each rule; of each span, the words of letters and apostrophes."""
    rng = random.Random(f"{seed}/made-up")
    clean = sorted({" ".join(filter(_is_word, span.split())) for span in spans} - {""})
    han = common_han_characters()
    return {
        "made_up_name": [_pronounceable(rng).capitalize() for _ in range(count)],
        "han_name": [rng.choice(_SURNAMES) + "".join(rng.choices(han, k=rng.choice((1, 2, 2)))) for _ in range(count)],
        "han_words": ["".join(rng.choices(han, k=rng.choice((2, 2, 3, 4, 4, 5)))) for _ in range(count)],
        "span": clean or ["real text"],
    }


def common_han_characters() -> list[str]:
    """Level 1 of GB 2312: rows 16 to 55 of 94 characters; the last row ends after 89."""
    codes = (bytes((high, low)) for high in range(0xB0, 0xD8) for low in range(0xA1, 0xFF))
    return [code.decode("gb2312") for code in codes if code < bytes((0xD7, 0xFA))]


def _is_word(text: str) -> bool:
    return text.replace("'", "").isalpha()


def _pronounceable(rng: random.Random) -> str:
    return "".join(rng.choice(_ONSETS) + rng.choice(_RHYMES) for _ in range(rng.choice((1, 2, 2, 2, 3))))
