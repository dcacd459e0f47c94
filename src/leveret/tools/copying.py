"""Copying a string out of the request: which pieces of it are possible values, and how far a copy has come.

A copy begins and ends at cut points (`words.py`) and with no comma, is spelled as JSON, takes the one space that stands
before its word in the request, and satisfies its parameter. While it is being written, several places of the request
may still fit ("the" stands there twice); each is a position `(piece, offset)`: which start it copies from, and the
offset, in bytes of the spelled request, of what comes next.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from typing import NamedTuple

from leveret.tools.automaton import ByteAutomaton
from leveret.tools.tool import Parameter
from leveret.tools.words import cut_points

Positions = tuple[tuple[int, int], ...]


class _Start(NamedTuple):
    offset: int
    """Where the copy begins to be spelled: at the word, or at the space before it."""
    ends: frozenset[int]
    """Where it may end."""
    last: int


_NEVER_FIRST = frozenset(",，、")
_NEVER_LAST = _NEVER_FIRST | frozenset(";:；：")
"""What stands between a value and the next words. A colon may begin a value: ":)" is a message."""


class RequestCopy:
    """All copies that one parameter can take from one request."""

    def __init__(
        self,
        query: str,
        parameter: Parameter,
        automaton: ByteAutomaton,
        *,
        spell: Callable[[str], str],
        max_bytes: int,
    ) -> None:
        """`spell`: the dialect's JSON spelling of characters; `automaton`: of the parameter's values, with quotes."""
        spellings = [spell(character).encode("utf-8", "replace") for character in query]
        self._text = b"".join(spellings)
        offsets = [0]
        for spelling in spellings:
            offsets.append(offsets[-1] + len(spelling))
        cuts = cut_points(query)
        words = [place for place, first in enumerate(query) if cuts[place] and first not in _NEVER_FIRST]
        words = [place for place in words if not query[place].isspace()]
        ends = [place + 1 for place, last in enumerate(query) if cuts[place + 1] and last not in _NEVER_LAST]
        end_offsets = [offsets[place] for place in ends if not query[place - 1].isspace()]
        unrestricted = parameter.free and parameter.min_length <= 1 and parameter.max_length is None
        self._starts: list[_Start] = []
        for place in words:
            spaced = parameter.free and place > 0 and query[place - 1] == " "
            first = offsets[place] - spaced
            near = end_offsets[bisect_right(end_offsets, offsets[place]) : bisect_right(end_offsets, first + max_bytes)]
            possible = frozenset(near) if unrestricted else self._fitting(automaton, first, frozenset(near))
            if possible:
                self._starts.append(_Start(first, possible, max(possible)))

    @property
    def beginning(self) -> Positions:
        """The positions just after the opening quote; empty when nothing can be copied."""
        return tuple((number, start.offset) for number, start in enumerate(self._starts))

    def steps(self, positions: Positions) -> dict[int, Positions]:
        """The bytes that go on with a copy, each with the positions after it."""
        steps: dict[int, list[tuple[int, int]]] = {}
        for piece, offset in positions:
            if offset < self._starts[piece].last:
                steps.setdefault(self._text[offset], []).append((piece, offset + 1))
        return {byte: tuple(following) for byte, following in steps.items()}

    def may_end(self, positions: Positions) -> bool:
        """True when what has been copied is a whole value."""
        return any(offset in self._starts[piece].ends for piece, offset in positions)

    def _fitting(self, automaton: ByteAutomaton, first: int, ends: frozenset[int]) -> frozenset[int]:
        """Those of `ends` at which the value's automaton lets the string close."""
        state: int | None = automaton.transitions[0].get(ord('"'))
        fitting = []
        for offset in range(first, max(ends, default=first)):
            state = automaton.transitions[state].get(self._text[offset]) if state is not None else None
            if state is None:
                break
            closed = automaton.transitions[state].get(ord('"'))
            if offset + 1 in ends and closed is not None and automaton.distance[closed] == 0:
                fitting.append(offset + 1)
        return frozenset(fitting)
