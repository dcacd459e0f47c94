"""Generated requests: their calls fit the tools, copied values stand in them, and evaluation stays apart."""

from __future__ import annotations

import random
import re
from itertools import pairwise
from pathlib import Path

import pytest

from leveret.errors import ToolError
from leveret.tools.generator import Kind, RequestGenerator
from leveret.tools.made_up import made_up_rules
from leveret.tools.phrase_book import PhraseBook
from leveret.tools.phrase_rules import skeleton
from leveret.tools.requests import ToolRequest
from leveret.tools.schema import ToolSet
from leveret.tools.wordings import is_held_out

RECIPE = Path(__file__).parents[2] / "recipes" / "phone"
PLAIN = made_up_rules(0, ["the quick hare", "runs over the hill", "on a summer day"], count=2000)
KINDS: tuple[Kind, ...] = ("single", "combined", "irrelevant")
DRAWS = 1200


@pytest.fixture(scope="module", params=["en", "zh"])
def generator(request: pytest.FixtureRequest, phone: ToolSet) -> RequestGenerator:
    book = PhraseBook.load(RECIPE / f"phrases.{request.param}.yaml", phone, plain_rules=PLAIN)
    return RequestGenerator(book, phone, seed=0)


@pytest.fixture(scope="module")
def drawn(generator: RequestGenerator) -> dict[tuple[Kind, bool], list[ToolRequest]]:
    return {
        (kind, held_out): [generator.draw(kind, index, held_out=held_out) for index in range(DRAWS)]
        for kind in KINDS
        for held_out in (False, True)
    }


Drawn = dict[tuple[Kind, bool], list[ToolRequest]]


def test_every_call_fits_its_tool(drawn: Drawn, phone: ToolSet) -> None:
    for requests in drawn.values():
        for request in requests:
            for call in request.calls:
                assert phone.get(call.name).validate(call.arguments) == call.arguments, request


def test_copied_values_stand_in_the_request_letter_by_letter(drawn: Drawn, phone: ToolSet) -> None:
    num_copied = 0
    for requests in drawn.values():
        for request in requests:
            for call in request.calls:
                for parameter in phone.get(call.name).parameters:
                    if parameter.extractive and parameter.name in call.arguments:
                        num_copied += 1
                        assert str(call.arguments[parameter.name]) in request.query
    assert num_copied > 2000


