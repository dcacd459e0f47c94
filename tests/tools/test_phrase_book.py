"""Phrase books: what is held out, what is drawn, and every mistake shown with its line."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import pytest

from leveret.errors import ConfigError, ToolError
from leveret.tools.made_up import common_han_characters, made_up_rules
from leveret.tools.phrase_book import PhraseBook
from leveret.tools.phrase_rules import skeleton
from leveret.tools.schema import ToolSet
from leveret.tools.wordings import is_held_out, words_of

RECIPE = Path(__file__).parents[2] / "recipes" / "phone"
PLAIN = made_up_rules(0, ["a stretch of text"], count=300)

SMALL: dict[str, Any] = {
    "language": "en",
    "slots": {"call_contact.name": "person", "on": "switch", "minutes": "minutes"},
    "rules": {"p": ["", "please "]},
    "values": {"person": [f"Person {letter}" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"]},
    "surfaces": {"switch": {"true": ["on"], "false": ["off"]}, "setting": {"wifi": ["wifi", "wi-fi"]}},
    "tools": {
        "call_contact": [f"<p>call {{name}}{ending}" for ending in ("", " now", " up", "!", " today", " soon")],
        "toggle_setting": [f"turn {{on}} {{setting}}{ending}" for ending in ("", " now", "!", " please")],
    },
    "irrelevant": ["tell me a joke", "who is {someone:person}"],
    "connectors": [" and "],
}


def book(phone: ToolSet, **changes: Any) -> PhraseBook:
    return PhraseBook({**copy.deepcopy(SMALL), **changes}, phone, source="book.yaml")


def test_held_out_values_are_about_an_eighth_and_never_drawn_for_training(phone: ToolSet) -> None:
    small, rng = book(phone), random.Random(0)
    train = {small.draw_value("person", rng, held_out=False).surface for _ in range(600)}
    held_out = {small.draw_value("person", rng, held_out=True).surface for _ in range(600)}
    assert not train & held_out
    assert train | held_out == set(SMALL["values"]["person"])
    assert 1 <= len(held_out) <= 7
    assert sum(is_held_out(str(number), 12) for number in range(10_000)) == pytest.approx(1200, abs=120)


def test_closed_sets_are_in_both_splits_and_say_their_value(phone: ToolSet) -> None:
    small, rng = book(phone), random.Random(0)
    for held_out in (False, True):
        drawn = [small.draw_value("switch", rng, held_out=held_out) for _ in range(50)]
        assert {(one.surface, one.value, one.verbatim) for one in drawn} == {
            ("on", "true", False),
            ("off", "false", False),
        }


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tool": {}}, "unknown section 'tool'"),
        ({"language": "fr"}, "language 'fr' is not one of en, zh"),
        ({"language": None}, "language None"),
        ({"language": ["en"]}, "language ['en'] is not one of"),
        ({"connectors": " and "}, "connectors: must be a list of lines, not ' and '"),
        ({"connectors": []}, "connectors has no line"),
        ({"list_connectors": None}, "list_connectors: must be a list of lines"),
        ({"slots": {"call_contact.name": ["person"]}}, "slots: ['person'] is not text"),
        ({"slots": {"call_contcat.name": "person"}}, "which no tool has\nhint: did you mean 'call_contact.name'?"),
        ({"tools": {"fly": ["fly"]}}, "there is no tool 'fly'"),
        ({"tools": {"call_contact": ["call {nam:person}"]}}, "has no argument 'nam', used in: call {nam:person}"),
        ({"tools": {"call_contact": ["call => who=Ann"]}}, "has no argument 'who', used in: call => who=Ann"),
        ({"tools": {"call_contact": ["call"]}}, "nothing fills the required argument 'name' in: call"),
        (
            {"tools": {"call_contact": ["call( {name}|)"]}},
            "nothing fills the required argument 'name' in: call( {name}|)",
        ),
        ({"tools": {"call_contact": ["{name}, call {name}"]}}, "'name' is filled twice in: {name}, call {name}"),
        ({"tools": {"call_contact": ["call {name:animal}"]}}, "no values of kind 'animal', needed by {name}"),
        ({"tools": {"call_contact": [7]}}, "tool call_contact: 7 is not text"),
        ({"tools": {"call_contact": "call {name}"}}, "must be a list of lines"),
        ({"tools": {"set_volume": ["mute => level=off"]}}, "mute => level=off: level must be an integer"),
        ({"tools": {"set_volume": ["loud => level=101"]}}, "level is out of range: 101"),
        ({"tools": {"toggle_setting": ["{setting} => on=maybe"]}}, "on must be true or false"),
        ({"surfaces": {"switch": {"yes": ["on"]}, "setting": {"wifi": ["wifi"]}}}, "on must be true or false"),
        ({"surfaces": {"switch": {True: ["on"]}}}, "in quotes"),
        ({"values": {"person": ["Ann {x}"]}}, "contains the slot {x}"),
        ({"irrelevant": ["who is {someone}"]}, "no values of kind 'someone', needed by {someone} of irrelevant"),
        ({"rules": {}}, "there is no rule <p>, used in: <p>call {name}"),
        ({"continuations": {"fly": {"after": [], "say": []}}}, "names a tool that has no patterns under tools"),
        ({"continuations": {"call_contact": ["{name}"]}}, "must be {after: [tools], say: [lines]}"),
        ({"continuations": {"call_contact": {"after": ["fly"], "say": ["{name}"]}}}, "there is no tool 'fly'"),
        ({"continuations": {"call_contact": {"after": ["toggle_setting"], "say": ["again"]}}}, "nothing fills 'name'"),
        ({"continuations": {"call_contact": {"after": ["call_contact"], "say": ["{on}"]}}}, "has no argument 'on'"),
    ],
)
def test_mistakes_are_found_on_reading_and_show_the_line(phone: ToolSet, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ToolError) as caught:
        book(phone, **changes)
    assert str(caught.value).startswith("book.yaml: ")
    assert said in str(caught.value)


def test_a_file_is_named_in_its_mistakes(phone: ToolSet, tmp_path: Path) -> None:
    file = tmp_path / "phrases.yaml"
    file.write_text("language: en\ntools:\n  call_contact: ['call {name']\n")
    with pytest.raises(ToolError, match=r"phrases\.yaml: tool call_contact: cannot read '\{name'"):
        PhraseBook.load(file, phone)
    file.write_text("language: en\nlanguage: zh\n")
    with pytest.raises(ConfigError, match=r"phrases\.yaml:2"):
        PhraseBook.load(file, phone)


def test_too_few_values_to_split_are_said_so(phone: ToolSet) -> None:
    name = next(name for name in SMALL["values"]["person"] if not is_held_out(f"person: {name.lower()}", 12))
    lonely = book(phone, values={"person": [name]})
    assert lonely.draw_value("person", random.Random(0), held_out=False).surface == name
    with pytest.raises(ToolError, match="values of kind 'person' are too few to have a held-out part"):
        lonely.draw_value("person", random.Random(0), held_out=True)


@pytest.fixture(scope="module", params=["en", "zh"])
def phone_book(request: pytest.FixtureRequest, phone: ToolSet) -> PhraseBook:
    return PhraseBook.load(RECIPE / f"phrases.{request.param}.yaml", phone, plain_rules=PLAIN)


def test_every_tool_of_the_phone_has_many_wordings_in_both_splits(phone_book: PhraseBook, phone: ToolSet) -> None:
    assert set(phone_book.tools) == set(phone.names)
    for wordings in phone_book.wordings.values():
        splits = []
        for side in (False, True):
            rng = random.Random(0)
            drawn = [wordings.draw(rng, held_out=side) for _ in range(100)]
            splits.append({skeleton(one[1]) for one in drawn if one is not None})
        train, held_out = splits
        assert len(held_out) >= 4 and len(train) >= 30 and not train & held_out


def test_every_pattern_can_be_drawn_whichever_choices_are_taken(phone_book: PhraseBook) -> None:
    rng = random.Random(0)
    for tool, patterns in ((None, phone_book.irrelevant), *phone_book.tools.items()):
        for pattern in patterns:
            for held_out in (False, True):
                pieces = phone_book.rules.pieces(
                    pattern.nodes,
                    rng,
                    lambda slot, tool=tool, held_out=held_out: (
                        phone_book.draw_value(phone_book.kind_of(tool, slot), rng, held_out=held_out).surface
                    ),
                )
                text = "".join(piece.text for piece in pieces)
                assert text.strip(), pattern.text
                assert not set("<>{}|") & set(text), f"{pattern.text} gives {text}"


def test_made_up_values_are_many_and_the_characters_common() -> None:
    rules = made_up_rules(3, ["def f(x): return the value", "1 2 3"])
    assert rules["span"] == ["def return the value"] or rules["span"] == ["return the value"]
    assert len(set(rules["made_up_name"])) > 2500 and len(set(rules["han_words"])) > 3500
    assert made_up_rules(3) == made_up_rules(3) != made_up_rules(4)
    assert len(common_han_characters()) == 3755  # as many as level 1 of GB 2312 has
    assert set("的一是了我") <= set(common_han_characters())


def test_a_spoken_value_is_held_out_only_if_training_has_its_words(phone_book: PhraseBook) -> None:
    rng = random.Random(0)
    for kind in ("time", "minutes", "date"):
        trained, tested = (
            {phone_book.draw_value(kind, rng, held_out=side).surface for _ in range(3000)} for side in (False, True)
        )
        known = {word for surface in trained for word in words_of(surface)}
        assert tested and not tested & trained
        assert {word for surface in tested for word in words_of(surface) if not word.isdigit()} <= known


def test_a_lesson_is_more_often_worked_out_and_never_held_out(phone_book: PhraseBook) -> None:
    rng = random.Random(1)
    for kind in ("time", "minutes"):
        plain = [phone_book.draw_value(kind, rng, held_out=False) for _ in range(6000)]
        lessons = [phone_book.draw_lesson(kind, rng) for _ in range(6000)]
        tested = {phone_book.draw_value(kind, rng, held_out=True).surface for _ in range(3000)}
        often, seldom = (sum(one.calculated for one in drawn) for drawn in (lessons, plain))
        assert 2 * seldom < often < 7 * seldom  # four draws; of few, the two counts scatter
        assert not tested & {one.surface for one in lessons}


def test_a_lesson_in_copying_is_one_draw(phone: ToolSet) -> None:
    small = book(phone)
    drawn = [small.draw_lesson("person", random.Random(seed)) for seed in range(40)]
    assert drawn == [small.draw_value("person", random.Random(seed), held_out=False) for seed in range(40)]
