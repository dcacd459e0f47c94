"""How many bytes of English and of Chinese a token carries on texts that the tokenizer was not trained on.

More bytes a token means shorter sequences: cheaper training, faster answers, more text in the context. The two
languages are measured apart, because a vocabulary good at one easily starves the other.
"""

from __future__ import annotations

from dataclasses import dataclass

from leveret.segment.words import count_han
from leveret.tokenizer.files import Tokenizer

LANGUAGES = ("english", "chinese")
MAX_BYTES = 500_000
"""Text of one language that is measured at most."""


@dataclass(frozen=True, kw_only=True)
class Fertility:
    """What one language costs."""

    num_texts: int
    num_bytes: int
    num_characters: int
    num_tokens: int

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes that a token carries on average."""
        return self.num_bytes / self.num_tokens

    @property
    def tokens_per_character(self) -> float:
        """Tokens that a character costs on average."""
        return self.num_tokens / self.num_characters


class FertilitySample:
    """Held-out texts by language, collected while the others go into training."""

    def __init__(self) -> None:
        self._texts: dict[str, list[str]] = {language: [] for language in LANGUAGES}
        self._bytes = dict.fromkeys(LANGUAGES, 0)

    def offer(self, text: str) -> bool:
        """Keep `text` if it is clearly of one of the languages and more of that is wanted; whether it was kept."""
        language = language_of(text)
        if language is None or self._bytes[language] >= MAX_BYTES:
            return False
        self._texts[language].append(text)
        self._bytes[language] += len(text.encode())
        return True

    def measure(self, tokenizer: Tokenizer) -> dict[str, Fertility]:
        """The languages of which there is text."""
        measured = {}
        for language, texts in self._texts.items():
            num_tokens = sum(len(ids) for ids in tokenizer.encode_batch(texts))
            if num_tokens:
                measured[language] = Fertility(
                    num_texts=len(texts),
                    num_bytes=self._bytes[language],
                    num_characters=sum(map(len, texts)),
                    num_tokens=num_tokens,
                )
        return measured


def language_of(text: str) -> str | None:
    """`chinese` where three in ten characters are Han, `english` where nearly all are ASCII and half are letters."""
    if not text or text.isspace():
        return None
    if count_han(text) >= 0.3 * len(text):
        return "chinese"
    num_ascii = sum(character.isascii() for character in text)
    num_letters = sum(character.isalpha() for character in text)
    return "english" if num_ascii >= 0.98 * len(text) and num_letters >= 0.5 * len(text) else None
