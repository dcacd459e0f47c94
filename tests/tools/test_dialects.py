"""Each dialect parses what it renders, whole or in pieces of any size."""

from __future__ import annotations

import json
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leveret.chat.messages import ToolCall
from leveret.errors import ToolError
from leveret.tools.dialects import dialect_named, dialect_names

CALLS = [
    ToolCall("send", {"to": "张伟", "message": 'say "</tool_call>" {now} \\'}),
    ToolCall("bare", {}),
    ToolCall("nested", {"list": [1, {"a": "}"}], "none": None}),
]
RENDERED = {
    "mistral": '[TOOL_CALLS] [{"name": "bare", "arguments": {}}]',
    "hermes": '<tool_call>\n{"name": "bare", "arguments": {}}\n</tool_call>',
}
MALFORMED = {
    "mistral": [
        '[TOOL_CALLS] [{"name": "x"',
        "[TOOL_CALLS] [{}]",
        '[TOOL_CALLS] {"name": "x"}',
        '[TOOL_CALLS] [{"name": "x"} {"name": "x"}]',
        '[TOOL_CALLS] [{"name": "x"}',
        '[TOOL_CALLS] [{"name": x}]',
        "[TOOL_CALLS]",
        '[TOOL_CALLS] [{"name": "x", "arguments": {"a": -Infinity}}]',
    ],
    "hermes": [
        '<tool_call>{"name": "x"',
        "<tool_call>{}</tool_call>",
        '<tool_call>{"name": "x", "arguments": 5}</tool_call>',
        '<tool_call>["x"]</tool_call>',
        '<tool_call>{"name": x}</tool_call>',
        '<tool_call>{"name": "x"} and</tool_call>',
        '<tool_call>{"name": "x"}',
        '<tool_call>{"name": "x", "arguments": {"a": NaN}}</tool_call>',
    ],
}


@pytest.mark.parametrize("name", dialect_names())
def test_a_number_beyond_all_measure_is_still_one_of_json(name: str) -> None:
    text = RENDERED[name].replace("{}", '{"a": 9e999, "b": [-9e999, 1.5]}')
    [call] = dialect_named(name).parse(text)[1]
    assert call.arguments == {"a": sys.float_info.max, "b": [-sys.float_info.max, 1.5]}


@pytest.mark.parametrize("name", dialect_names())
@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (r'{"a" : 0e27,"b":"\u000a\/\u00e9"}', '{"a": 0.0, "b": "\\n/é"}'),
        (r'{"a": 9e999, "b": -1E400}', f'{{"a": {sys.float_info.max!r}, "b": {-sys.float_info.max!r}}}'),
        (r'{"\u0061": "\ud83d\udc22 \ud83d \udc22\ud83d"}', '{"a": "🐢 \ufffd \ufffd\ufffd"}'),
        (r'{ "a" : [ 1 , -0, 12 ,{ } ,[]], "b":null}', '{"a": [1, 0, 12, {}, []], "b": null}'),
        (r'{"a": 1, "a": 2}', '{"a": 1, "a": 2}'),
    ],
)
def test_a_streamed_call_has_the_text_of_a_whole_one(name: str, written: str, meant: str) -> None:
    text = RENDERED[name].replace("{}", written)
    for size in (1, 2, 3, 5, 7, len(text)):
        stream, calls = dialect_named(name).stream(), []
        streamed = ""
        for position in range(0, len(text), size):
            calls += stream.push(text[position : position + size])[1]
            streamed += "".join(piece.arguments for piece in stream.pieces())
        assert streamed == calls[0].written == meant
        assert calls[0].arguments == json.loads(meant)


def test_every_dialect_has_its_rows() -> None:
    assert set(dialect_names()) == set(RENDERED) == set(MALFORMED)


@pytest.mark.parametrize("name", dialect_names())
def test_a_dialect_renders_its_syntax_and_parses_it_back(name: str) -> None:
    dialect = dialect_named(name)
    assert dialect.render([ToolCall("bare", {})]) == RENDERED[name]
    assert dialect.parse(dialect.render(CALLS)) == ("", CALLS)
    text = f"Let me see. {dialect.render(CALLS[:1])} Done <tool"
    assert dialect.parse(text) == ("Let me see.  Done <tool", CALLS[:1])
    assert dialect.start_marker in text and dialect.end_marker in text


@pytest.mark.parametrize("name", dialect_names())
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_how_the_text_is_cut_makes_no_difference(name: str, data: st.DataObject) -> None:
    dialect = dialect_named(name)
    text = f"a < b {dialect.render(CALLS)} <tool_cal"
    stream, content, calls = dialect.stream(), "", []
    position, pieces = 0, []
    while position < len(text):
        size = data.draw(st.integers(1, 12))
        piece, found = stream.push(text[position : position + size])
        content, calls, position = content + piece, calls + found, position + size
        pieces += stream.pieces()
    content += stream.finish()
    for index, call in enumerate(CALLS):
        own = [piece for piece in pieces if piece.index == index]
        assert own[0].name == call.name and not any(piece.name for piece in own[1:])
        assert json.loads("".join(piece.arguments for piece in own)) == call.arguments
    assert pieces == sorted(pieces, key=lambda piece: piece.index)
    assert (content.strip(), calls) == dialect.parse(text)
    assert calls == CALLS


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in MALFORMED.items() for text in texts])
def test_malformed_calls_are_refused(name: str, text: str) -> None:
    with pytest.raises(ToolError):
        dialect_named(name).parse(text)


def test_an_unknown_dialect_is_refused() -> None:
    with pytest.raises(ToolError, match="unknown tool-call dialect 'hermse'"):
        dialect_named("hermse")


@pytest.mark.parametrize("name", dialect_names())
def test_a_call_is_its_opening_its_arguments_and_its_closing(name: str) -> None:
    dialect = dialect_named(name)
    written = dialect.between.join(
        f"{dialect.opening(call.name)}{json.dumps(call.arguments, ensure_ascii=False)}{dialect.closing}"
        for call in CALLS
    )
    assert dialect.parse(f"{dialect.before}{written}{dialect.after}") == ("", CALLS)
    assert (dialect.before + dialect.opening("x")).startswith(dialect.start_marker)
    told = dialect.instructions([{"type": "function", "function": {"name": "send", "description": "发送"}}])
    assert "发送" in told and dialect.start_marker in told
    assert "42 degrees" in dialect.result("42 degrees")


def test_arguments_before_the_name_come_in_one_piece() -> None:
    stream = dialect_named("hermes").stream()
    for character in '<tool_call>{"arguments": {"a": [1, 2]}, "name": "late"}</tool_call>':
        stream.push(character)
    assert [(piece.name, piece.arguments) for piece in stream.pieces()] == [("late", '{"a": [1, 2]}')]
