"""Messages in the OpenAI form, right and wrong."""

from __future__ import annotations

from typing import Any

import pytest

from leveret.chat.messages import Message, ToolCall, messages_from
from leveret.errors import RequestError


def test_openai_messages_are_read_with_calls_parts_and_training_flags() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"x": "天"}'}}
    messages = messages_from(
        [
            {"role": "developer", "content": "Be brief."},
            {"role": "用户", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": None, "tool_calls": [call], "loss": False},
            {"role": "tool", "content": "4", "tool_call_id": "c1", "name": "f"},
            {"role": "assistant", "content": "four", "reasoning_content": "2 + 2", "weight": 1},
        ]
    )
    assert messages == [
        Message("system", "Be brief."),
        Message("user", "ab"),
        Message("assistant", "", tool_calls=(ToolCall("f", {"x": "天"}, id="c1"),), trained=False),
        Message("tool", "4", tool_call_id="c1", name="f"),
        Message("assistant", "four", reasoning="2 + 2", trained=True),
    ]
    assert messages_from([message.to_dict() for message in messages[:2]]) == messages[:2]
    assert not any(message.trusted for message in messages)


@pytest.mark.parametrize(
    ("messages", "place"),
    [
        ("hello", "messages"),
        (["hello"], "messages[0]"),
        ([{"content": "x"}], "messages[0].role"),
        ([{"role": "user"}], "messages[0].content"),
        ([{"role": "user", "content": 3}], "messages[0].content"),
        ([{"role": "user", "content": "\ud800"}], "messages[0].content"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "messages[0].content[0]"),
        ([{"role": "user", "content": "x", "name": 3}], "messages[0].name"),
        ([{"role": "assistant", "content": "x", "reasoning_content": ["x"]}], "messages[0].reasoning_content"),
        ([{"role": "user", "content": "x", "weight": 0.5}], "messages[0]"),
        ([{"role": "assistant", "tool_calls": [{"function": {}}]}], "messages[0].tool_calls[0]"),
        (
            [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]}],
            "messages[0].tool_calls[0]",
        ),
    ],
)
def test_a_wrong_message_is_refused_with_its_place(messages: Any, place: str) -> None:
    with pytest.raises(RequestError) as caught:
        messages_from(messages)
    assert caught.value.param == place
    assert place in str(caught.value)
