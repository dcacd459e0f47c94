"""Byte automata hold exactly the values that fit, as far as they go."""

from __future__ import annotations

import json
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leveret.errors import ToolError
from leveret.tools.automaton import ByteAutomaton, compile_value, utf8_paths
from leveret.tools.pattern import parse_pattern, strip_anchors
from leveret.tools.schema import Parameter
from leveret.tools.values import value_automaton


def accepts(automaton: ByteAutomaton, spelling: str) -> bool:
    state: int | None = 0
    for byte in spelling.encode():
        state = automaton.transitions[state].get(byte)
        if state is None:
            return False
    return automaton.distance[state] == 0


def random_spelling(automaton: ByteAutomaton, rng: random.Random, *, longest: int = 30) -> str:
    state, spelling = 0, bytearray()
    while automaton.distance[state] or (
        automaton.transitions[state] and rng.random() < 0.8 and len(spelling) < longest
    ):
        row = automaton.transitions[state]
        if len(spelling) >= longest:
            row = {byte: to for byte, to in row.items() if automaton.distance[to] < automaton.distance[state]}
        byte = rng.choice(list(row))
        spelling.append(byte)
        state = row[byte]
    return spelling.decode()


@settings(max_examples=60, deadline=None)
@given(st.integers(-3000, 3000), st.integers(-3000, 3000), st.lists(st.integers(-3100, 3100), max_size=20))
def test_integers_stay_in_their_range(first: int, second: int, values: list[int]) -> None:
    low, high = sorted((first, second))
    automaton = value_automaton(Parameter(name="x", type="integer", minimum=low, maximum=high), longest_bytes=99)
    for value in [low - 1, low, high, high + 1, *values]:
        assert accepts(automaton, str(value)) == (low <= value <= high)
    assert not accepts(automaton, "00") and not accepts(automaton, "-0") and not accepts(automaton, "")


@pytest.mark.parametrize(
    ("minimum", "maximum"), [(None, None), (0, None), (None, -3), (-2.5, 2.5), (0.2, 0.8), (-0.8, -0.2), (1e16, None)]
)
@pytest.mark.parametrize("kind", ["number", "integer"])
def test_numbers_stay_in_their_range(kind: str, minimum: float | None, maximum: float | None) -> None:
    parameter = Parameter(name="x", type=kind, minimum=minimum, maximum=maximum)
    if kind == "integer" and minimum in (0.2, -0.8):
        with pytest.raises(ToolError, match="no value fits"):
            value_automaton(parameter, longest_bytes=99)
        return
    automaton = value_automaton(parameter, longest_bytes=99)
    rng = random.Random(0)
    for _ in range(50):
        assert parameter.problem(json.loads(random_spelling(automaton, rng))) is None


PATTERNS = [
    r"[A-Z]{2}(-[0-9]+)?",
    r"\d{3,4}[ -]?\d+|[^\x00-\x7f]*",
    r'["\\<é]+.\w\S?',
    "(?:a|b)*c{0,2}",
    "[一-龥]{1,3}",
    r"\u4e2d\.\t",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_what_a_pattern_automaton_spells_matches_the_pattern(pattern: str) -> None:
    automaton = compile_value(parse_pattern(pattern), quoted=True)
    rng = random.Random(1)
    for _ in range(40):
        value = json.loads(random_spelling(automaton, rng))
        assert re.fullmatch(pattern, value, re.ASCII), value


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet='ab-09 é中"\\<', max_size=6))
def test_a_pattern_automaton_takes_what_the_pattern_matches(text: str) -> None:
    spelled = json.dumps(text, ensure_ascii=False).replace("<", "\\u003c")
    for pattern in ["[ab]*-?[0-9]*", r'[^0-9]+"?', "a?.{2,4}"]:
        automaton = compile_value(parse_pattern(pattern), quoted=True)
        assert accepts(automaton, spelled) == bool(re.fullmatch(pattern, text, re.ASCII))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 0x10FFFF), st.integers(0, 0x10FFFF), st.characters(exclude_categories=["Cs"]))
def test_utf8_paths_hold_exactly_the_encodings_of_a_range(first: int, second: int, character: str) -> None:
    low, high = sorted((first, second))
    encoded = character.encode()
    hits = [
        path
        for path in utf8_paths(low, high)
        if len(path) == len(encoded) and all(a <= byte <= b for (a, b), byte in zip(path, encoded, strict=True))
    ]
    assert len(hits) == (low <= ord(character) <= high)


def test_text_may_begin_with_the_one_space_that_is_no_part_of_it() -> None:
    automaton = value_automaton(Parameter(name="x", type="string", min_length=1), longest_bytes=99)
    assert accepts(automaton, '"a"') and accepts(automaton, '" a"') and accepts(automaton, '"  "')
    assert not accepts(automaton, '""') and not accepts(automaton, '" "')


def test_a_pattern_without_anchors_is_searched_for() -> None:
    assert re.fullmatch(strip_anchors("ab"), "xxabxx") and re.fullmatch(strip_anchors("^ab"), "abx")
    assert strip_anchors("^(?:a|b)$") == "a|b"
    with pytest.raises(ToolError, match="ambiguous"):
        strip_anchors("^a|b$")


@pytest.mark.parametrize(
    "pattern", ["(a", "a)", "[", "a**", "a{3,2}", r"\b", r"\1", "(?=a)", "^a", "x{99999}", "[z-a]"]
)
def test_patterns_beyond_the_subset_are_refused(pattern: str) -> None:
    with pytest.raises(ToolError, match="not supported"):
        parse_pattern(pattern)


def test_too_large_a_pattern_is_refused() -> None:
    with pytest.raises(ToolError, match="too large"):
        compile_value(parse_pattern("(.{900}){900}"), quoted=True)
