"""Functions without a token of their own, through the official client: valid calls, whole and in pieces."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import openai
import pytest

USER: list[Any] = [{"role": "user", "content": "Which way to Paris?"}]
SCHEMA = {
    "type": "object",
    "properties": {
        "to": {"type": "string", "maxLength": 4},
        "legs": {"type": "array", "items": {"enum": ["走", "fly"]}, "maxItems": 2},
    },
    "required": ["to", "legs"],
    "additionalProperties": False,
}
ROUTE: Any = {"type": "function", "function": {"name": "find_route", "parameters": SCHEMA}}
TIMER: Any = {"type": "function", "function": {"name": "set_timer", "parameters": {"type": "object", "properties": {}}}}


def streamed_calls(client: openai.OpenAI, request: dict[str, Any]) -> tuple[list[dict[str, Any]], list[str]]:
    """The calls that the deltas add up to, and the argument pieces of the first one."""
    calls: list[dict[str, Any]] = []
    pieces: list[str] = []
    for chunk in client.chat.completions.create(**request, stream=True):
        for delta in chunk.choices[0].delta.tool_calls or ():
            assert delta.function is not None
            if delta.index == len(calls):
                assert delta.id and delta.type == "function" and delta.function.name
                calls.append({"name": delta.function.name, "arguments": ""})
            calls[delta.index]["arguments"] += delta.function.arguments or ""
            if delta.index == 0:
                pieces.append(delta.function.arguments or "")
    return calls, pieces


@pytest.mark.parametrize("seed", range(4))
def test_calls_are_valid_and_stream_in_pieces(client: openai.OpenAI, seed: int) -> None:
    request: dict[str, Any] = {"model": "phone", "messages": USER, "tools": [ROUTE, TIMER], "tool_choice": "required"}
    request |= {"seed": seed, "temperature": 1.2, "max_tokens": 200, "parallel_tool_calls": False}
    choice = client.chat.completions.create(**request).choices[0]
    assert choice.finish_reason == "tool_calls" and choice.message.content is None
    (call,) = choice.message.tool_calls or []
    if call.function.name == "find_route":
        jsonschema.validate(json.loads(call.function.arguments), SCHEMA)
    calls, pieces = streamed_calls(client, request)
    assert [each["name"] for each in calls] == [call.function.name]
    assert json.loads(calls[0]["arguments"]) == json.loads(call.function.arguments)
    assert pieces[0] == "" and len(pieces) > (2 if call.function.name == "find_route" else 1)


@pytest.mark.parametrize("tools", [[ROUTE], [TIMER], [ROUTE, TIMER]], ids=len)
def test_a_call_that_max_tokens_cuts_off_is_the_same_whole_and_streamed(client: openai.OpenAI, tools: Any) -> None:
    request: dict[str, Any] = {"model": "phone", "messages": USER, "tools": tools, "tool_choice": "required"}
    request |= {"seed": 1, "temperature": 1.2, "parallel_tool_calls": False}
    num_cut = 0
    for max_tokens in (2, 3, 4, 9, 30, 44, 60):
        choice = client.chat.completions.create(**request, max_tokens=max_tokens).choices[0]
        whole = [call.function.model_dump() for call in choice.message.tool_calls or ()]
        chunks = list(client.chat.completions.create(**request, max_tokens=max_tokens, stream=True))
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert text == (choice.message.content or "") and not (text and whole)
        assert chunks[-1].choices[0].finish_reason == choice.finish_reason
        assert streamed_calls(client, request | {"max_tokens": max_tokens})[0] == whole
        num_cut += choice.finish_reason == "length" and bool(whole)
    assert num_cut


def test_a_named_choice_calls_that_function(client: openai.OpenAI) -> None:
    request: dict[str, Any] = {"model": "phone", "messages": USER, "tools": [ROUTE, TIMER], "max_tokens": 200}
    named: Any = {"type": "function", "function": {"name": "find_route"}}
    for seed in range(4):
        sampled = client.chat.completions.create(**request, tool_choice=named, temperature=1.2, seed=seed)
        message = sampled.choices[0].message
        assert [call.function.name for call in message.tool_calls or ()] == ["find_route"], "one call, as OpenAI does"


def test_a_schema_that_cannot_be_compiled_is_a_400_that_names_the_tool(client: openai.OpenAI) -> None:
    wrong: Any = {"type": "function", "function": {"name": "f", "parameters": {"properties": {"x": {"not": {}}}}}}
    with pytest.raises(openai.BadRequestError, match="properties/x") as caught:
        client.chat.completions.create(model="phone", messages=USER, tools=[ROUTE, wrong])
    assert caught.value.param == "tools[1].function.parameters"
