"""Declarations from everywhere become the same tools."""

from __future__ import annotations

import enum
import functools
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest

from leveret.errors import ToolError
from leveret.tools.schema import Parameter, ToolSet, tool_from_function, tools_from_json


def one(schema: dict[str, Any], *, required: bool = True, **around: Any) -> Parameter:
    properties = {"p": schema}
    body = {"type": "object", "properties": properties, "required": ["p"] if required else [], **around}
    return tools_from_json([{"name": "t", "inputSchema": body}])[0].parameters[0]


def test_the_phone_has_the_sixteen_functions_in_order(phone: ToolSet) -> None:
    assert len(phone) == 16
    assert phone.names[:3] == ("make_phone_call", "call_contact", "send_text_message")
    assert [(each.name, each.type, each.required) for each in phone.get("create_event").parameters] == [
        ("title", "string", True),
        ("date", "string", True),
        ("time", "string", True),
    ]
    assert phone.get("set_volume").parameter("level").maximum == 100
    assert phone.get("toggle_setting").parameter("on").type == "boolean"
    assert all(tool.description and all(each.description for each in tool.parameters) for tool in phone)


def test_openai_json_is_read_back_to_the_same_tools(phone: ToolSet) -> None:
    assert tools_from_json(json.loads(json.dumps(phone.to_openai()))) == list(phone)


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string"}, Parameter(name="p", type="string")),
        ({"type": ["string", "null"]}, Parameter(name="p", type="string", required=False)),
        ({"enum": ["a", "b"]}, Parameter(name="p", type="enum", choices=("a", "b"))),
        ({"const": "a"}, Parameter(name="p", type="enum", choices=("a",))),
        ({"type": "integer", "exclusiveMinimum": 0}, Parameter(name="p", type="integer", minimum=1)),
        ({"type": "integer", "minimum": 10, "exclusiveMinimum": 5}, Parameter(name="p", type="integer", minimum=10)),
        ({"type": "integer", "minimum": 0, "exclusiveMinimum": True}, Parameter(name="p", type="integer", minimum=1)),
        ({"type": "integer", "maximum": 9, "exclusiveMaximum": False}, Parameter(name="p", type="integer", maximum=9)),
        (
            {"type": "integer", "exclusiveMinimum": 0.5, "maximum": 7.5},
            Parameter(name="p", type="integer", minimum=1, maximum=7),
        ),
        ({"type": ["string"]}, Parameter(name="p", type="string")),
        (
            {"anyOf": [{"type": "integer"}, {"type": "null"}], "default": None, "title": "P"},
            Parameter(name="p", type="integer", required=False),
        ),
        (
            {"anyOf": [{"enum": ["today"], "type": "string"}, {"type": "string", "format": "date"}]},
            Parameter(name="p", type="string", format="date", choices=("today",)),
        ),
        ({"type": "string", "pattern": "^(?:a|b)$"}, Parameter(name="p", type="string", pattern="a|b")),
        ({"type": "string", "pattern": "a"}, Parameter(name="p", type="string", pattern=r"[\s\S]*(?:a)[\s\S]*")),
        ({"type": "number", "default": 2, "minimum": 1}, Parameter(name="p", type="number", minimum=1, default=2)),
        ({"type": "integer", "default": 5.0}, Parameter(name="p", type="integer", default=5)),
        ({"type": "string", "x-extractive": True}, Parameter(name="p", type="string", extractive=True)),
    ],
)
def test_a_schema_becomes_a_parameter(schema: dict[str, Any], expected: Parameter) -> None:
    assert one(schema) == expected
    assert one(expected_json(expected), required=expected.required) == expected


def expected_json(parameter: Parameter) -> dict[str, Any]:
    from leveret.tools.schema import Tool

    tool = Tool(name="t", parameters=(parameter,))
    return tool.to_openai()["function"]["parameters"]["properties"]["p"]


