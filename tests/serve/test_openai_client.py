"""The server driven by the official client: what is streamed, batched or asked twice is what the engine says."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from leveret.engine.text import TextModel

USER: dict[str, Any] = {"role": "user", "content": "Set a timer for five minutes and call Alice"}
SAMPLED: dict[str, Any] = {"temperature": 1.0, "seed": 5, "max_tokens": 24}


def tools(model: TextModel) -> list[dict[str, Any]]:
    assert model.tools is not None
    return model.tools.to_openai()


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [each.id for each in client.models.list()] == ["phone"]
    assert client.models.retrieve("phone").id == "phone"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("other/model")


def test_a_chat_is_what_the_model_says_in_python(client: openai.OpenAI, model: TextModel) -> None:
    response = client.chat.completions.create(model="phone", messages=[USER], **SAMPLED)
    reply = model.chat([USER], **SAMPLED)
    [choice] = response.choices
    assert (choice.message.role, choice.message.content) == ("assistant", reply.content)
    assert choice.finish_reason == reply.finish_reason
    assert response.usage is not None and response.usage.total_tokens == reply.usage.total_tokens
    assert response.object == "chat.completion" and response.model == "phone" and response.id.startswith("chatcmpl-")


def test_a_streamed_chat_adds_up_to_the_whole_one(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model="phone", messages=[USER], **SAMPLED)
    chunks = list(
        client.chat.completions.create(
            model="phone", messages=[USER], stream=True, stream_options={"include_usage": True}, **SAMPLED
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert len({chunk.id for chunk in chunks}) == 1 and chunks[0].object == "chat.completion.chunk"
    pieces = [chunk.choices[0] for chunk in chunks if chunk.choices]
    assert "".join(piece.delta.content or "" for piece in pieces) == whole.choices[0].message.content
    assert [piece.finish_reason for piece in pieces if piece.finish_reason] == [whole.choices[0].finish_reason]
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_usage_may_be_told_with_every_chunk_each_choice_counted_for_itself(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    asked: list[Any] = [
        client.chat.completions.create(model="phone", messages=[USER], n=2, stream=True, **options, **SAMPLED),
        client.completions.create(model="phone", prompt=[[5, 6], [5, 6, 7, 8]], stream=True, **options, **SAMPLED),
    ]
    for chunks in map(list, asked):
        last = chunks[-1]
        ends = []
        for index in range(2):
            own = [chunk.usage for chunk in chunks if chunk.choices and chunk.choices[0].index == index]
            counts = [usage.completion_tokens for usage in own]
            assert (
                counts == sorted(counts) and len(set(counts)) > 2 and len({usage.prompt_tokens for usage in own}) == 1
            )
            assert all(usage.total_tokens == usage.prompt_tokens + usage.completion_tokens for usage in own)
            ends.append(own[-1])
        assert last.choices == [] and sum(end.completion_tokens for end in ends) == last.usage.completion_tokens
    assert sum(end.prompt_tokens for end in ends) == last.usage.prompt_tokens and ends[1].prompt_tokens == 4
    without = {"stream_options": {"include_usage": False, "continuous_usage_stats": True}}
    chunks = list(client.completions.create(model="phone", prompt="Set a", stream=True, **without, **SAMPLED))
    assert all(chunk.choices and chunk.usage is None for chunk in chunks)


def test_text_completions_of_texts_and_ids_with_several_choices(client: openai.OpenAI, model: TextModel) -> None:
    response = client.completions.create(model="phone", prompt=["Set a", "明天"], n=2, **SAMPLED)
    options = [SAMPLED | {"seed": seed} for seed in (5, 6)]
    expected = [model.generate(prompt, **each) for prompt in ("Set a", "明天") for each in options]
    assert [choice.text for choice in response.choices] == expected
    assert [choice.index for choice in response.choices] == [0, 1, 2, 3]
    ids = model.tokenizer.encode("Set a")
    assert client.completions.create(model="phone", prompt=ids, **SAMPLED).choices[0].text == expected[0]
    assert response.usage is not None
    assert response.usage.prompt_tokens == len(ids) + len(model.tokenizer.encode("明天"))
    stream = client.completions.create(model="phone", prompt=["Set a", "明天"], n=2, stream=True, **SAMPLED)
    texts = ["", "", "", ""]
    for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == expected


def test_tool_calls_whole_and_streamed(client: openai.OpenAI, model: TextModel) -> None:
    for seed in range(4):
        request: dict[str, Any] = {
            "model": "phone",
            "messages": [USER],
            "tools": tools(model),
            "tool_choice": "required",
            "temperature": 1.5,
            "seed": seed,
        }
        [choice] = client.chat.completions.create(**request).choices
        reply = model.chat([USER], tools="all", tool_choice="required", temperature=1.5, seed=seed)
        calls = choice.message.tool_calls or []
        assert choice.finish_reason == "tool_calls" and choice.message.content is None
        found = [(call.function.name, json.loads(call.function.arguments)) for call in calls]
        assert found == [(call.name, call.arguments) for call in reply.tool_calls]
        assert len({call.id for call in calls}) == len(calls)

        parts: dict[int, list[str]] = {}
        for chunk in client.chat.completions.create(**request, stream=True):
            for call in chunk.choices[0].delta.tool_calls or ():
                name_and_arguments = parts.setdefault(call.index, ["", ""])
                name_and_arguments[0] += call.function.name or ""
                name_and_arguments[1] += call.function.arguments or ""
            reason = chunk.choices[0].finish_reason
        assert [(name, json.loads(arguments)) for name, arguments in parts.values()] == found
        assert sorted(parts) == list(range(len(found))) and reason == "tool_calls"


def test_tool_choice_may_allow_some_of_the_functions(client: openai.OpenAI, model: TextModel) -> None:
    def allowed(mode: str, *names: str) -> Any:
        named = [{"type": "function", "function": {"name": name}} for name in names]
        return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": named}}

    request: dict[str, Any] = {"model": "phone", "messages": [USER], "temperature": 1.5}
    names = {"set_timer", "take_photo"}
    for offered in (tools(model), "all"):
        called = set()
        for seed in range(8):
            choice = allowed("required", *sorted(names), "take_photo")
            given = {"tools": offered} if offered != "all" else {"extra_body": {"tools": "all"}}
            [answer] = client.chat.completions.create(**request, **given, seed=seed, tool_choice=choice).choices
            called |= {call.function.name for call in answer.message.tool_calls}
        assert called == names
    request["tools"] = tools(model)
    [answer] = client.chat.completions.create(**request, tool_choice=allowed("auto")).choices
    assert not answer.message.tool_calls
    for choice in (allowed("required"), allowed("auto", "set_timer", "unknown"), allowed("none", "set_timer")):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(**request, tool_choice=choice)
        assert str(caught.value.param).startswith("tool_choice")


def test_tool_choice_named_none_and_one_call_only(client: openai.OpenAI, model: TextModel) -> None:
    request: dict[str, Any] = {"model": "phone", "messages": [USER], "tools": tools(model), "max_tokens": 60}
    named = {"type": "function", "function": {"name": "take_photo"}}
    [choice] = client.chat.completions.create(**request, tool_choice=named, parallel_tool_calls=False).choices
    assert [call.function.name for call in choice.message.tool_calls or ()] == ["take_photo"]
    [choice] = client.chat.completions.create(**request, tool_choice="none").choices
    assert choice.message.tool_calls is None and choice.message.content == model.chat([USER], max_tokens=60).content
    [choice] = client.chat.completions.create(**(request | {"tools": []})).choices
    assert choice.message.tool_calls is None


def test_a_reply_with_calls_and_its_results_can_be_sent_back(client: openai.OpenAI, model: TextModel) -> None:
    request: dict[str, Any] = {"model": "phone", "tools": tools(model), "tool_choice": "required"}
    message = client.chat.completions.create(messages=[USER], **request).choices[0].message
    assert message.tool_calls
    results = [{"role": "tool", "tool_call_id": call.id, "content": "ok"} for call in message.tool_calls]
    history = [USER, message, *results, {"role": "user", "content": "谢谢"}]
    response = client.chat.completions.create(messages=history, max_tokens=60, **request)
    as_dicts = [each.model_dump() if each is message else each for each in history]
    expected = model.prepare_chat(as_dicts, tools="all").request.prompt_ids
    assert response.usage is not None and response.usage.prompt_tokens == len(expected)


def test_chinese_role_names_and_vllm_fields_are_understood(client: openai.OpenAI) -> None:
    chinese = [{"role": "系统", "content": "你好"}, {"role": "用户", "content": "嗨"}]
    english = [{"role": "system", "content": "你好"}, {"role": "user", "content": [{"type": "text", "text": "嗨"}]}]
    extra = {"repetition_penalty": 1.1, "stop_token_ids": [57001], "top_k": 40, "min_p": 0.01}
    texts = [
        client.chat.completions.create(model="phone", messages=messages, extra_body=extra, user="me", **SAMPLED)
        for messages in (chinese, english)
    ]
    assert texts[0].choices[0].message.content == texts[1].choices[0].message.content


def test_stop_strings_are_cut_off(client: openai.OpenAI, model: TextModel) -> None:
    whole = model.generate("Set a", max_tokens=40)
    stop = whole[4:6]
    response = client.completions.create(model="phone", prompt="Set a", max_tokens=40, temperature=0, stop=stop)
    assert response.choices[0].text == whole[: whole.index(stop)] and response.choices[0].finish_reason == "stop"


def test_concurrent_requests_give_what_sequential_ones_give(client: openai.OpenAI, model: TextModel) -> None:
    def ask(number: int) -> str:
        content = "call Alice " * (1 + number % 5) + str(number)
        messages = [{"role": "user", "content": content}]
        options = {"max_tokens": 8 + number, "seed": number, "temperature": [0.0, 1.0][number % 2]}
        if number % 3 == 0:
            call = client.chat.completions.create(
                model="phone", messages=messages, tools=tools(model), tool_choice="required", **options
            )
            return json.dumps([each.model_dump(exclude={"id"}) for each in call.choices[0].message.tool_calls or ()])
        stream = client.chat.completions.create(model="phone", messages=messages, stream=True, **options)
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream)

    sequential = [ask(number) for number in range(12)]
    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(ask, range(12))) == sequential
