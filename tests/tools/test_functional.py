"""Calls are rendered to a few tokens and parsed back to the same calls."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leveret.chat.messages import ToolCall
from leveret.errors import ToolError
from leveret.tools.functional import FunctionalDialect
from leveret.tools.schema import Parameter, Tool, ToolSet

MIXED = FunctionalDialect(
    ToolSet(
        [
            Tool(
                name="mixed",
                parameters=(
                    Parameter(name="text", type="string", required=False),
                    Parameter(name="count", type="integer", required=False),
                    Parameter(name="ratio", type="number", required=False),
                    Parameter(name="kind", type="enum", choices=("a,b", 'c"d', " e"), required=False),
                    Parameter(name="on", type="boolean", required=False),
                    Parameter(name="more", type="string", required=False),
                ),
            ),
            Tool(name="bare"),
        ]
    ),
    reserved=["[INST]", "<s>"],
)
NASTY = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["", " ", "  x", '"', "\\", '")<api_end>', "<api_0>", "<no_tool>", "[INST]", "a,b", "\n\t\0", "👩‍👧"]
    ),
)
ARGUMENTS = st.fixed_dictionaries(
    {},
    optional={
        "text": NASTY,
        "count": st.integers(),
        "ratio": st.floats(allow_nan=False, allow_infinity=False) | st.integers(-9, 9),
        "kind": st.sampled_from(["a,b", 'c"d', " e"]),
        "on": st.booleans(),
        "more": NASTY,
    },
)
CALLS = st.lists(st.one_of(st.builds(ToolCall, st.just("mixed"), ARGUMENTS), st.just(ToolCall("bare", {}))), max_size=3)


@settings(max_examples=150, deadline=None)
@given(calls=CALLS, query=NASTY)
def test_parsing_inverts_rendering(calls: list[ToolCall], query: str) -> None:
    text = MIXED.render(calls, query=query)
    assert MIXED.parse(text) == calls
    inside = text.replace("<api_0>", "").replace("<api_1>", "").replace("<api_end>", "")
    assert inside == "<no_tool>" or ("<" not in inside and "[INST]" not in inside)


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet='<api_0>end(),"\\ u1t-truefals[]{}', max_size=40))
def test_any_other_text_is_refused_politely(text: str) -> None:
    try:
        calls = MIXED.parse(text)
    except ToolError:
        return
    assert MIXED.parse(MIXED.render(calls)) == calls


@pytest.mark.parametrize(
    ("name", "arguments", "query", "expected"),
    [
        ("call_contact", {"name": "Alice"}, "Call Alice now", '<api_1>(" Alice")<api_end>'),
        ("call_contact", {"name": "Alice"}, "Alice, please", '<api_1>("Alice")<api_end>'),
        ("call_contact", {"name": "Art"}, "StArt Art", '<api_1>(" Art")<api_end>'),
        ("call_contact", {"name": "张伟"}, "给张伟打电话", '<api_1>("张伟")<api_end>'),
        ("call_contact", {"name": " Al"}, "Call Al", '<api_1>("  Al")<api_end>'),
        ("make_phone_call", {"phone_number": "110"}, "dial 110", '<api_0>("110")<api_end>'),
        ("set_alarm", {"time": "07:00"}, "at 07:00", '<api_7>("07:00")<api_end>'),
        ("set_alarm", {"label": "gym", "time": "07:00"}, "gym", '<api_7>("07:00","gym")<api_end>'),
        ("toggle_setting", {"setting": "wifi", "on": False}, "", '<api_15>("wifi",false)<api_end>'),
        ("search_web", {"query": 'a "b" <c>'}, "", '<api_4>("a \\"b\\" \\u003cc>")<api_end>'),
    ],
)
def test_strings_are_spelled_as_the_request_has_them(
    dialect: FunctionalDialect, name: str, arguments: dict, query: str, expected: str
) -> None:
    assert dialect.render([ToolCall(name, arguments)], query=query) == expected
    assert dialect.parse(expected) == [ToolCall(name, arguments)]


def test_several_calls_stand_in_order_and_none_is_the_no_tool_token(dialect: FunctionalDialect) -> None:
    calls = [ToolCall("take_photo", {"camera": "rear"}), ToolCall("set_timer", {"minutes": 5})]
    text = dialect.render(calls)
    assert text == '<api_5>("rear")<api_end><api_8>(5)<api_end>'
    assert dialect.parse(text) == calls
    assert dialect.render([]) == "<no_tool>" and dialect.parse(" <no_tool>\n") == []


def test_absent_arguments_are_empty_places() -> None:
    assert MIXED.render([ToolCall("mixed", {"count": 3})]) == "<api_0>(,3)<api_end>"
    assert MIXED.render([ToolCall("mixed", {})]) == "<api_0>()<api_end>"
    assert MIXED.parse("<api_0>(,,1.5,)<api_end>") == [ToolCall("mixed", {"ratio": 1.5})]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("hello", "unknown token"),
        ("<api_16>()<api_end>", "unknown token"),
        ("<no_tool><no_tool>", "unknown token"),
        ("<api_8>5", r"'\(' is missing"),
        ("<api_8>(5)", "<api_end> is missing"),
        ("<api_8>(5", "',' or '\\)' is missing"),
        ("<api_8>(5,6)<api_end>", "wrong arity, 2 arguments for 1"),
        ("<api_8>()<api_end>", "needs the argument 'minutes'"),
        ('<api_8>("5")<api_end>', "minutes must be an integer"),
        ("<api_8>(true)<api_end>", "minutes must be an integer"),
        ("<api_8>(-1)<api_end>", "out of range"),
        ("<api_8>(1e999)<api_end>", "must be an integer"),
        ("<api_8>(" + "9" * 5000 + ")<api_end>", "bad JSON value"),
        ("<api_8>(NaN)<api_end>", "no JSON value"),
        ("<api_8>(null)<api_end>", "no JSON value"),
        ("<api_8>([[[[5]]]])<api_end>", "no JSON value"),
        ("<api_8>(__import__('os'))<api_end>", "no JSON value"),
        ("<api_8>(01)<api_end>", "is missing"),
        ('<api_1>("Bob)<api_end>', "bad JSON value"),
        ('<api_1>("\\ud800")<api_end>', "lone surrogate"),
        ('<api_5>("side")<api_end>', "must be one of front, rear"),
        ('<api_7>("7:00")<api_end>', "must look like HH:MM"),
        ('<api_13>("x","2023-02-29","10:00")<api_end>', "must look like date"),
    ],
)
def test_what_is_no_call_is_refused_with_the_reason(dialect: FunctionalDialect, text: str, reason: str) -> None:
    with pytest.raises(ToolError, match=reason):
        dialect.parse(text)


def test_an_end_token_inside_a_string_is_part_of_the_string(dialect: FunctionalDialect) -> None:
    assert dialect.parse('<api_4>("a<api_end>b")<api_end>')[0].arguments == {"query": "a<api_end>b"}


def test_tokens_come_in_a_fixed_order(dialect: FunctionalDialect) -> None:
    assert dialect.tokens[:2] == ("<api_0>", "<api_1>")
    assert dialect.tokens[-2:] == ("<api_end>", "<no_tool>")


def test_a_call_that_does_not_fit_is_not_rendered(dialect: FunctionalDialect) -> None:
    with pytest.raises(ToolError, match="unknown tool 'fly'"):
        dialect.render([ToolCall("fly", {})])
    with pytest.raises(ToolError, match="level is out of range"):
        dialect.render([ToolCall("set_volume", {"level": 101})])
