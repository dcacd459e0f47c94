"""Whatever allowed token is chosen, the answer parses, validates and ends."""

from __future__ import annotations

import random

import numpy as np
import pytest

from leveret.chat.messages import ToolCall
from leveret.errors import ToolError
from leveret.tokenizer.files import Tokenizer
from leveret.tools.constraint import CallConstraint
from leveret.tools.functional import FunctionalDialect
from leveret.tools.grammar import CallGrammar
from leveret.tools.schema import ToolSet, tools_from_json

QUERIES = [
    "Text Mom that I will be home soon, then call +49 170 555-0199",
    '把闹钟设到七点半，然后给张伟发短信："我晚点到 <ok>"',
    "emoji 👩‍👩‍👧 and C:\\temp\tcafé naïve Ünïcode",
    "",
]


def follow(constraint: CallConstraint, ids: list[int]) -> None:
    for token_id in ids:
        assert token_id in constraint.allowed_ids()
        constraint.advance(token_id)


def random_answer(constraint: CallConstraint, rng: random.Random, *, limit: int) -> list[int]:
    """Random choices among the allowed ids, sometimes the longest-lasting ones, until the constraint is finished."""
    ids: list[int] = []
    while not constraint.finished:
        allowed = constraint.allowed_ids()
        assert len(allowed) > 0
        assert len(ids) < limit, "the answer does not end"
        ids.append(int(rng.choice(allowed)))
        constraint.advance(ids[-1])
    return ids


def check_random_answers(grammar: CallGrammar, tokenizer: Tokenizer, number: int, seed: int) -> None:
    rng = random.Random(seed)
    dialect = grammar.dialect
    for _ in range(number):
        query = rng.choice(QUERIES)
        constraint = CallConstraint(dialect, tokenizer, query=query, grammar=grammar)
        ids = random_answer(constraint, rng, limit=grammar.max_calls * 1000)
        assert ids[-1] in grammar.stop_ids
        calls = dialect.parse(tokenizer.decode(ids[:-1]))
        assert len(calls) <= grammar.max_calls
        for call in calls:
            dialect.tools.get(call.name).validate(call.arguments)


def test_random_choices_always_parse_and_validate(grammar: CallGrammar, tokenizer: Tokenizer) -> None:
    check_random_answers(grammar, tokenizer, 40, seed=0)


@pytest.mark.slow
def test_ten_thousand_random_choices_always_parse_and_validate(
    dialect: FunctionalDialect, tokenizer: Tokenizer
) -> None:
    short = CallGrammar(dialect, tokenizer, max_calls=3, max_string_bytes=24)
    check_random_answers(short, tokenizer, 10_000, seed=1)


def test_every_kind_of_parameter_stays_in_its_type(tokenizer: Tokenizer) -> None:
    properties = {
        "ratio": {"type": "number", "minimum": -2.5, "maximum": 2.5},
        "any_number": {"type": "number"},
        "narrow": {"type": "number", "minimum": 0.2, "maximum": 0.8},
        "below": {"type": "integer", "maximum": -7},
        "wide": {"type": "integer", "minimum": -45, "maximum": 20310},
        "code": {"type": "string", "pattern": "^[A-Z]{2}(-[0-9]+)?$"},
        "quoted": {"type": "string", "pattern": '^["\\\\<é一-三]*$'},
        "short": {"type": "string", "minLength": 2, "maxLength": 5},
        "date": {"type": "string", "format": "date"},
        "odd": {"type": "string", "enum": ['a "b"', "<api_end>", "x\n", "中"]},
        "named": {"type": "string", "minLength": 1, "x-extractive": True},
        "flag": {"type": "boolean"},
    }
    schema = {"type": "object", "properties": properties, "required": ["ratio", "named"]}
    tools = ToolSet(tools_from_json([{"name": "mixed", "parameters": schema}, {"name": "bare"}]))
    grammar = CallGrammar(FunctionalDialect(tools), tokenizer)
    check_random_answers(grammar, tokenizer, 100, seed=2)


