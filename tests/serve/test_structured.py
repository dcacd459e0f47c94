"""Answers of a given form through the official client, whole and streamed, under OpenAI's names and vLLM's."""

from __future__ import annotations

import json
import re
from typing import Any

import jsonschema
import openai
import pytest

USER: list[Any] = [{"role": "user", "content": "Who are you?"}]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
OPENAI_FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "person", "strict": True, "schema": SCHEMA}}


def test_a_json_schema_is_obeyed_whole_and_streamed(client: openai.OpenAI) -> None:
    for seed in range(3):
        asked: dict[str, Any] = {"model": "phone", "messages": USER, "seed": seed, "temperature": 1.2}
        choice = client.chat.completions.create(**asked, response_format=OPENAI_FORMAT, max_tokens=80).choices[0]
        assert choice.finish_reason == "stop"
        jsonschema.validate(json.loads(choice.message.content or ""), SCHEMA)
        stream = client.chat.completions.create(**asked, response_format=OPENAI_FORMAT, max_tokens=80, stream=True)
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
        assert "".join(pieces) == choice.message.content and len(pieces) > 3


def test_any_json_object_and_plain_text(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "phone", "messages": USER, "max_tokens": 40}
    text = client.chat.completions.create(**asked, response_format={"type": "json_object"}).choices[0].message.content
    assert (text or "").startswith("{")
    plain = client.chat.completions.create(**asked, response_format={"type": "text"}).choices[0].message.content
    assert plain == client.chat.completions.create(**asked).choices[0].message.content


@pytest.mark.parametrize(
    ("extra", "pattern"),
    [
        ({"guided_regex": "[ab]{3}"}, "[ab]{3}"),
        ({"guided_choice": ["yes", "no"]}, "yes|no"),
        ({"guided_json": {"const": [1, 2]}}, r"\[1, 2\]"),
        ({"guided_json": '{"const": [1, 2]}'}, r"\[1, 2\]"),
        ({"guided_grammar": 'root ::= "x" [0-9]\n'}, "x[0-9]"),
        ({"structured_outputs": {"regex": "[ab]{3}"}}, "[ab]{3}"),
        ({"structured_outputs": {"choice": ["是", "否"]}}, "是|否"),
        ({"structured_outputs": {"json": {"enum": [1, 2]}}}, "1|2"),
        ({"structured_outputs": {"grammar": 'start: "x" | "y"'}}, "x|y"),
        ({"structured_outputs": {"json_object": True}}, r"(?s)\{.*"),
    ],
)
def test_vllm_names_are_obeyed_in_both_endpoints(client: openai.OpenAI, extra: dict[str, Any], pattern: str) -> None:
    chat = client.chat.completions.create(model="phone", messages=USER, max_tokens=20, extra_body=extra)
    assert re.fullmatch(pattern, chat.choices[0].message.content or "")
    text = client.completions.create(model="phone", prompt="Well:", max_tokens=20, extra_body=extra)
    assert re.fullmatch(pattern, text.choices[0].text)


@pytest.mark.parametrize(
    ("extra", "param", "words"),
    [
        ({"response_format": {"type": "json"}}, "response_format.type", "json_schema"),
        ({"response_format": {"type": "json_schema"}}, "response_format", "belongs to"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"items": {"not": {}}}}}},
            "response_format.json_schema.schema",
            'at /items .*"not" is not supported',
        ),
        ({"guided_regex": "(?=a)"}, "guided_regex", "look-around"),
        ({"guided_regex": "a", "guided_choice": ["a"]}, "guided_choice", "give one"),
        ({"structured_outputs": {"jsn": {}}}, "structured_outputs.jsn", "did you mean 'json'"),
    ],
)
def test_a_form_that_cannot_be_is_a_400_that_names_it(
    client: openai.OpenAI, extra: dict[str, Any], param: str, words: str
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="phone", messages=USER, extra_body=extra)
    assert caught.value.param == param and re.search(words, str(caught.value), re.DOTALL), caught.value
