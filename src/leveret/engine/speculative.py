"""Speculation: guess the next ids cheaply, and let the model check them all in one step.

A step that feeds one token reads every weight for it; one that feeds a few reads them once as well. So ids that are
likely to come are fed with the one that is certain, and each is kept if it is what the row then chooses:

    row chooses x1 from the logits after the last id; if x1 is the first guess, the logits after it are there already,
    and the row chooses x2 from them; and so on until a guess was wrong, or one id beyond the last guess

The row chooses exactly as it would have, with its own random numbers, so a guess changes neither the distribution nor,
for a seed, a single id. (The usual rule, Leviathan 2211.17192, draws from the guesser and corrects with new numbers;
its distribution is right too, but its ids are others.) A draft model makes its guesses with the numbers that the row
will draw, so that two similar distributions mostly say the same id at any temperature.

Two guessers: the text so far (`Lookup`: what followed the last time these ids came; free, and often right in code and
in answers that quote) and a smaller model (`draft.py`). Guessing stops for a row while it does not pay (`Pace`), and
for all when many rows run, for then reading weights is no longer what a step costs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Protocol

from leveret.engine.row import Row

GRAMS = (6, 4, 2)
"""Lengths of the pieces of text that are looked up, the longest first."""

STEP_TOKENS = 16
"""New tokens of a step up to which guessing may bring it; beyond, a step costs by the token."""

MOST_GUESSES = 8
"""For one row in one step."""

WORTH = 0.3
"""Share of right guesses below which they cost more than they save."""


class Guesser(Protocol):
    """Something that knows what a row may choose next."""

    def guess(self, most: dict[Row, int]) -> dict[Row, list[int]]:
        """For any of the rows, at most so many ids that are likely to follow."""

    def drop(self, row: Row) -> None:
        """The row has ended."""


class Speculation:
    """Guesses for all rows of an engine."""

    def __init__(self, guessers: Sequence[Guesser]) -> None:
        """`guessers`: each is asked for the rows that those before it have no guess for."""
        self._guessers = guessers
        self._paces: defaultdict[Row, Pace] = defaultdict(Pace)

    def guess(self, rows: Sequence[Row]) -> dict[Row, list[int]]:
        """Ids that are likely to follow, for those of the rows for which it pays to guess."""
        if not self._guessers or not rows:
            return {}
        each = min(MOST_GUESSES, STEP_TOKENS // len(rows) - 1)
        if each <= 0:
            return {}
        most: dict[Row, int] = {}
        for row in rows:
            left = row.request.params.max_tokens - row.num_generated - 1
            if (count := min(each, left, self._paces[row].length)) > 0:
                most[row] = count
        found: dict[Row, list[int]] = {}
        for guesser in self._guessers:
            asked = {row: count for row, count in most.items() if row not in found}
            found |= {row: ids for row, ids in guesser.guess(asked).items() if ids}
        return found

    def learn(self, row: Row, guessed: int, right: int) -> None:
        """How many of a row's guesses were right in this step; 0 of 0 when there were none."""
        if row in self._paces:
            self._paces[row].learn(guessed, right)

    def drop(self, row: Row) -> None:
        """The row has ended."""
        self._paces.pop(row, None)
        for guesser in self._guessers:
            guesser.drop(row)


class Pace:
    """How much to guess for one row, by how its guesses have fared."""

    def __init__(self) -> None:
        self._length = 4
        self._share = 0.6
        self._pause = 0
        self._next_pause = 8

    @property
    def length(self) -> int:
        """How many ids to guess now; 0 during a pause."""
        return 0 if self._pause else self._length

    def learn(self, guessed: int, right: int) -> None:
        """Guess more after a full success, and pause, each time for longer, when too little was right."""
        if self._pause:
            self._pause -= 1
        if not guessed:
            return
        self._length = min(MOST_GUESSES, 2 * self._length) if right == guessed else max(2, right + 1)
        self._share += (right / guessed - self._share) / 4
        if self._share < WORTH:
            self._share, self._length = 0.4, 2
            self._pause, self._next_pause = self._next_pause, min(2 * self._next_pause, 256)
        elif self._share > 2 * WORTH:
            self._next_pause = 8


class Lookup:
    """Guesses what followed the last time that the row's latest ids came (prompt lookup)."""

    def __init__(self) -> None:
        self._indexes: dict[Row, _Index] = {}

    def guess(self, most: dict[Row, int]) -> dict[Row, list[int]]:
        """For rows whose latest ids came before."""
        return {row: self._indexes.setdefault(row, _Index()).following(row.ids, count) for row, count in most.items()}

    def drop(self, row: Row) -> None:
        """The row has ended."""
        self._indexes.pop(row, None)


class _Index:
    """Where each piece of a growing text last ended."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, ...], int] = {}
        self._known = 0

    def following(self, ids: Sequence[int], count: int) -> list[int]:
        """What followed the longest known end of the text; a text that repeats itself is taken to go on so."""
        for end in range(self._known + 1, len(ids)):
            self._ends.update((piece, end) for piece in _ending(ids, end))
        self._known = max(self._known, len(ids) - 1)
        for piece in _ending(ids, len(ids)):
            if (place := self._ends.get(piece)) is not None:
                distance = len(ids) - place
                return [ids[place + offset % distance] for offset in range(count)]
        return []


def _ending(ids: Sequence[int], end: int) -> Iterable[tuple[int, ...]]:
    return (tuple(ids[end - size : end]) for size in GRAMS if end >= size)