@pytest.mark.parametrize(
    ("query", "calls"),
    [
        (
            "Text Mom that I will be home soon",
            [("send_text_message", {"name": "Mom", "message": "I will be home soon"})],
        ),
        ("call +49 170 555-0199 please", [("make_phone_call", {"phone_number": "+49 170 555-0199"})]),
        ("给张伟打电话", [("call_contact", {"name": "张伟"})]),
        ("Alice's place: drive!", [("find_route", {"destination": "Alice's place", "mode": "drive"})]),
        (
            "standup at 19:30 on 2028-02-29",
            [("create_event", {"title": "standup", "date": "2028-02-29", "time": "19:30"})],
        ),
        ("wake me at 7", [("set_alarm", {"time": "07:00"})]),
        ("wake me at 7 for work", [("set_alarm", {"time": "07:00", "label": "work"})]),
        ("wifi on, 40 % loud", [("toggle_setting", {"setting": "wifi", "on": True}), ("set_volume", {"level": 40})]),
        ('look up "quotes" \\ and <api_end>', [("search_web", {"query": '"quotes" \\ and <api_end>'})]),
        ("how are you", []),
    ],
)
def test_the_rendered_answer_is_allowed_token_by_token(
    query: str, calls: list[tuple[str, dict]], dialect: FunctionalDialect, tokenizer: Tokenizer, grammar: CallGrammar
) -> None:
    expected = [ToolCall(name, arguments) for name, arguments in calls]
    text = dialect.render(expected, query=query)
    constraint = CallConstraint(dialect, tokenizer, query=query, grammar=grammar)
    follow(constraint, [*tokenizer.encode(text, allow_special=True), tokenizer.id_of("<eos>")])
    assert constraint.finished and len(constraint.allowed_ids()) == 0


def prefix_constraint(dialect, tokenizer, grammar, query: str, prefix: str) -> CallConstraint:
    constraint = CallConstraint(dialect, tokenizer, query=query, grammar=grammar)
    follow(constraint, tokenizer.encode(prefix, allow_special=True))
    return constraint


def texts(constraint: CallConstraint, tokenizer: Tokenizer) -> set[str]:
    return {tokenizer.decode([int(token_id)]) for token_id in constraint.allowed_ids()}


def test_a_copied_string_begins_and_ends_at_words(dialect, tokenizer, grammar) -> None:
    constraint = prefix_constraint(dialect, tokenizer, grammar, "Ring Zoë-Ann", '<api_1>("')
    assert {text[0] for text in texts(constraint, tokenizer)} == {"R", " ", "-", "A"}
    constraint = prefix_constraint(dialect, tokenizer, grammar, "Ring Xqzy up", '<api_1>(" Xqz')
    assert texts(constraint, tokenizer) == {"y"}


def test_a_copied_string_neither_begins_nor_ends_at_a_comma(dialect, tokenizer, grammar) -> None:
    constraint = prefix_constraint(dialect, tokenizer, grammar, "ring,Ann、ok", '<api_1>("')
    assert {text[0] for text in texts(constraint, tokenizer)} == {"r", "A", "o"}
    constraint = prefix_constraint(dialect, tokenizer, grammar, "ring Ann, ok", '<api_1>(" Ann')
    assert {text[0] for text in texts(constraint, tokenizer)} == {'"', ","}
    for mark in ",;:，；：、":
        constraint = prefix_constraint(dialect, tokenizer, grammar, f"ring Ann{mark} ok", f'<api_1>(" Ann{mark}')
        assert not any(text.startswith('"') for text in texts(constraint, tokenizer)), mark
    constraint = prefix_constraint(dialect, tokenizer, grammar, "text Bob :)", '<api_2>(" Bob"," :')
    assert any(text.startswith(")") for text in texts(constraint, tokenizer))


