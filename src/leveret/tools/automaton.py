"""Byte automata: which bytes may come next inside a JSON value, and how far away its end is.

A tree of `pattern.py` speaks of characters, a tokenizer of bytes. Here each character becomes the UTF-8 bytes of its
JSON spelling (a quote is `\\"`, `<` is `\\u003c`, see functional.py), the tree becomes Thompson's non-deterministic
automaton, and that a deterministic one by the subset construction. States from which no value can be finished are
removed, so every path that exists leads to a valid value, and `distance` tells the fewest bytes to its end: following
falling distances closes a value that has become too long.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from leveret.errors import ToolError
from leveret.tools.pattern import Characters, Choice, Joined, Node, Ranges, Repeated

MAX_STATES = 20_000
_SAFE_RANGES: Ranges = ((0x20, 0x21), (0x23, 0x3B), (0x3D, 0x5B), (0x5D, 0xD7FF), (0xE000, 0x10FFFF))
"""Characters that are written as themselves: no control, quote, backslash, `<` or surrogate."""


@dataclass(frozen=True, eq=False)
class ByteAutomaton:
    """A deterministic automaton over bytes; state 0 is the start."""

    transitions: tuple[dict[int, int], ...]
    distance: tuple[int, ...]
    """Fewest bytes from each state to the end of a value; 0 where a value may end."""


def compile_value(tree: Node, *, quoted: bool) -> ByteAutomaton:
    """The automaton of a value's JSON spelling, with its quotes if `quoted`. ToolError when no value fits."""
    builder = _Builder()
    state = builder.join(0, [b'"']) if quoted else 0
    state = builder.add(tree, state)
    if quoted:
        state = builder.join(state, [b'"'])
    return _trim(*builder.determinize(state))


class _Builder:
    """Thompson's construction: every node adds states between a given start and a returned end."""

    def __init__(self) -> None:
        self.silent: list[list[int]] = [[]]
        self.edges: list[list[tuple[int, int, int]]] = [[]]
        """Per state: (lowest byte, highest byte, target)."""

    def new_state(self) -> int:
        self.silent.append([])
        self.edges.append([])
        if len(self.edges) > MAX_STATES * 10:
            raise ToolError("a pattern is too large", hint="use smaller repetitions")
        return len(self.edges) - 1

    def add(self, node: Node, start: int) -> int:
        match node:
            case Characters(ranges):
                return self._add_characters(ranges, start)
            case Joined(parts):
                for part in parts:
                    start = self.add(part, start)
                return start
            case Choice(options):
                ends = [self.add(option, self._fork(start)) for option in options]
                return self._meet(ends)
            case Repeated(part, low, high):
                return self._add_repeated(part, low, high, start)

    def join(self, start: int, spellings: list[bytes]) -> int:
        end = self.new_state()
        for spelling in spellings:
            self._add_path(start, [(byte, byte) for byte in spelling], end)
        return end

    def _add_characters(self, ranges: Ranges, start: int) -> int:
        end = self.new_state()
        for low, high in _intersect(ranges, _SAFE_RANGES):
            for path in utf8_paths(low, high):
                self._add_path(start, path, end)
        for spelling in _escapes(ranges):
            self._add_path(start, [(byte, byte) for byte in spelling], end)
        return end

    def _add_path(self, start: int, path: list[tuple[int, int]], end: int) -> None:
        for low, high in path[:-1]:
            middle = self.new_state()
            self.edges[start].append((low, high, middle))
            start = middle
        self.edges[start].append((*path[-1], end))

    def _add_repeated(self, part: Node, low: int, high: int | None, start: int) -> int:
        for _ in range(low):
            start = self.add(part, start)
        if high is None:
            loop = self._fork(start)
            self.silent[self.add(part, loop)].append(loop)
            return loop
        ends = [start]
        for _ in range(high - low):
            start = self.add(part, start)
            ends.append(start)
        return self._meet(ends)

    def _fork(self, start: int) -> int:
        state = self.new_state()
        self.silent[start].append(state)
        return state

    def _meet(self, ends: list[int]) -> int:
        meeting = self.new_state()
        for end in ends:
            self.silent[end].append(meeting)
        return meeting

    def determinize(self, final: int) -> tuple[list[dict[int, int]], set[int]]:
        """Subset construction: transitions and accepting states."""
        start = self._closure({0})
        numbers = {start: 0}
        transitions: list[dict[int, int]] = []
        waiting = deque([start])
        while waiting:
            subset = waiting.popleft()
            targets: dict[int, set[int]] = {}
            for state in subset:
                for low, high, target in self.edges[state]:
                    for byte in range(low, high + 1):
                        targets.setdefault(byte, set()).add(target)
            closures = {each: self._closure(each) for each in {frozenset(each) for each in targets.values()}}
            row = {}
            for byte, each in targets.items():
                reached = closures[frozenset(each)]
                if reached not in numbers:
                    numbers[reached] = len(numbers)
                    waiting.append(reached)
                row[byte] = numbers[reached]
            transitions.append(row)
            if len(numbers) > MAX_STATES:
                raise ToolError("a pattern is too large", hint="use smaller repetitions")
        return transitions, {number for subset, number in numbers.items() if final in subset}

    def _closure(self, states: set[int] | frozenset[int]) -> frozenset[int]:
        reached, waiting = set(states), list(states)
        while waiting:
            for state in self.silent[waiting.pop()]:
                if state not in reached:
                    reached.add(state)
                    waiting.append(state)
        return frozenset(reached)


