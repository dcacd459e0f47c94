"""Constrained tool calls: whatever tokens are picked out of the allowed ones, the answer parses and fits the schema.

The idea of guided generation (Willard and Louf, arXiv 2307.09702) for the one small grammar of functional calls: an
automaton over *bytes* (`grammar.py`) is lifted to *tokens* by walking the vocabulary's byte trie, so a token may
lie across several parts of the grammar (`",` or `")`) and any tokenization of a valid answer is allowed.

What is guaranteed, for any choices: known tools, required arguments, types, ranges, enums, formats, valid UTF-8, at
most `max_calls` calls, and a bounded number of tokens. A parameter declared extractive is moreover a piece of the
request, from word start to word end, its case kept; when the request offers no fitting piece it is written freely.

Speed: the allowed ids of a state are found once and kept in the shared `CallGrammar`; only inside copied strings is
the trie walked anew, and there the request leaves few branches.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from leveret.errors import ToolError
from leveret.tokenizer.files import Tokenizer
from leveret.tools.copying import RequestCopy
from leveret.tools.functional import FunctionalDialect
from leveret.tools.grammar import CallGrammar, Place, State
from leveret.tools.trie import TrieNode

_QUOTE = ord('"')


class CallConstraint:
    """Which token may come next in the answer to one request."""

    def __init__(
        self,
        dialect: FunctionalDialect,
        tokenizer: Tokenizer,
        *,
        query: str | None = None,
        allowed: Collection[str] | None = None,
        stop_ids: Sequence[int] | None = None,
        grammar: CallGrammar | None = None,
    ) -> None:
        """`allowed`: names of the tools that may be called (default: all).

        Many requests to one model should share one `grammar`; it then decides the stop ids.
        """
        self.grammar = grammar or CallGrammar(dialect, tokenizer, stop_ids=stop_ids)
        names = dialect.tools.names if allowed is None else allowed
        self._tool_ids = sorted(self.grammar.tool_ids[dialect.tools.index(name)] for name in set(names))
        self._query = query or ""
        self._copies: dict[tuple[int, int], RequestCopy] = {}
        self._own_masks: dict[State, np.ndarray] = {}
        self._state = State(Place.ANSWER)
        self._num_calls = 0
        self._refused = False
        self._value_bytes = 0
        self._walked_copy = False

    @property
    def finished(self) -> bool:
        """True after the stop token: nothing may follow."""
        return self._state.place is Place.DONE

    @property
    def inside(self) -> bool:
        """True from a tool token up to the end token of its call."""
        return self._state.place not in (Place.ANSWER, Place.DONE)

    @property
    def refused(self) -> bool:
        """True after the no-tool token."""
        return self._refused

    @property
    def num_calls(self) -> int:
        """Whole calls so far."""
        return self._num_calls

    def begins(self, token_id: int) -> bool:
        """Whether an id begins a call, or says that there is none."""
        return token_id == self.grammar.no_tool_id or token_id in self._tool_ids

    def allowed_ids(self) -> np.ndarray:
        """The ids that may come next: (n,) int64, sorted, read-only; n >= 1 until finished, then 0."""
        state = self._state
        if state.place in (Place.ANSWER, Place.END, Place.DONE):
            return np.array(self._special_ids(), dtype=np.int64)
        mask = self.grammar.masks.get(state)
        if mask is None:
            mask = self._own_masks.get(state)
        return self._find_ids(state) if mask is None else mask

    def forced(self) -> int | None:
        """The next id when there is only one: the model need not be asked."""
        allowed = self.allowed_ids()
        return int(allowed[0]) if len(allowed) == 1 else None

    def advance(self, token_id: int) -> None:
        """Take one id. Raises ToolError when it is not allowed here."""
        if self._state.place in (Place.ANSWER, Place.END, Place.DONE):
            self._advance_special(token_id)
            return
        text = self.grammar.trie.token_bytes.get(token_id)
        state: State | None = self._state if text else None
        for byte in text or b"":
            state = self._follow(self._resolved(state), byte) if state is not None else None
        if state is None:
            raise ToolError(f"token {token_id} ({text!r}) is not allowed here", hint="choose among allowed_ids()")
        self._state = self._measured(state, len(text or b""))

    def clone(self) -> CallConstraint:
        """A copy at the same point that goes its own way; the grammar and what is known of the request are shared."""
        twin = object.__new__(CallConstraint)
        twin.__dict__.update(self.__dict__)
        return twin

    def _special_ids(self) -> list[int]:
        grammar = self.grammar
        if self._state.place is Place.END:
            return [grammar.end_id]
        if self._state.place is Place.DONE:
            return []
        if self._refused or self._num_calls == grammar.max_calls:
            return list(grammar.stop_ids)
        if self._num_calls:
            return sorted({*self._tool_ids, *grammar.stop_ids})
        return sorted({*self._tool_ids, grammar.no_tool_id})

    def _advance_special(self, token_id: int) -> None:
        grammar = self.grammar
        if token_id not in self._special_ids():
            raise ToolError(f"token {token_id} is not allowed here", hint="choose among allowed_ids()")
        if token_id == grammar.end_id:
            self._num_calls += 1
            self._state = State(Place.ANSWER)
        elif token_id in grammar.tool_ids:
            self._state = State(Place.OPEN, grammar.tool_ids.index(token_id))
        elif token_id == grammar.no_tool_id:
            self._refused = True
        else:
            self._state = State(Place.DONE)

    def _measured(self, state: State, num_bytes: int) -> State:
        """Count the bytes of the value we are in; a value that has become too long may only be closed."""
        same_value = self._state.place is Place.VALUE and self._state.parameter == state.parameter
        self._value_bytes = num_bytes + (self._value_bytes if same_value else 0)
        too_long = state.place is Place.VALUE and self._value_bytes >= self.grammar.max_string_bytes
        return state._replace(closing=True) if too_long else state

    def _resolved(self, state: State) -> State:
        """The beginning of a copied string, filled in: where it may be copied from, or free text if nowhere."""
        if state.place is not Place.COPY:
            return state
        self._walked_copy = True
        if state.positions:
            return state
        if beginning := self._copy(state).beginning:
            return state._replace(positions=beginning)
        opened = self.grammar.automaton(state).transitions[0][_QUOTE]
        return State(Place.VALUE, state.tool, state.parameter, opened)

    def _follow(self, state: State, byte: int) -> State | None:
        if state.place is Place.VALUE:
            return self.grammar.follow_value(state, byte)
        return self._steps(state).get(byte)

    def _steps(self, state: State) -> dict[int, State]:
        if state.place is not Place.COPY:
            return self.grammar.steps(state)
        copy = self._copy(state)
        steps = {byte: state._replace(positions=each) for byte, each in copy.steps(state.positions).items()}
        if copy.may_end(state.positions):
            steps[_QUOTE] = self._closed(state)
        return steps

    def _closed(self, state: State) -> State:
        """Behind the closing quote: the accepting state of the value's automaton."""
        accepting = self.grammar.automaton(state).distance.index(0)
        return State(Place.VALUE, state.tool, state.parameter, accepting)

    def _copy(self, state: State) -> RequestCopy:
        key = (state.tool, state.parameter)
        if key not in self._copies:
            parameter = self.grammar.parameters[state.tool][state.parameter]
            self._copies[key] = RequestCopy(
                self._query,
                parameter,
                self.grammar.automaton(state),
                spell=self.grammar.dialect.spell,
                max_bytes=self.grammar.max_string_bytes,
            )
        return self._copies[key]

    def _find_ids(self, state: State) -> np.ndarray:
        """Walk the vocabulary from a state seen for the first time, and keep the ids where they can be found again."""
        self._walked_copy = False
        here = self._resolved(state)
        if here.place is Place.VALUE and not here.closing and self.grammar.in_text(here):
            ids = [*self.grammar.inner_ids(here), *self._walk(self.grammar.trie.crossing_root, here)]
        else:
            ids = self._walk(self.grammar.trie.root, here)
        mask = np.unique(np.array(ids, dtype=np.int64))
        mask.flags.writeable = False
        (self._own_masks if self._walked_copy else self.grammar.masks)[state] = mask
        return mask

    def _walk(self, root: TrieNode, start: State) -> list[int]:
        ids: list[int] = []
        waiting = [(root, start)]
        while waiting:
            node, state = waiting.pop()
            state = self._resolved(state)
            if state.place is Place.VALUE:
                reached = [(child, self.grammar.follow_value(state, byte)) for byte, child in node.children.items()]
            else:
                steps = self._steps(state)
                reached = [(node.children[byte], steps[byte]) for byte in steps.keys() & node.children.keys()]
            for child, target in reached:
                if target is not None:
                    ids.extend(child.ids)
                    if child.children:
                        waiting.append((child, target))
        return ids
