"""The scores of an answer's tokens, which wait for the piece of the answer that their tokens end up in.

The engine tells the score of an id before it shows the id (`Request.record`, then `Request.watch`). What the id means
is known only later, when text has become certain or a call has ended; so scores queue here with their tokens' places.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from leveret.engine.token_score import TokenScore


@dataclass(frozen=True, kw_only=True)
class PlacedScore:
    """The score of a token, and where in the text it begins."""

    score: TokenScore
    start: int
    """Characters of the text before it; a token that is only a part of a character begins where that one does."""


class ScoreLine:
    """A queue of scores; empty all the time if none were asked for."""

    def __init__(self) -> None:
        self._scores: deque[TokenScore] = deque()
        self._starts: deque[int] = deque()

    def record(self, score: TokenScore) -> None:
        """Take the score of the next id, or of a stop id, which nobody places."""
        self._scores.append(score)

    def place(self, start: int) -> None:
        """The id of the oldest score without a place begins after so many characters of the text."""
        if len(self._scores) > len(self._starts):
            self._starts.append(start)

    def given(self, end: int | None = None) -> tuple[PlacedScore, ...]:
        """Take out the scores of the tokens that begin before this place; None: of all that have one."""
        placed = []
        while self._starts and (end is None or self._starts[0] < end):
            placed.append(PlacedScore(score=self._scores.popleft(), start=self._starts.popleft()))
        return tuple(placed)