def utf8_paths(low: int, high: int) -> Iterator[list[tuple[int, int]]]:
    """The UTF-8 encodings of code points low..high as sequences of byte ranges: [(0xE4, 0xE9), (0x80, 0xBF), ...]."""
    for first, last in ((0, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF)):
        if max(low, first) <= min(high, last):
            yield from _split(max(low, first), min(high, last), len(chr(last).encode()))


def _split(low: int, high: int, num_bytes: int) -> Iterator[list[tuple[int, int]]]:
    """Cut the range until each piece is a product of byte ranges: six bits a continuation byte."""
    for count in range(1, num_bytes):
        mask = (1 << (6 * count)) - 1
        if low & ~mask != high & ~mask:
            if low & mask:
                yield from _split(low, low | mask, num_bytes)
                yield from _split((low | mask) + 1, high, num_bytes)
                return
            if high & mask != mask:
                yield from _split(low, (high & ~mask) - 1, num_bytes)
                yield from _split(high & ~mask, high, num_bytes)
                return
    yield list(zip(chr(low).encode(), chr(high).encode(), strict=True))


def _escapes(ranges: Ranges) -> list[bytes]:
    """JSON spellings of the characters in `ranges` that are not written as themselves.

    Control characters only when asked for one by one: nobody means them by a class like `[^"]`.
    """
    singles = {low for low, high in ranges if low == high and low < 0x20}
    covered = {code for code in (0x22, 0x3C, 0x5C) if any(low <= code <= high for low, high in ranges)}
    return [b"\\u003c" if code == 0x3C else json.dumps(chr(code))[1:-1].encode() for code in sorted(singles | covered)]


def _intersect(left: Ranges, right: Ranges) -> Ranges:
    return tuple(
        (max(low, first), min(high, last))
        for low, high in left
        for first, last in right
        if max(low, first) <= min(high, last)
    )


def _trim(transitions: list[dict[int, int]], accepting: set[int]) -> ByteAutomaton:
    """Keep the states that lead to an end, numbered anew, with their distances."""
    sources: list[list[int]] = [[] for _ in transitions]
    for state, row in enumerate(transitions):
        for target in set(row.values()):
            sources[target].append(state)
    distance = dict.fromkeys(sorted(accepting), 0)
    waiting = deque(distance)
    while waiting:
        target = waiting.popleft()
        for state in sources[target]:
            if state not in distance:
                distance[state] = distance[target] + 1
                waiting.append(state)
    if 0 not in distance:
        raise ToolError("no value fits", hint="the pattern asks for characters that cannot be written")
    numbers = {state: number for number, state in enumerate(sorted(distance))}
    rows = tuple(
        {byte: numbers[target] for byte, target in transitions[state].items() if target in numbers} for state in numbers
    )
    return ByteAutomaton(rows, tuple(distance[state] for state in numbers))
