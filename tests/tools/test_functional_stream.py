"""A functional call comes in pieces that add up to the JSON of its arguments, however its text is cut."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from leveret.chat.messages import ToolCall
from leveret.tools.functional import FunctionalDialect
from leveret.tools.functional_stream import FunctionalStream
from leveret.tools.schema import Parameter, Tool, ToolSet

TOOL = Tool(
    name="send",
    parameters=(
        Parameter(name="to", type="string"),
        Parameter(name="count", type="integer", required=False, maximum=50),
        Parameter(name="loud", type="boolean", required=False),
        Parameter(name='name "中"', type="enum", choices=("a", "b\\"), required=False),
    ),
)
DIALECT = FunctionalDialect(ToolSet([TOOL, Tool(name="bare")]))


def pieces_of(text: str, cuts: list[int], tool: Tool = TOOL) -> list:
    stream, pieces = FunctionalStream(tool, 2), []
    for end in [*sorted(cuts), len(text)]:
        pieces += stream.push(text[:end])
    return pieces


arguments = st.fixed_dictionaries(
    {"to": st.text(st.characters(codec="utf-8"), max_size=8)},
    optional={"count": st.integers(-5, 50), "loud": st.booleans(), 'name "中"': st.sampled_from(["a", "b\\"])},
)


@settings(max_examples=80, deadline=None)
@given(given_arguments=arguments, cuts=st.lists(st.integers(0, 60), max_size=12))
def test_the_pieces_add_up_to_the_arguments(given_arguments: dict, cuts: list[int]) -> None:
    call = ToolCall("send", TOOL.validate(given_arguments))
    text = DIALECT.render([call]).removeprefix("<api_0>").removesuffix("<api_end>")
    pieces = pieces_of(text, cuts)
    assert pieces[0].name == "send" and not any(piece.name for piece in pieces[1:])
    assert "".join(piece.arguments for piece in pieces) == json.dumps(call.arguments, ensure_ascii=False)
    assert {piece.index for piece in pieces} == {2}


def test_an_argument_is_given_as_soon_as_it_is_certain() -> None:
    stream = FunctionalStream(TOOL, 0)
    given_out = ["".join(piece.arguments for piece in stream.push(text)) for text in ("", '("Al', '("Al"', '("Al",')]
    assert given_out == ["", "", "", '{"to": "Al"']
    assert [piece.arguments for piece in stream.push('("Al",5)')] == [', "count": 5}']


def test_a_whole_number_is_given_as_the_finished_call_has_it() -> None:
    (call,) = DIALECT.parse('<api_0>("Al",5.0)<api_end>')
    assert "".join(piece.arguments for piece in pieces_of('("Al",5.0)', [])) == '{"to": "Al", "count": 5}'
    assert call.arguments == {"to": "Al", "count": 5} and isinstance(call.arguments["count"], int)


def test_no_arguments_are_an_empty_object_and_wrong_ones_are_not_given() -> None:
    assert [piece.arguments for piece in pieces_of("()", [], Tool(name="bare"))] == ["", "{}"]
    for wrong in ('("a",99)', '("a",5,true,"a",1)', "(nope)", '["a"]'):
        assert "}" not in "".join(piece.arguments for piece in pieces_of(wrong, []))
