"""The grammar of functional calls as states and bytes, shared by all requests to one model.

    answer  = no-tool token | call+          (then a stop token)
    call    = tool token "(" arguments ")" end token

A `State` says where in a call we are. `steps` gives the bytes that may come next, each with the state after it; the
special tokens come at `Place.ANSWER` and `Place.END` only and are handled by `constraint.py`. Values are followed in
their byte automata (`values.py`). A comma is allowed only where an argument still follows, so trailing absent
arguments are always left out. What may come next from a state does not depend on the request, except in a string that
is copied from it (`Place.COPY`); so the allowed tokens of all other states are found once and kept here.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from leveret.errors import ToolError
from leveret.tokenizer.files import Tokenizer
from leveret.tools.automaton import ByteAutomaton
from leveret.tools.functional import FunctionalDialect
from leveret.tools.tool import Parameter
from leveret.tools.trie import TrieNode, VocabularyTrie
from leveret.tools.values import value_automaton


class Place(enum.IntEnum):
    """Kinds of states."""

    ANSWER = 0
    """Before a call, or after the last one."""
    OPEN = 1
    """After the tool token: `(` follows."""
    FIRST = 2
    """After `(`: the first argument or `)`."""
    NEXT = 3
    """After a comma: an argument must still come."""
    VALUE = 4
    """Inside a value, or just behind one."""
    COPY = 5
    """Inside a string that is copied from the request."""
    END = 6
    """After `)`: the end token follows."""
    DONE = 7
    """Nothing follows."""


class State(NamedTuple):
    """A point in an answer."""

    place: Place
    tool: int = 0
    parameter: int = 0
    inner: int = 0
    """State of the value's automaton."""
    closing: bool = False
    """The value is as long as it may be: take the shortest way to its end."""
    positions: tuple[tuple[int, int], ...] = ()
    """In a copied string, the places in the request that fit so far; see `copying.py`."""


