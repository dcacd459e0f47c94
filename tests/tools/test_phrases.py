"""The pattern language, its mistakes, and the drawing of texts by rules."""

from __future__ import annotations

import random

import pytest

from leveret.errors import ToolError
from leveret.tools.phrase_rules import PhraseRules, pick, skeleton, wording
from leveret.tools.phrases import Choice, Slot, parse_pattern


def texts(line: str, **rules: list[str]) -> set[str]:
    """Everything that 500 draws of a pattern without slots say."""
    book, rng = PhraseRules(rules, source="book"), random.Random(0)
    return {book.text(parse_pattern(line), rng) for _ in range(500)}


def test_choices_nest_and_may_be_empty() -> None:
    assert texts("(please |)(call|ring( up|)) now") == {
        f"{polite}{verb} now" for polite in ("please ", "") for verb in ("call", "ring", "ring up")
    }


def test_rules_are_drawn_from_and_may_use_other_rules() -> None:
    assert texts("<hey>, go", hey=["hi", "hello <name>"], name=["Ann", "Bo"]) == {
        "hi, go",
        "hello Ann, go",
        "hello Bo, go",
    }


def test_plain_rules_are_taken_letter_by_letter() -> None:
    book = PhraseRules({"all": ["<span>!"]}, source="book", plain={"span": ["if (a | b) => {c}"]})
    assert book.text(parse_pattern("<all>"), random.Random(0)) == "if (a | b) => {c}!"


def test_each_option_of_a_choice_is_as_likely_as_another() -> None:
    rng = random.Random(1)
    counts = {letter: 0 for letter in "abc"}
    for _ in range(9000):
        counts[pick("abc", rng)] += 1
    assert all(2800 < count < 3200 for count in counts.values())


def test_slots_come_out_as_pieces_of_their_own() -> None:
    rules = PhraseRules({}, source="book")
    pattern = parse_pattern("tell {name} {text:message}")
    pieces = rules.pieces(pattern.nodes, random.Random(0), lambda slot: f"<{slot.argument}:{slot.kind}>")
    assert [piece.text for piece in pieces] == ["tell ", "<name:None>", " ", "<text:message>"]
    assert [piece.slot is not None for piece in pieces] == [False, True, False, True]


def test_a_wording_has_its_own_choices_made_and_its_rules_not() -> None:
    nodes, rng = parse_pattern("<hey>(call|ring( up|)) {name}<bye>").nodes, random.Random(0)
    assert {skeleton(wording(nodes, rng)) for _ in range(100)} == {
        "<hey>call {name}<bye>",
        "<hey>ring {name}<bye>",
        "<hey>ring up {name}<bye>",
    }
    assert skeleton(parse_pattern("text {name} {text:message}").nodes) == "text {name} {text}"
    assert skeleton(nodes) == "<hey>(...) {name}<bye>"


def test_what_follows_the_arrow_is_fixed() -> None:
    pattern = parse_pattern("lights out => setting=flashlight; on=false")
    assert pattern.fixed == {"setting": "flashlight", "on": "false"}
    assert pattern.nodes == ("lights out",)


def test_the_ways_through_a_pattern_name_the_arguments_they_fill() -> None:
    pattern = parse_pattern("({a}|x {b} {a}|) {c}")
    assert pattern.ways == {("a", "c"), ("b", "a", "c"), ("c",)}
    assert [slot.argument for slot in pattern.slots] == ["a", "b", "a", "c"]
    assert isinstance(pattern.nodes[0], Choice) and pattern.nodes[-1] == Slot(argument="c", kind=None)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("call (him", "an opening ( is never closed"),
        ("call him)", "')' without an opening ("),
        ("yes | no", "'|' without an opening ("),
        ("call {Name}", "cannot read '{Name}' at column 6"),
        ("call <some one>", "cannot read '<some one>'"),
        ("call => now", "'now' after => is not of the form argument=value"),
    ],
)
def test_mistakes_show_the_line_and_where_it_stands(line: str, said: str) -> None:
    with pytest.raises(ToolError) as caught:
        parse_pattern(line, source="book.yaml: tool x")
    assert str(caught.value).startswith("book.yaml: tool x: ")
    assert said in str(caught.value)
    assert line in str(caught.value) or line.partition(" =>")[0] in str(caught.value)


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"a": ["x <b>"]}, "book: rule a: there is no rule <b>, used in: x <b>"),
        ({"a": []} | {"b": ["<a>"]}, "there is no rule <a>"),
        ({"a": ["call {name}"]}, "contains the slot {name}"),
        ({"a": ["off => on=false"]}, "contains =>"),
        ({"a": ["<b>"], "b": ["(c|<a>)"]}, "round in a circle: <a> -> <b> -> <a>"),
    ],
)
def test_rules_that_cannot_be_drawn_are_refused(rules: dict[str, list[str]], said: str) -> None:
    with pytest.raises(ToolError) as caught:
        PhraseRules(rules, source="book")
    assert said in str(caught.value)