def test_references_into_defs_are_followed() -> None:
    definitions = {"Color": {"type": "string", "enum": ["red"], "title": "Color"}}
    parameter = one({"$ref": "#/$defs/Color", "description": "Which."}, **{"$defs": definitions})
    assert parameter == Parameter(name="p", type="enum", choices=("red",), description="Which.")


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ({"type": "array", "items": {"type": "string"}}, "type 'array' is not supported"),
        ({"type": "object"}, "type 'object' is not supported"),
        ({"type": "integer", "multipleOf": 5}, "'multipleOf' of type 'integer' is not supported"),
        ({"type": "string", "pattern": r"^(a)\1$"}, "not supported"),
        ({"type": "string", "pattern": "^a(?=b)$"}, "not supported"),
        ({"enum": [1, 2]}, "enum must be a list of strings"),
        ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, "choice between types"),
        ({"$ref": "#/$defs/Missing"}, "not among the schema's"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "greater than maximum"),
        ({"type": "integer", "maximum": 4, "default": 5}, "its default is out of range"),
        ("string", "must be a JSON object"),
        ({"type": ["string", "integer"]}, "a choice between types"),
        ({"type": {}}, "type {} is not supported"),
        ({"anyOf": "string"}, "anyOf must be a list of schemas"),
        ({"oneOf": ["string"]}, "oneOf must be a list of schemas"),
        ({"type": "integer", "exclusiveMinimum": "5"}, "exclusiveMinimum must be a number"),
        ({"type": "integer", "minimum": float("nan")}, "minimum must be a number"),
        ({"type": "integer", "minimum": 0.1, "maximum": 0.9}, "greater than maximum"),
        ({"type": "string", "minLength": "3"}, "minLength must be a whole number"),
        ({"type": "string", "maxLength": True}, "maxLength must be a whole number"),
        ({"type": "string", "format": ["date"]}, "format must be a word"),
        ({"type": "string", "format": "HH:MM", "maxLength": 2}, "the format HH:MM has 5 characters"),
        ({"type": "string", "format": "phone", "minLength": 99}, "the format phone has 2 to 25 characters"),
        ({"type": "string", "pattern": "^ab+$", "maxLength": 1}, "the pattern has 2 or more characters"),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_tool_and_parameter(schema: Any, reason: str) -> None:
    with pytest.raises(ToolError, match="tool t, parameter p") as caught:
        one(schema)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "format": "HH:MM", "maxLength": 5},
        {"type": "string", "format": "date", "minLength": 10},
        {"type": "string", "pattern": "^a*(b|cc){0,2}$", "minLength": 900},
        {"type": "string", "pattern": "x", "minLength": 9},
        {"type": "string", "maxLength": 0},
        {"anyOf": [{"type": "string", "format": "HH:MM"}, {"enum": ["now"]}], "maxLength": 3},
    ],
)
def test_a_length_that_something_has_is_taken(schema: Any) -> None:
    try:
        one(schema)
    except ToolError as error:
        assert "no value fits its length" not in str(error)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([{"description": "no name"}], "tool 1 has no name"),
        (["x"], "tool 1 must be a JSON object"),
        ("nowhere.json", "does not exist"),
        ([{"name": "t", "parameters": {"type": "array"}}], "of type object"),
        ([{"name": "t", "parameters": {"properties": {}, "required": ["q"]}}], "'q' is not among"),
        ([{"name": "t", "parameters": {"properties": ["q"]}}], "tool t: properties must be an object"),
        ([{"name": "t", "parameters": {"properties": {}, "$defs": [1]}}], "tool t: .defs must be an object"),
        ([{"name": "t", "parameters": {"properties": {"q": {"type": "string"}}, "required": "q"}}], "a list of names"),
    ],
)
def test_declarations_that_are_none_are_refused(content: Any, reason: str) -> None:
    with pytest.raises(ToolError, match=reason):
        tools_from_json(content)


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


def paint(
    wall: str,
    color: Color,
    layers: int = 2,
    mood: Literal["calm", "wild"] = "calm",
    when: Annotated[str | None, {"format": "HH:MM"}] = None,
    wet: bool = False,
) -> None:
    """Paint a wall.

    It takes a while.

    Args:
        wall: Which wall,
            seen from the door.
        color (Color): The color.

    Returns:
        wet: not an argument.
    """


