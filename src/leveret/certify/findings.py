"""The words of a certificate: check, parting, comparison; plain data for tables, JSON and the card."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from leveret.certify.parting import Culprit
from leveret.certify.thresholds import PairKind
from leveret.tokenizer.files import Tokenizer

LAST_CHARACTERS = 20
"""How much of the text before a place is shown."""

Verdict = Literal["same", "different", "reported", "not compared"]
"""`reported`: measured, but this kind of pair is not judged by it."""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of a certificate."""

    name: str
    measured: str
    """What was found, in words and figures."""
    bound: str
    """What was asked for."""
    verdict: Verdict


@dataclass(frozen=True, kw_only=True)
class Parting:
    """The place where two forms part."""

    where: str
    """The text, conversation or window."""
    token_index: int
    """Position of the id, from 0."""
    detail: str
    """What each side has there."""
    culprit: Culprit | None = None
    """The module, when both are PyTorch models and the weights differ."""

    is_first: bool = True
    """Whether it is the first place, or, in lossy kinds where all places differ a little, the worst."""
    before: tuple[int, ...] = ()
    """The first form's ids up to there."""
    text_before: str = ""
    """Their text, when the place is told."""

    def in_text(self, tokenizer: Tokenizer) -> Parting:
        """The same with the text that stands before the place."""
        return replace(self, text_before=tokenizer.decode(list(self.before)).rstrip("\ufffd"))

    def __str__(self) -> str:
        text = self.text_before
        character = f" (character {len(text)}, after {text[-LAST_CHARACTERS:]!r})" if text else ""
        place = f"{'first' if self.is_first else 'most'} at {self.where}, token {self.token_index}{character}"
        place += f": {self.detail}"
        if self.culprit is None:
            return place
        return f"{place}; module {self.culprit.module} (error {self.culprit.error:.2g}): {self.culprit.reason}"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What was found out about one pair."""

    first: str
    second: str
    kind: PairKind
    checks: tuple[Check, ...]
    figures: dict[str, float]
    """The same as numbers: kl_nats and its interval, perplexities, largest difference ..."""
    parting: Parting | None
    seconds: float = 0.0
    """What loading the second form and comparing took."""

    @property
    def passed(self) -> bool:
        """Whether nothing that is judged differs."""
        return all(check.verdict != "different" for check in self.checks)


def verdict(holds: bool) -> Verdict:
    """What a judged check comes to."""
    return "same" if holds else "different"
