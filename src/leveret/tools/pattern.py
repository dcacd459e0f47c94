"""Regular expressions as trees: the part of the syntax that says exactly which strings fit, and nothing else.

A JSON Schema `pattern` must be two things at once: a test of finished values (Python's `re` does that) and a map of
what may come next while a model is still writing (`automaton.py` makes that from the tree). So only true regular
languages are taken: characters, classes, `.`, groups, `|`, `* + ? {m,n}`. Look-around, back-references and word
boundaries are refused by name. As in ECMA-262 without flags, `\\d \\w \\s` are ASCII and `.` is no line end.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from leveret.errors import ToolError

Ranges = tuple[tuple[int, int], ...]
MAX_CODE_POINT = 0x10FFFF


@dataclass(frozen=True)
class Characters:
    """One character out of sorted, disjoint ranges of code points (both ends included)."""

    ranges: Ranges


@dataclass(frozen=True)
class Joined:
    """One after the other; nothing at all when empty."""

    parts: tuple[Node, ...]


@dataclass(frozen=True)
class Choice:
    """Any one of these."""

    options: tuple[Node, ...]


@dataclass(frozen=True)
class Repeated:
    """`low` to `high` times; without end when `high` is None."""

    part: Node
    low: int
    high: int | None


Node = Characters | Joined | Choice | Repeated


def lengths(node: Node) -> tuple[int, float]:
    """The fewest and the most characters of what fits; the most may be infinite."""
    match node:
        case Characters():
            return 1, 1
        case Joined(parts):
            each = [lengths(part) for part in parts]
            return sum(low for low, _ in each), sum(high for _, high in each)
        case Choice(options):
            each = [lengths(option) for option in options]
            return min(low for low, _ in each), max(high for _, high in each)
        case Repeated(part, low, high):
            shortest, longest = lengths(part)
            times = math.inf if high is None else high
            return shortest * low, longest * times if longest and times else 0


_DIGIT: Ranges = ((0x30, 0x39),)
_WORD: Ranges = ((0x30, 0x39), (0x41, 0x5A), (0x5F, 0x5F), (0x61, 0x7A))
_SPACE: Ranges = ((0x09, 0x0D), (0x20, 0x20))
_LINE_ENDS: Ranges = ((0x0A, 0x0A), (0x0D, 0x0D), (0x2028, 0x2029))
_CLASSES = {"d": _DIGIT, "w": _WORD, "s": _SPACE}
_CONTROLS = {"n": 0x0A, "r": 0x0D, "t": 0x09, "f": 0x0C, "v": 0x0B, "0": 0x00}
_QUANTIFIER = re.compile(r"([*+?]|\{(\d+)(,(\d*))?\})\??")
_ANYTHING = r"[\s\S]*"


def parse_pattern(body: str) -> Node:
    """The tree of an expression without anchors. Raises ToolError for what is not supported."""
    node, position = _parse_choice(body, 0)
    if position < len(body):
        raise _unsupported(body, position, "an unmatched ')'")
    return node


def strip_anchors(pattern: str) -> str:
    """A JSON Schema pattern, which is searched for, as an expression that matches a whole string."""
    starts = pattern.startswith("^")
    ends = re.search(r"(?<!\\)(?:\\\\)*\$\Z", pattern) is not None
    body = pattern[starts : len(pattern) - ends]
    grouped = body.startswith("(?:") and _closing(body) == len(body) - 1
    if isinstance(parse_pattern(body), Choice) and (starts or ends) and not grouped:
        raise ToolError(f"pattern {pattern!r}: anchors beside a top-level '|' are ambiguous", hint="write ^(?:a|b)$")
    if starts and ends:
        return body[3:-1] if grouped else body
    return f"{'' if starts else _ANYTHING}(?:{body}){'' if ends else _ANYTHING}"


def literal(text: str) -> Node:
    """The tree that fits exactly this text."""
    return Joined(tuple(Characters(((ord(character), ord(character)),)) for character in text))


def complement(ranges: Ranges) -> Ranges:
    """All code points outside the ranges."""
    outside, next_free = [], 0
    for low, high in ranges:
        if low > next_free:
            outside.append((next_free, low - 1))
        next_free = high + 1
    if next_free <= MAX_CODE_POINT:
        outside.append((next_free, MAX_CODE_POINT))
    return tuple(outside)


def union(*several: Ranges) -> Ranges:
    """Sorted, disjoint ranges that cover all given ones."""
    merged: list[tuple[int, int]] = []
    for low, high in sorted(pair for ranges in several for pair in ranges):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return tuple(merged)


def _parse_choice(body: str, position: int) -> tuple[Node, int]:
    options: list[Node] = []
    while True:
        parts: list[Node] = []
        while position < len(body) and body[position] not in "|)":
            part, position = _parse_part(body, position)
            parts.append(part)
        options.append(parts[0] if len(parts) == 1 else Joined(tuple(parts)))
        if position >= len(body) or body[position] == ")":
            return (options[0] if len(options) == 1 else Choice(tuple(options))), position
        position += 1


def _parse_part(body: str, position: int) -> tuple[Node, int]:
    node, position = _parse_atom(body, position)
    found = _QUANTIFIER.match(body, position)
    if found is None:
        return node, position
    if found[2] is None:
        low, high = {"*": (0, None), "+": (1, None), "?": (0, 1)}[found[1]]
    else:
        low = int(found[2])
        high = low if found[3] is None else int(found[4]) if found[4] else None
    if (high is not None and high < low) or max(low, high or 0) > 1000:
        raise _unsupported(body, position, f"the repetition {found[0]}")
    if _QUANTIFIER.match(body, found.end()):
        raise _unsupported(body, found.end(), "a doubled quantifier")
    return Repeated(node, low, high), found.end()


def _parse_atom(body: str, position: int) -> tuple[Node, int]:
    character = body[position]
    if character == "(":
        start = position + (3 if body.startswith("(?:", position) else 1)
        if body.startswith("?", start):
            raise _unsupported(body, position, "look-around, names or flags in a group")
        node, end = _parse_choice(body, start)
        if end >= len(body):
            raise _unsupported(body, position, "an unmatched '('")
        return node, end + 1
    if character == "[":
        return _parse_class(body, position)
    if character == ".":
        return Characters(complement(_LINE_ENDS)), position + 1
    if character == "\\":
        ranges, end = _parse_escape(body, position)
        return Characters(ranges), end
    if character in "^$*+?{}":
        raise _unsupported(body, position, repr(character))
    return Characters(((ord(character), ord(character)),)), position + 1


def _parse_class(body: str, start: int) -> tuple[Node, int]:
    position = start + 1
    negated = body.startswith("^", position)
    position += negated
    ranges: Ranges = ()
    while position < len(body) and body[position] != "]":
        low, position = _class_member(body, position)
        if body.startswith("-", position) and body[position + 1 : position + 2] not in ("]", ""):
            high, position = _class_member(body, position + 1)
            if len(low) != 1 or len(high) != 1 or low[0][0] != low[0][1] or low[0][0] > high[0][0]:
                raise _unsupported(body, position, "a range that is none")
            low = ((low[0][0], high[0][1]),)
        ranges = union(ranges, low)
    if position >= len(body) or not ranges:
        raise _unsupported(body, start, "an empty or unclosed class")
    return Characters(complement(ranges) if negated else ranges), position + 1


def _class_member(body: str, position: int) -> tuple[Ranges, int]:
    if body[position] == "\\":
        return _parse_escape(body, position)
    return ((ord(body[position]), ord(body[position])),), position + 1


def _parse_escape(body: str, position: int) -> tuple[Ranges, int]:
    kind = body[position + 1 : position + 2]
    if kind and kind.lower() in _CLASSES:
        ranges = _CLASSES[kind.lower()]
        return (ranges if kind.islower() else complement(ranges)), position + 2
    if found := re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2}))").match(body, position):
        code = int(found[1] or found[2], 16)
        return ((code, code),), found.end()
    if kind in _CONTROLS:
        return ((_CONTROLS[kind], _CONTROLS[kind]),), position + 2
    if not kind or kind.isalnum():
        raise _unsupported(body, position, f"the escape \\{kind}")
    return ((ord(kind), ord(kind)),), position + 2


def _closing(body: str) -> int:
    """Where the group that opens at position 0 closes."""
    return _parse_choice(body, 3)[1]


def _unsupported(body: str, position: int, what: str) -> ToolError:
    return ToolError(
        f"pattern {body!r}: {what} at character {position} is not supported",
        hint="use characters, classes, groups, | and * + ? {m,n}; anchors only at both ends",
    )
