"""Cut English, Chinese and mixed text into the tokens that filters, deduplication and metrics compare.

Splitting at spaces finds no words in Chinese, so n-grams over it find no duplicates and no leaked exam questions.
Here a token is one character of a script that is written without spaces (Han, kana, bopomofo, Thai, Lao, Khmer,
Burmese), or one word or number of any other script; punctuation and symbols are not tokens. Texts are compared after
NFKC and case folding, so that ＡＢＣ, abc and ABC are one word, and so are ｶﾞ and ガ.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

_HAN = "\u3005\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_SPACELESS = _HAN + "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3105-\u312f\u31a0-\u31bf\u31f0-\u31ff"
_SPACELESS += "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ebd\u0ec0-\u0ece\u1000-\u103f\u1050-\u108f\u1780-\u17d3"
_MARKS = (
    "\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u05bf-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u0900-\u0963\u0971-\u0d7f"
)

_LETTER = f"(?:(?![{_SPACELESS}])[^\\W\\d_]|[{_MARKS}])"
_NUMBER = r"\d+(?:[.,:]\d+)*"
_TOKEN = re.compile(f"[{_SPACELESS}]|{_LETTER}(?:{_LETTER}|\\d)*(?:['’]{_LETTER}+)*|{_NUMBER}")
_HAN_CHARACTER = re.compile(f"[{_HAN}]")


def normalize(text: str) -> str:
    """NFKC and case folding: the form in which texts are compared."""
    return unicodedata.normalize("NFKC", text).casefold()


def segment(text: str) -> list[str]:
    """The tokens of `text`, normalized."""
    return _TOKEN.findall(normalize(text))


def segment_with_spans(text: str) -> Iterator[tuple[str, int, int]]:
    """Each token with its half-open range in `normalize(text)`."""
    for match in _TOKEN.finditer(normalize(text)):
        yield match.group(), match.start(), match.end()


def beginning(text: str, num_bytes: int) -> str:
    """The longest beginning of `text` that has at most so many bytes of UTF-8."""
    return text.encode()[:num_bytes].decode(errors="ignore")


def count_han(text: str) -> int:
    """The number of Han characters in `text`."""
    return sum(1 for _ in _HAN_CHARACTER.finditer(text))
