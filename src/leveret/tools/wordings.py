"""The wordings of one tool, and which of them are held out: new ways to combine words that training knows.

A wording is a pattern with its own choices made, `<polite>call {name}`; polite starts and ends, which are shared rules,
do not count. A hash of its text decides whether it is held out, never its place in a file or a list. But a wording that
is the only one with some word stays in training: nobody, and no model, can know what a word means that it never met.
(Where that would leave nothing to hold out, as among five short patterns, the hash alone decides.)
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Iterator, Sequence

from leveret.tools.phrase_rules import pick, skeleton, wording
from leveret.tools.phrases import Node, Pattern

HELD_OUT_PERCENT = 12
"""Share of wordings, and of values, that training never sees."""

PATIENCE = 1000
"""Draws before a split is said to be empty."""

_SAMPLED = 64  # wordings of a pattern among which its words are looked for; each is drawn in some of them
_MARK = re.compile(r"<[a-z_]+>|\{[a-z_]+\}")
_WORD = re.compile(r"[a-z']+|[0-9]+|[^\W_a-z0-9]")  # of scripts without spaces, a character


class Wordings:
    """Patterns that say the same, and the two splits of their wordings."""

    def __init__(self, patterns: Sequence[Pattern]) -> None:
        self.patterns = patterns
        hashed, others = self._divided()
        known = {word for text in others for word in words_of(text)}
        self._known = known if any(known.issuperset(words_of(text)) for text in hashed) else None

    def draw(self, rng: random.Random, *, held_out: bool) -> tuple[Pattern, list[Node]] | None:
        """A pattern and a wording of it from the training or the held-out split.

        None when there seems to be none in that split: a thousand draws have found none.
        """
        for _ in range(PATIENCE if self.patterns else 0):
            pattern = pick(self.patterns, rng)
            nodes = wording(pattern.nodes, rng)
            if self.is_held_out(nodes) == held_out:
                return pattern, nodes
        return None

    def is_held_out(self, nodes: Sequence[Node]) -> bool:
        """Whether a wording, its choices made, is used for evaluation only."""
        text = skeleton(nodes)
        return is_held_out(text, HELD_OUT_PERCENT) and (self._known is None or self._known.issuperset(words_of(text)))

    def sample(self) -> Iterator[list[Node]]:
        """Wordings of every pattern, the same each time: enough of them to see nearly all that it can say."""
        rng = random.Random(0)
        for pattern in self.patterns:
            for _ in range(_SAMPLED):
                yield wording(pattern.nodes, rng)

    def _divided(self) -> tuple[set[str], set[str]]:
        """The sample: wordings whose hash holds them out, and the others."""
        texts = {skeleton(nodes) for nodes in self.sample()}
        hashed = {text for text in texts if is_held_out(text, HELD_OUT_PERCENT)}
        return hashed, texts - hashed


def words_of(text: str) -> list[str]:
    """The words of a wording's own text, in lower case."""
    return _WORD.findall(_MARK.sub(" ", text).lower())


def text_hash(text: str) -> int:
    """A fixed number between 0 and 2^32 for a text, the same on every machine."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")


def is_held_out(text: str, percent: int) -> bool:
    """Whether the hash of `text` puts it into the evaluation split, as about `percent` in a hundred are."""
    return text_hash(text) % 100 < percent