class CallGrammar:
    """The calls of one dialect in the tokens of one tokenizer."""

    def __init__(
        self,
        dialect: FunctionalDialect,
        tokenizer: Tokenizer,
        *,
        stop_ids: Sequence[int] | None = None,
        max_calls: int = 8,
        max_string_bytes: int = 240,
    ) -> None:
        """`stop_ids`: what ends an answer, by default the EOS; `max_string_bytes`: longer strings are closed.

        Raises ToolError when there is no stop token, TokenizerError when the tokenizer lacks the functional tokens.
        """
        default_stop = () if tokenizer.eos_id is None else (tokenizer.eos_id,)
        self.stop_ids = tuple(sorted(set(stop_ids or default_stop)))
        if not self.stop_ids:
            raise ToolError("nothing ends an answer: the tokenizer has no EOS", hint="pass stop_ids")
        self.dialect = dialect
        self.max_calls = max_calls
        self.max_string_bytes = max_string_bytes
        self.trie = VocabularyTrie(tokenizer)
        self.tool_ids = tuple(tokenizer.id_of(token) for token in dialect.tool_tokens)
        self.end_id = tokenizer.id_of(dialect.end_token)
        self.no_tool_id = tokenizer.id_of(dialect.no_tool_token)
        self.parameters: tuple[tuple[Parameter, ...], ...] = tuple(tool.parameters for tool in dialect.tools)
        longest = max_string_bytes + self.trie.longest_bytes
        self._by_parameter: dict[Parameter, ByteAutomaton] = {}
        self._automata = tuple(
            tuple(self._automaton(parameter, longest) for parameter in each) for each in self.parameters
        )
        self.masks: dict[State, np.ndarray] = {}
        """Allowed ids of states where the request does not matter; filled by the constraints."""
        self._inner_masks: dict[tuple[int, int], list[int]] = {}

    def automaton(self, state: State) -> ByteAutomaton:
        """The automaton of the value that a VALUE or COPY state is in."""
        return self._automata[state.tool][state.parameter]

    def steps(self, state: State) -> dict[int, State]:
        """The bytes that may follow outside values and copied strings, each with the state it leads to.

        A quote that begins a copied string leads to a COPY state without positions, for the constraint to fill in.
        """
        match state.place:
            case Place.OPEN:
                return {ord("("): state._replace(place=Place.FIRST)}
            case Place.FIRST:
                return self._slot(state) | self._close(state)
            case Place.NEXT:
                return self._slot(state)
            case _:
                return {}

    def follow_value(self, state: State, byte: int) -> State | None:
        """The state after one more byte of a VALUE state; None when the byte may not follow.

        One byte and not all of them: in free text there are two hundred.
        """
        automaton = self.automaton(state)
        target = automaton.transitions[state.inner].get(byte)
        here = automaton.distance[state.inner]
        if target is not None and (not state.closing or automaton.distance[target] < here):
            return State(Place.VALUE, state.tool, state.parameter, target, state.closing)
        return self.after_value(state).get(byte) if here == 0 else None

    def after_value(self, state: State) -> dict[int, State]:
        """What may follow a whole value: a comma when arguments remain, `)` when none of them is required."""
        following = State(Place.NEXT, state.tool, state.parameter + 1)
        more = {ord(","): following} if following.parameter < len(self.parameters[state.tool]) else {}
        return more | self._close(following)

    def in_text(self, state: State) -> bool:
        """True in a VALUE state where most bytes are welcome, as in free text."""
        return len(self.automaton(state).transitions[state.inner]) > 64

    def inner_ids(self, state: State) -> list[int]:
        """Tokens wholly inside the string of a VALUE state, up to its closing quote; kept, for they are many."""
        automaton = self.automaton(state)
        key = (id(automaton), state.inner)
        if key not in self._inner_masks:
            self._inner_masks[key] = _ids_inside(self.trie.root, automaton, state.inner)
        return self._inner_masks[key]

    def _automaton(self, parameter: Parameter, longest_bytes: int) -> ByteAutomaton:
        """One automaton for all parameters that take the same values."""
        bare = Parameter(
            name="",
            type=parameter.type,
            choices=parameter.choices,
            minimum=parameter.minimum,
            maximum=parameter.maximum,
            min_length=parameter.min_length,
            max_length=parameter.max_length,
            format=parameter.format if parameter.body else None,
            pattern=parameter.pattern,
        )
        if bare not in self._by_parameter:
            self._by_parameter[bare] = value_automaton(bare, longest_bytes=longest_bytes)
        return self._by_parameter[bare]

    def _slot(self, state: State) -> dict[int, State]:
        """Before an argument: its first byte, or a comma in place of an absent one."""
        parameters = self.parameters[state.tool]
        if state.parameter >= len(parameters):
            return {}
        if parameters[state.parameter].extractive and parameters[state.parameter].type in ("string", "enum"):
            steps = {ord('"'): State(Place.COPY, state.tool, state.parameter)}
        else:
            first_bytes = self._automata[state.tool][state.parameter].transitions[0].items()
            steps = {byte: State(Place.VALUE, state.tool, state.parameter, target) for byte, target in first_bytes}
        following = State(Place.NEXT, state.tool, state.parameter + 1)
        if not parameters[state.parameter].required and following.parameter < len(parameters):
            steps[ord(",")] = following
        return steps

    def _close(self, state: State) -> dict[int, State]:
        remaining = self.parameters[state.tool][state.parameter :]
        return {} if any(each.required for each in remaining) else {ord(")"): State(Place.END, state.tool)}


def _ids_inside(root: TrieNode, automaton: ByteAutomaton, inner: int) -> list[int]:
    ids: list[int] = []
    waiting = [(root, inner)]
    while waiting:
        node, state = waiting.pop()
        row = automaton.transitions[state]
        for byte, child in node.children.items():
            target = row.get(byte)
            if target is not None:
                ids.extend(child.ids)
                if child.children:
                    waiting.append((child, target))
    return ids