def test_a_phone_number_is_copied_only_where_the_request_has_one(dialect, tokenizer, grammar) -> None:
    constraint = prefix_constraint(dialect, tokenizer, grammar, "dial 12345 for Bob", '<api_0>("')
    assert texts(constraint, tokenizer) == {"1"}
    constraint = prefix_constraint(dialect, tokenizer, grammar, "dial one two three", '<api_0>("')
    assert {"1", "9", "+"} <= texts(constraint, tokenizer)


def test_without_a_request_extractive_strings_are_free(dialect, tokenizer, grammar) -> None:
    constraint = prefix_constraint(dialect, tokenizer, grammar, "", '<api_1>("')
    assert {"A", "z", "9", " "} <= texts(constraint, tokenizer)


def test_a_comma_is_not_allowed_after_the_last_argument(dialect, tokenizer, grammar) -> None:
    constraint = prefix_constraint(dialect, tokenizer, grammar, "", "<api_8>(5")
    assert all(text[0] in "0123456789)" for text in texts(constraint, tokenizer))
    constraint = prefix_constraint(dialect, tokenizer, grammar, "", "<api_9>(100")
    assert texts(constraint, tokenizer) == {")"}


def test_only_allowed_tools_can_be_called(dialect, tokenizer, grammar) -> None:
    constraint = CallConstraint(dialect, tokenizer, allowed=["take_photo"], grammar=grammar)
    assert texts(constraint, tokenizer) == {"<api_5>", "<no_tool>"}
    constraint = CallConstraint(dialect, tokenizer, allowed=[], grammar=grammar)
    assert constraint.forced() == tokenizer.id_of("<no_tool>")


def test_forced_tokens_are_those_without_a_choice(dialect, tokenizer, grammar) -> None:
    constraint = prefix_constraint(dialect, tokenizer, grammar, "", '<api_5>("front")')
    assert constraint.forced() == tokenizer.id_of("<api_end>")
    constraint.advance(tokenizer.id_of("<api_end>"))
    assert constraint.forced() is None


def test_a_clone_goes_its_own_way(dialect, tokenizer, grammar) -> None:
    constraint = prefix_constraint(dialect, tokenizer, grammar, "Call Bob", '<api_1>("')
    before = constraint.allowed_ids().copy()
    twin = constraint.clone()
    twin.advance(int(before[0]))
    assert np.array_equal(constraint.allowed_ids(), before)


def test_a_token_that_is_not_allowed_is_refused(dialect, tokenizer, grammar) -> None:
    constraint = CallConstraint(dialect, tokenizer, grammar=grammar)
    with pytest.raises(ToolError, match="not allowed"):
        constraint.advance(tokenizer.id_of("<eos>"))
    constraint.advance(tokenizer.id_of("<api_5>"))
    with pytest.raises(ToolError, match="not allowed"):
        constraint.advance(tokenizer.encode("x")[0])


def test_a_tokenizer_without_an_end_is_refused(dialect, tokenizer) -> None:
    endless = Tokenizer(tokenizer.to_json())
    with pytest.raises(ToolError, match="EOS"):
        CallGrammar(dialect, endless)
    assert CallGrammar(dialect, endless, stop_ids=[0]).stop_ids == (0,)


def test_long_strings_are_closed(dialect, tokenizer) -> None:
    grammar = CallGrammar(dialect, tokenizer, max_string_bytes=6)
    constraint = CallConstraint(dialect, tokenizer, grammar=grammar)
    follow(constraint, tokenizer.encode('<api_4>("', allow_special=True))
    for byte in "abcdé".encode():
        token_id = next(number for number, text in grammar.trie.token_bytes.items() if text == bytes([byte]))
        constraint.advance(token_id)
    assert all(tokenizer.token_bytes(int(each)).startswith(b'"') for each in constraint.allowed_ids())
