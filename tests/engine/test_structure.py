"""What callers may ask for, and how a schema is read before it is compiled."""

from __future__ import annotations

import json
import time

import pydantic
import pytest

from leveret.engine.structure import Structure, readable, split_options
from leveret.errors import RequestError


def test_options_are_divided_into_a_form_and_sampling() -> None:
    structure, sampling = split_options({"choice": ["yes", "no"], "temperature": 0.5, "seed": 3})
    assert structure == Structure(kind="choice", source='["yes", "no"]', param="choice")
    assert sampling == {"temperature": 0.5, "seed": 3}
    assert split_options({"max_tokens": 3}) == (None, {"max_tokens": 3})
    ready = Structure.of_regex("a+")
    assert split_options({"structure": ready})[0] is ready


def test_a_schema_may_be_a_mapping_its_text_or_a_pydantic_model() -> None:
    class Hare(pydantic.BaseModel):
        name: str

    asked = [Structure.json(each) for each in (Hare, Hare.model_json_schema(), json.dumps(Hare.model_json_schema()))]
    assert asked[0] == asked[1] == asked[2] and json.loads(asked[0].source)["required"] == ["name"]
    assert json.loads(Structure.json(True).source) == {}


def test_a_grammar_with_gbnf_arrows_is_gbnf() -> None:
    assert Structure.of_grammar('root ::= "a"').kind == "gbnf" and Structure.of_grammar('start: "a"').kind == "lark"


def test_formats_that_only_describe_are_left_out_and_ours_become_patterns() -> None:
    schema = {
        "type": "object",
        "x-guidance": {"lenient": True},
        "properties": {
            "format": {"type": "string", "format": "password"},
            "at": {"type": "string", "format": "HH:MM"},
            "day": {"type": "array", "items": {"type": "string", "format": "date"}},
            "data": {"const": {"format": "password"}},
        },
        "anyOf": [{"properties": {"at": {"format": "int32"}}}],
    }
    before = json.dumps(schema)
    read = readable(schema)
    assert json.dumps(schema) == before
    assert "x-guidance" not in read and read["anyOf"] == [{"properties": {"at": {}}}]
    assert read["properties"] == {
        "format": {"type": "string"},
        "at": {"type": "string", "pattern": "^(?:([01][0-9]|2[0-3]):[0-5][0-9])$"},
        "day": {"type": "array", "items": {"type": "string", "format": "date"}},
        "data": {"const": {"format": "password"}},
    }


def test_a_schema_of_many_parts_is_read_in_a_moment() -> None:
    parts = {f"p{number}": {"x-guidance": 1} for number in range(30_000)}
    started = time.monotonic()
    assert readable({"$defs": parts})["$defs"]["p29999"] == {} and parts["p29999"] == {"x-guidance": 1}
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("options", "param", "words"),
    [
        ({"schema": "{"}, "schema", "not JSON"),
        ({"schema": [1]}, "schema", "not list"),
        ({"schema": False}, "schema", "nothing fits"),
        ({"schema": {"const": object()}}, "schema", "not JSON"),
        ({"choice": []}, "choice", "list of texts"),
        ({"choice": "yes"}, "choice", "list of texts"),
        ({"choice": ["a", ""]}, "choice", "list of texts"),
        ({"regex": ""}, "regex", "not empty"),
        ({"grammar": 3}, "grammar", "not empty"),
        ({"schema": {}, "regex": "a"}, "regex", "give one"),
        ({"schema": {"minimum": float("nan")}}, "schema", "not JSON"),
        ({"schema": {"items": {"properties": {str(n): {} for n in range(5001)}}}}, "schema", "5,001 properties"),
        ({"schema": {"enum": ["x" * 1_000_001]}}, "schema", "1,000,0.. characters"),
        ({"regex": "\ud83d"}, "regex", "lone surrogate"),
        ({"grammar": 'start: "\ud83d"'}, "grammar", "lone surrogate"),
        ({"choice": ["a", "\ud83d"]}, "choice", "lone surrogate"),
    ],
)
def test_what_cannot_be_a_form_is_refused_by_name(options: dict, param: str, words: str) -> None:
    with pytest.raises(RequestError, match=words) as caught:
        split_options(options)
    assert caught.value.param == param
