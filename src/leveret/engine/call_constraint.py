"""Both kinds of calls in one answer: functional tokens and calls written as text take turns.

The automaton of the functional tokens (tools/constraint.py) and the grammar of text and written calls
(call_grammar.py) know nothing of each other. Wherever the text could end, a functional token may come as well; from
that token to the end of its call the automaton alone says what is allowed, then the grammar goes on where it was.
"""

from __future__ import annotations

import numpy as np

from leveret.engine.grammar_constraint import GrammarConstraint
from leveret.tools.constraint import CallConstraint


class MixedConstraint:
    """Which ids may come next; an `engine.request.Constraint`."""

    def __init__(
        self, calls: CallConstraint, written: GrammarConstraint, *, required: bool = False, parallel: bool = True
    ) -> None:
        """`required`: something must be called; `parallel`: more than one call may be made."""
        self._calls = calls
        self._written = written
        self._required = required
        self._parallel = parallel
        self._untouched = True
        self._ended = False

    @property
    def finished(self) -> bool:
        """True when nothing may follow."""
        return self._ended or self._calls.finished or (self._written.finished and not self._calls.inside)

    @property
    def problem(self) -> str | None:
        """Why the grammar could not be followed to its end, if so."""
        return self._written.problem

    def allowed_ids(self) -> np.ndarray:
        """Ids allowed now, sorted."""
        if self._calls.inside or self._calls.refused:
            return self._calls.allowed_ids()
        own = self._written.allowed_ids()
        if not (self._untouched or self._written.accepting):
            return own
        return np.union1d(own, self._functional_ids())

    def advance(self, token_id: int) -> None:
        """Take an allowed id."""
        grammar = self._calls.grammar
        if self._calls.inside or self._calls.refused or self._calls.begins(token_id):
            self._calls.advance(token_id)
            self._ended = token_id == grammar.end_id and not self._parallel
        elif token_id in grammar.stop_ids and self._calls.num_calls and self._untouched:
            self._ended = True
        else:
            self._written.advance(token_id)
            self._untouched = False

    def _functional_ids(self) -> np.ndarray:
        if not self._parallel and (self._calls.num_calls or not self._untouched):
            return np.empty(0, dtype=np.int64)
        ids = self._calls.allowed_ids()
        if self._required or not self._untouched:
            ids = ids[ids != self._calls.grammar.no_tool_id]
        if not self._calls.num_calls or not self._untouched:
            ids = ids[~np.isin(ids, self._calls.grammar.stop_ids)]  # then the text says where the answer may end
        return ids
