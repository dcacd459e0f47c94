"""GrammarConstraint: which ids may come next in one answer of a given form.

Where the form is satisfied the answer may end, by one of the request's stop ids. Where nothing can follow it ends
without one. A request that has no stop id, as with a tokenizer that knows no end of text, cannot say that it is done:
its answer ends at the first place where the form is satisfied, once something is written (`a*` is then "a"), or goes on
for as long as the form allows, if that was asked for (`ignore_eos`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import takewhile
from typing import Any

import numpy as np


class GrammarConstraint:
    """Which ids may come next in one answer; an `engine.request.Constraint`."""

    def __init__(self, matcher: Any, special: np.ndarray, stop_ids: Iterable[int], *, goes_on: bool = False) -> None:
        """`special`: flags (V,) of ids that are never allowed; `goes_on`: what an answer without stop ids does."""
        self._matcher = matcher
        self._special = special
        known = {token_id for token_id in stop_ids if 0 <= token_id < len(special)}
        self._stop_ids = np.array(sorted(known), dtype=np.int64)
        self._ends_early = not (known or goes_on)
        self._num_taken = 0
        self._allowed: np.ndarray | None = None
        self._forced: list[int] = []
        self._ended = False
        self.problem: str | None = None
        """Why the form could not be followed to its end (a limit of the library); the answer is then incomplete."""

    @property
    def finished(self) -> bool:
        """True when nothing may follow."""
        return self._ended or self.problem is not None or self._complete

    @property
    def accepting(self) -> bool:
        """True where the answer may end."""
        return bool(self._matcher.is_accepting())

    @property
    def _complete(self) -> bool:
        return bool(self._matcher.is_stopped()) or (self._ends_early and self._num_taken > 0 and self.accepting)

    def allowed_ids(self) -> np.ndarray:
        """The ids that may come next: (n,) int64, sorted; n >= 1 until finished."""
        if self._allowed is None:
            self._allowed = self._find_ids()
        return self._allowed

    def advance(self, token_id: int) -> None:
        """Take an allowed id."""
        self._allowed = None
        self._num_taken += 1
        if self._forced and self._forced[0] == token_id:
            self._forced.pop(0)
        else:
            self._forced = []
        if token_id in self._stop_ids and self.accepting:
            self._ended = True
        elif not self._matcher.consume_token(token_id):
            self._fail(f"token {token_id} was not accepted: {self._matcher.get_error()}")
        if not self.finished:
            self.allowed_ids()  # a limit of the library shows here and not in the middle of a step

    def rollback(self, num_ids: int) -> None:
        """Take back the last ids (no stop id among them), as speculation does with a rejected guess."""
        self._matcher.rollback(num_ids)
        self._num_taken -= num_ids
        self._allowed, self._forced, self._ended = None, [], False

    def clone(self) -> GrammarConstraint:
        """A copy at the same point that goes its own way."""
        twin = object.__new__(GrammarConstraint)
        twin.__dict__.update(self.__dict__, _matcher=self._matcher.deep_copy(), _forced=list(self._forced))
        return twin

    def _find_ids(self) -> np.ndarray:
        if self.finished:
            return self._stop_ids
        if not self._forced:
            forced = self._matcher.compute_ff_tokens()
            self._forced = list(takewhile(lambda index: not self._special[index], forced))
        if self._forced:
            return np.array(self._forced[:1], dtype=np.int64)
        bits = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.uint8)
        if self._matcher.is_error():
            self._fail(str(self._matcher.get_error()))
            return self._stop_ids
        allowed = np.unpackbits(bits, count=len(self._special), bitorder="little").astype(bool) & ~self._special
        if self.accepting:
            allowed[self._stop_ids] = True
        ids = np.flatnonzero(allowed)
        if not len(ids) and self.accepting:
            self._ended = True
        elif not len(ids):
            self._fail("no token of the vocabulary can follow")
        return ids

    def _fail(self, problem: str) -> None:
        self.problem = problem
        logging.getLogger(__name__).warning("an answer of a given form was cut off: %s", problem)
