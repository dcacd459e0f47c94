"""The values of a parameter as an expression tree, so that writing one byte by byte can never leave its type.

Numbers are trees too: "an integer from 0 to 100" is `[0-9] | [1-9][0-9] | 100`. The tree may leave out values that
`Parameter.problem` would take (integers beyond 15 digits, fractions beyond 6, exponents, most control characters) but
never holds one that it would refuse.
"""

from __future__ import annotations

import json
import math

from leveret.tools.automaton import ByteAutomaton, compile_value
from leveret.tools.pattern import (
    MAX_CODE_POINT,
    Characters,
    Choice,
    Joined,
    Node,
    Ranges,
    Repeated,
    literal,
    parse_pattern,
)
from leveret.tools.tool import Parameter

_MAX_DIGITS = 15
_FRACTION_DIGITS = 6
_DIGIT = Characters(((0x30, 0x39),))
_FRACTION = Joined((literal("."), Repeated(_DIGIT, 1, _FRACTION_DIGITS)))


def value_automaton(parameter: Parameter, *, longest_bytes: int) -> ByteAutomaton:
    """The byte automaton of the JSON spellings of a parameter's values.

    `longest_bytes`: the caller closes strings before they are longer than this, so a looser `max_length` needs no care.
    """
    if parameter.type == "boolean":
        return compile_value(Choice((literal("true"), literal("false"))), quoted=False)
    if parameter.type == "integer":
        return compile_value(Choice(tuple(_integers(parameter.minimum, parameter.maximum))), quoted=False)
    if parameter.type == "number":
        return compile_value(Choice(tuple(_numbers(parameter.minimum, parameter.maximum))), quoted=False)
    words = tuple(literal(choice) for choice in parameter.choices)
    if parameter.type == "enum":
        return compile_value(Choice(words), quoted=True)
    if parameter.body is not None:
        return compile_value(Choice((parse_pattern(parameter.body), *words)), quoted=True)
    loose = parameter.max_length is None or parameter.max_length >= longest_bytes
    return compile_value(_text(parameter.min_length, None if loose else parameter.max_length), quoted=True)


def _text(shortest: int, longest: int | None) -> Node:
    """Free text, perhaps after the one space that is no part of it; so text without it begins with no space."""
    breaks: Ranges = ((0x0A, 0x0A),)
    character = Choice((Characters(((0x20, MAX_CODE_POINT),)), Characters(breaks)))
    first = Choice((Characters(((0x21, MAX_CODE_POINT),)), Characters(breaks)))
    rest = None if longest is None else longest - 1
    spaced = Joined((literal(" "), Repeated(character, shortest, longest)))
    options: list[Node] = [spaced]
    if longest != 0:
        options.append(Joined((first, Repeated(character, max(shortest - 1, 0), rest))))
    if shortest == 0:
        options.append(Joined(()))
    return Choice(tuple(options))


def _integers(minimum: float | None, maximum: float | None) -> list[Node]:
    low = None if minimum is None else math.ceil(minimum)
    high = None if maximum is None else math.floor(maximum)
    positive = _naturals(max(low or 0, 0), high)
    if low is not None and low >= 0:
        return positive
    negative = _naturals(max(-high, 1) if high is not None else 1, None if low is None else -low)
    return positive + [Joined((literal("-"), magnitude)) for magnitude in negative]


def _numbers(minimum: float | None, maximum: float | None) -> list[Node]:
    """The integers, and each whole part whose every fraction is in the range; if there are none, the minimum itself."""
    options = _integers(minimum, maximum)
    below = None if maximum is None else math.floor(maximum) - 1
    options += [Joined((whole, _FRACTION)) for whole in _naturals(max(math.ceil(minimum or 0), 0), below)]
    if minimum is None or minimum < 0:
        nearest = max(math.ceil(-maximum), 0) if maximum is not None else 0
        farthest = None if minimum is None else math.floor(-minimum) - 1
        options += [Joined((literal("-"), whole, _FRACTION)) for whole in _naturals(nearest, farthest)]
    return options or [literal(json.dumps(minimum))]


def _naturals(low: int, high: int | None) -> list[Node]:
    """The integers low..high, low >= 0, without leading zeros: one option for each number of digits; [] when none."""
    last = high if high is not None else max(10**_MAX_DIGITS - 1, low * 10)
    options = []
    for num_digits in range(len(str(low)), len(str(max(last, 0))) + 1):
        first = max(low, 10 ** (num_digits - 1) if num_digits > 1 else 0)
        if first <= min(last, 10**num_digits - 1):
            options.append(_same_length(str(first), str(min(last, 10**num_digits - 1))))
    return options


def _same_length(low: str, high: str) -> Node:
    """The digit strings between two of the same length: low first digit, free middle ones, high first digit."""
    if not low:
        return Joined(())
    if set(low) == {"0"} and set(high) == {"9"}:
        return Repeated(_DIGIT, len(low), len(low))
    if low[0] == high[0]:
        return Joined((literal(low[0]), _same_length(low[1:], high[1:])))
    rest = len(low) - 1
    options: list[Node] = [Joined((literal(low[0]), _same_length(low[1:], "9" * rest)))]
    if ord(high[0]) - ord(low[0]) > 1:
        middle = Characters(((ord(low[0]) + 1, ord(high[0]) - 1),))
        options.append(Joined((middle, Repeated(_DIGIT, rest, rest))))
    options.append(Joined((literal(high[0]), _same_length("0" * rest, high[1:]))))
    return Choice(tuple(options))