def test_a_function_becomes_a_tool() -> None:
    tool = tool_from_function(paint)
    assert tool.name == "paint" and tool.description == "Paint a wall. It takes a while."
    assert tool.parameters == (
        Parameter(name="wall", type="string", description="Which wall, seen from the door."),
        Parameter(name="color", type="enum", choices=("red", "blue"), description="The color."),
        Parameter(name="layers", type="integer", required=False, default=2),
        Parameter(name="mood", type="enum", choices=("calm", "wild"), required=False, default="calm"),
        Parameter(name="when", type="string", format="HH:MM", required=False),
        Parameter(name="wet", type="boolean", required=False, default=False),
    )
    assert tools_from_json([tool.to_openai()]) == [tool]


def test_a_function_with_an_unfit_signature_is_refused_by_name() -> None:
    def takes_list(items: list[str]) -> None: ...
    def takes_all(**rest: str) -> None: ...
    def untyped(x) -> None: ...

    for function, reason in [(takes_list, "items: the type list"), (takes_all, r"\* and \*\*"), (untyped, "no type")]:
        with pytest.raises(ToolError, match=reason):
            tool_from_function(function)


def test_what_is_no_function_with_known_arguments_is_refused() -> None:
    def half(x: "int |") -> None: ...  # noqa: F722  # the annotation that is wrong

    cases = [(half, "cannot be resolved"), (functools.partial(paint), "no name"), (dict, "arguments are not known")]
    for function, reason in cases:
        with pytest.raises(ToolError, match=reason):
            tool_from_function(function)


def test_a_model_directory_keeps_the_tools_with_their_tokens(phone: ToolSet, tmp_path: Path) -> None:
    file = phone.save(tmp_path)
    assert file == tmp_path / "tools.json"
    assert ToolSet.load(tmp_path) == ToolSet.load(file) == phone
    assert json.loads(file.read_text())["functional_tokens"]["<api_5>"] == "take_photo"
    assert ToolSet.load(file.rename(tmp_path / "tools.txt")) == phone


def test_a_byte_order_mark_before_a_tool_set_is_passed_over(phone: ToolSet, tmp_path: Path) -> None:
    file = phone.save(tmp_path)
    file.write_text(file.read_text("utf-8"), "utf-8-sig")
    assert ToolSet.load(file).to_openai() == phone.to_openai()


def test_a_wrong_tool_is_told_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text('[{"description": "rings"}]')
    with pytest.raises(ToolError, match=r"mine\.json: tool 1 has no name"):
        ToolSet.load(tmp_path / "mine.json")


def test_tools_in_another_order_than_the_tokens_are_refused(phone: ToolSet, tmp_path: Path) -> None:
    file = phone.save(tmp_path)
    content = json.loads(file.read_text())
    content["tools"].reverse()
    file.write_text(json.dumps(content))
    with pytest.raises(ToolError, match="do not match the order"):
        ToolSet.load(tmp_path)


def test_the_answer_of_an_mcp_server_is_read_as_it_is() -> None:
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "description": "Where"}},
        "required": ["city"],
    }
    tool = {
        "name": "get_weather",
        "title": "Weather",
        "description": "Weather of a city",
        "inputSchema": schema,
        "outputSchema": {"type": "object"},
        "annotations": {"readOnlyHint": True},
        "_meta": {"x": 1},
    }
    result = {"tools": [tool], "nextCursor": "abc"}
    for content in (result, {"jsonrpc": "2.0", "id": 1, "result": result}, [tool], tool):
        (read,) = tools_from_json(content)
        assert read.name == "get_weather" and read.description == "Weather of a city"
        assert read.parameters == (Parameter(name="city", type="string", description="Where"),)
    assert ToolSet([read]).to_openai()[0]["function"]["parameters"]["required"] == ["city"]
