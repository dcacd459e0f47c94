"""What calls for itself without an end is found, and left out where nothing asks for it."""

from __future__ import annotations

import json
import random
import time
from itertools import pairwise
from typing import Any

import pytest

from leveret.engine.grammar import GrammarBook
from leveret.engine.structure import Structure
from leveret.errors import RequestError
from leveret.tokenizer.files import Tokenizer

LINK = {"type": "object", "properties": {"next": {"$ref": "#/$defs/link"}}, "required": ["next"]}
LOOSE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/link"}}}


def asking(schema: Any, link: Any = LINK) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": schema}, "required": ["a"], "$defs": {"link": link}}


REF = {"$ref": "#/$defs/link"}


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#"},
        {"type": "object", "properties": {"a": {"$ref": "#"}}, "required": ["a"]},
        {"type": "array", "items": {"$ref": "#"}, "minItems": 1},
        {"type": "array", "prefixItems": [{}, {"$ref": "#"}], "minItems": 2},
        {"type": "object", "required": ["x"], "additionalProperties": {"$ref": "#"}},
        asking(REF),
        asking({"anyOf": [REF, {"$ref": "#/properties/a"}, False]}),
        asking({"allOf": [{"type": "object"}, REF]}),
        asking({"type": "array", "items": REF, "minItems": 2}),
        asking({"$ref": "#/own%20place/~1"}) | {"own place": {"/": LINK}},
    ],
)
def test_what_never_ends_is_refused(schema: dict[str, Any], tokenizer: Tokenizer) -> None:
    form = Structure.json(schema, param="response_format")
    with pytest.raises(RequestError, match=r"unsatisfiable|Unsatisfiable|no text") as caught:
        GrammarBook(tokenizer).constraint(form, (1,))
    assert (caught.value.param, caught.value.code) == ("response_format", "invalid_schema")


@pytest.mark.parametrize(
    "schema",
    [
        asking(REF, LOOSE),
        asking({"anyOf": [{"type": "null"}, {"$ref": "#"}]}, LOOSE),
        asking({"type": "array", "items": {"$ref": "#"}}, LOOSE),
        {"properties": {"a": {"$ref": "#"}}, "required": ["a"]},  # a number fits
        {"type": "object", "required": ["x"], "patternProperties": {"x": {}}, "additionalProperties": {"$ref": "#"}},
        asking({"$ref": "https://elsewhere.example/schema"}, LOOSE),
        asking({"$ref": "#/nowhere/0"}, LOOSE),
    ],
)
def test_what_ends_somewhere_stays_as_it_is(schema: dict[str, Any]) -> None:
    assert json.loads(Structure.json(schema).source) == schema


def test_parts_without_an_end_become_false_where_they_may_be_left_out() -> None:
    schema = {
        "type": "object",
        "properties": {"a": REF, "b": {"anyOf": [REF, {"type": "null"}]}},
        "$defs": {"link": LINK},
    }
    read = json.loads(Structure.json(schema).source)
    assert read["properties"] == {"a": False, "b": {"anyOf": [False, {"type": "null"}]}}
    assert read["$defs"] == {"link": False} and schema["$defs"] == {"link": LINK}


def test_thousands_of_parts_are_walked_in_a_moment() -> None:
    number = 4000
    names = [f"d{index}" for index in range(number)]
    random.Random(0).shuffle(names)
    chain = {name: {"allOf": [{"$ref": f"#/$defs/{following}"}]} for name, following in pairwise(names)}
    everything = [{"$ref": f"#/$defs/{name}"} for name in names]
    started = time.monotonic()
    for last, source in (({"type": "null"}, {"type": "null"}), ({"$ref": f"#/$defs/{names[0]}"}, False)):
        read = Structure.json({"anyOf": [*everything, {}], "$defs": {**chain, names[-1]: last}})
        assert json.loads(read.source)["$defs"][names[-1]] == source
    assert time.monotonic() - started < 5