def test_the_number_of_calls_is_that_of_the_kind_and_every_tool_is_covered(drawn: Drawn, phone: ToolSet) -> None:
    for (kind, held_out), requests in drawn.items():
        numbers = {len(request.calls) for request in requests}
        assert numbers == {"single": {1}, "combined": {2, 3}, "irrelevant": {0}}[kind]
        names = [call.name for request in requests for call in request.calls]
        if kind != "irrelevant":
            assert set(names) == set(phone.names)
        if kind == "single" and held_out:
            assert {names.count(name) for name in phone.names} == {DRAWS // len(phone)}


def test_training_sees_each_tool_as_often_as_its_share_says(generator: RequestGenerator, phone: ToolSet) -> None:
    shares = generator.book.shares
    assert set(shares) == set(phone.names) and len(set(shares.values())) > 1
    rounds = 3
    drawn = [generator.draw("single", index, held_out=False) for index in range(rounds * sum(shares.values()))]
    names = [request.calls[0].name for request in drawn]
    assert {name: names.count(name) for name in phone.names} == {name: rounds * n for name, n in shares.items()}


def test_optional_arguments_and_every_choice_of_a_closed_set_occur(drawn: Drawn, phone: ToolSet) -> None:
    calls = [call for request in drawn["single", False] for call in request.calls]
    for tool in phone:
        of_tool = [call.arguments for call in calls if call.name == tool.name]
        for parameter in tool.parameters:
            values = {arguments.get(parameter.name) for arguments in of_tool}
            assert set(parameter.choices) <= values, f"{tool.name}.{parameter.name}"
            assert parameter.type != "boolean" or {True, False} <= values
            assert parameter.required or None in values


def test_the_same_index_gives_the_same_request_and_another_seed_others(
    generator: RequestGenerator, phone: ToolSet
) -> None:
    again = RequestGenerator(generator.book, phone, seed=0)
    other = RequestGenerator(generator.book, phone, seed=1)
    same = [generator.draw("combined", index, held_out=False) for index in range(50)]
    assert [again.draw("combined", index, held_out=False) for index in reversed(range(50))] == same[::-1]
    assert sum(other.draw("combined", index, held_out=False) == same[index] for index in range(50)) < 3


def test_open_values_of_evaluation_are_never_trained_on(
    drawn: Drawn, generator: RequestGenerator, phone: ToolSet
) -> None:
    """By value and argument; times and the like by their words, which test_phrase_book checks."""

    def values(held_out: bool) -> set[tuple[str, str, str]]:
        return {
            (call.name, parameter.name, str(call.arguments[parameter.name]).lower())
            for kind in KINDS
            for request in drawn[kind, held_out]
            for call in request.calls
            for parameter in phone.get(call.name).parameters
            if parameter.extractive and parameter.name in call.arguments
        }

    assert not values(True) & values(False)
    assert len(values(True)) > 500


def test_wordings_of_evaluation_are_never_trained_on(generator: RequestGenerator) -> None:
    book, rng = generator.book, random.Random(0)
    for wordings in book.wordings.values():
        split = []
        for held_out in (False, True):
            drawn = [wordings.draw(rng, held_out=held_out) for _ in range(60)]
            split.append({skeleton(one[1]) for one in drawn if one is not None})
        assert not split[0] & split[1] and all(split)


def test_two_numbers_never_run_into_each_other(drawn: Drawn) -> None:
    for requests in drawn.values():
        for request in requests:
            assert not re.search(r"\d{4}-\d\d-\d\d\d", request.query), request.query


def test_requests_are_typed_in_several_ways(drawn: Drawn, generator: RequestGenerator) -> None:
    queries = [request.query for request in drawn["single", False]]
    assert all(query == query.strip() and query for query in queries)
    assert len(set(queries)) > 0.95 * len(queries)
    if generator.book.language == "en":
        assert 0.2 < sum(query == query.lower() for query in queries) / len(queries) < 0.8
    marked = sum(query[-1] in ".!?。！？~" for query in queries) / len(queries)
    assert 0.15 < marked < 0.6


_WORDS = ("now", "please", "then", "first", "again", "today", "quickly", "soon")
ENDINGS = [f" {one} {other}" for one in _WORDS for other in _WORDS if one != other]
"""Of wordings, enough for both splits."""


def small_book(phone: ToolSet, **changes: object) -> PhraseBook:
    data = {"language": "en", "values": {"name": ["Ann", "Bo", "Cy", "Di"]}, "tools": {"call_contact": ["call {name}"]}}
    return PhraseBook({**data, **changes}, phone, source="book.yaml")


def test_a_tool_with_one_wording_cannot_be_split(phone: ToolSet) -> None:
    with pytest.raises(ToolError, match=r"book\.yaml: tool call_contact has no (training|held-out) wording"):
        RequestGenerator(small_book(phone), phone, seed=0)


def test_kinds_without_patterns_are_refused_with_the_reason(phone: ToolSet) -> None:
    book = small_book(phone, tools={"call_contact": ["call {name}", "please call {name}"]})
    generator = RequestGenerator(book, phone, seed=0)
    assert generator.kinds == ("single",)
    for kind in ("combined", "irrelevant"):
        with pytest.raises(ToolError, match=rf"book\.yaml: no {kind} requests can be made"):
            generator.draw(kind, 0, held_out=False)


def test_two_tools_are_enough_for_combined_requests(phone: ToolSet) -> None:
    tools = {"call_contact": ["call {name}", "please call {name}"], "open_app": ["open {name}", "start {name}"]}
    names = [f"Name{number}" for number in range(40)]
    assert any(is_held_out(f"name: {name.lower()}", 12) for name in names)
    generator = RequestGenerator(small_book(phone, tools=tools, values={"name": names}), phone, seed=0)
    for index in range(30):
        assert len(generator.draw("combined", index, held_out=False).calls) == 2


def test_a_tool_is_asked_for_once_more_but_never_for_the_same_call(drawn: Drawn) -> None:
    for held_out, least, most in ((False, 0.04, 0.3), (True, 0, 0)):
        pairs = [pair for request in drawn["combined", held_out] for pair in pairwise(request.calls)]
        assert least <= sum(one.name == other.name for one, other in pairs) / len(pairs) <= most
    for request in drawn["combined", False]:
        assert all(call not in request.calls[:place] for place, call in enumerate(request.calls)), request


def test_a_part_that_leans_on_the_one_before_takes_over_what_it_leaves_out(phone: ToolSet) -> None:
    book = PhraseBook(
        {
            "language": "en",
            "slots": {"on": "switch"},
            "values": {"name": [f"App {letter}" for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"]},
            "surfaces": {
                "setting": {"wifi": ["wifi"], "bluetooth": ["bluetooth"]},
                "switch": {"true": ["on"], "false": ["off"]},
            },
            "tools": {
                "toggle_setting": [f"turn {{on}} {{setting}}{end}" for end in ENDINGS],
                "open_app": [f"open {{name}}{end}" for end in ENDINGS],
            },
            "connectors": [", "],
            "continuations": {
                "toggle_setting": {"after": ["toggle_setting"], "say": [f"so the {{setting}}{end}" for end in ENDINGS]}
            },
        },
        phone,
        source="book.yaml",
    )
    generator = RequestGenerator(book, phone, seed=0)
    leaning = 0
    for index in range(600):
        request = generator.draw("combined", index, held_out=False)
        if ", so the " in request.query.lower():
            leaning += 1
            first, second = request.calls
            assert first.arguments["on"] == second.arguments["on"] == (" on " in f" {request.query.lower()} ")
            assert first.arguments["setting"] != second.arguments["setting"]
    assert leaning > 10


def test_the_parts_of_a_list_are_joined_by_commas_before_the_last(phone: ToolSet) -> None:
    tools = {
        name: [f"{verb} {{{slot}}}{end}" for end in ENDINGS]
        for name, verb, slot in (
            ("call_contact", "call", "name"),
            ("open_app", "open", "name"),
            ("play_music", "play", "name"),
        )
    }
    names = {"name": [f"Name{number}" for number in range(60)]}
    book = small_book(phone, tools=tools, values=names, connectors=[" and "], list_connectors=[" / "])
    generator = RequestGenerator(book, phone, seed=0)
    queries = [generator.draw("combined", index, held_out=False) for index in range(200)]
    three = [request.query for request in queries if len(request.calls) == 3]
    assert len(three) > 30
    assert all(" / " not in request.query for request in queries if len(request.calls) == 2)
    assert 0.4 < sum(query.count(" / ") == 1 for query in three) / len(three) < 0.9
    assert all(query.rindex(" and ") > query.find(" / ") for query in three)
