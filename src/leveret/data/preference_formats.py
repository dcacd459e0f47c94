"""The forms in which people write preferences: one prompt, a better and a worse continuation.

| format          | recognised by                                                                                  |
|-----------------|------------------------------------------------------------------------------------------------|
| prompt          | `prompt` (or `question`) with `chosen` and `rejected`: each a text, a message or messages      |
| implicit prompt | `chosen` and `rejected` alone: two conversations (messages, or texts with `Human:` and         |
|                 | `Assistant:`) with a common beginning, which is the prompt                                     |
| sharegpt        | `conversations` with `chosen` and `rejected` turns                                             |
| alpaca          | `instruction` (and `input`, `system`, `history`) with `chosen` and `rejected` texts            |
| messages        | `messages` ending with the better reply, and `rejected_response`                               |
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from leveret.chat.messages import Message
from leveret.data.conversation_formats import (
    alpaca_prompt,
    optional_text,
    prompt_of,
    read_messages,
    read_turn,
    read_turns,
    text_of,
    under_system,
)
from leveret.data.examples import Preference
from leveret.data.files import Record

_SPEAKER = re.compile(r"(?:\A|\n\n)(Human|Assistant): ?")


def preference_from(record: Record) -> tuple[str, Preference]:
    """The format of a record and its content; DataError naming the keys it has, and those it could have."""
    fields = record.fields
    if "messages" in fields and "rejected_response" in fields:
        return "messages", _from_messages(record)
    if not {"chosen", "rejected"} <= set(fields):
        raise record.error(
            f"the keys {list(fields)} are not those of a preference",
            hint='a preference needs "chosen" and "rejected" (and "prompt", "question", "instruction" or '
            '"conversations"), or "messages" with "rejected_response"',
        )
    if "conversations" in fields:
        return "sharegpt", _with_prompt(
            record, under_system(record, read_turns(record, fields["conversations"], "conversations"))
        )
    if "instruction" in fields:
        return "alpaca", _with_prompt(record, alpaca_prompt(record))
    for key in ("prompt", "question"):
        if key in fields:
            return "prompt", _with_prompt(record, prompt_of(record, key))
    return "implicit prompt", _implicit(record)


def _with_prompt(record: Record, prompt: list[Message]) -> Preference:
    """Both continuations; where they repeat the prompt, it is taken off."""
    chosen, rejected = (_continuation(record, key, prompt) for key in ("chosen", "rejected"))
    return Preference(prompt=tuple(prompt), chosen=chosen, rejected=rejected, key=record.key)


def _continuation(record: Record, key: str, prompt: list[Message]) -> tuple[Message, ...]:
    value = record.fields[key]
    if isinstance(value, str):
        return (Message("assistant", text_of(record, value, f'"{key}"')),)
    messages = _message_list(record, value, key)
    bare = prompt[1:] if prompt and prompt[0].role == "system" else prompt  # a `system` key need not be repeated
    for begun in (prompt, bare):
        if len(messages) > len(begun) and messages[: len(begun)] == begun:
            return tuple(messages[len(begun) :])
    return tuple(messages)


def _implicit(record: Record) -> Preference:
    chosen, rejected = (_conversation(record, key) for key in ("chosen", "rejected"))
    size = 0
    while size < min(len(chosen), len(rejected)) and chosen[size] == rejected[size]:
        size += 1
    while size > 0 and size == min(len(chosen), len(rejected)):
        size -= 1  # equal, or one goes on: leave each at least its last message
    if size == 0:
        raise record.error(
            '"chosen" and "rejected" do not begin with the same message', hint='give the prompt under "prompt"'
        )
    prompt = under_system(record, chosen[:size])
    return Preference(
        prompt=tuple(prompt), chosen=tuple(chosen[size:]), rejected=tuple(rejected[size:]), key=record.key
    )


def _conversation(record: Record, key: str) -> list[Message]:
    value = record.fields[key]
    if not isinstance(value, str):
        return _message_list(record, value, key)
    pieces = _SPEAKER.split(text_of(record, value, f'"{key}"'))
    if len(pieces) < 3 or pieces[0].strip():
        raise record.error(
            f'"{key}" is a text without "Human:" and "Assistant:", and there is no prompt',
            hint='give the prompt under "prompt"',
        )
    roles = {"Human": "user", "Assistant": "assistant"}
    return [Message(roles[who], said.strip()) for who, said in zip(pieces[1::2], pieces[2::2], strict=True)]


def _message_list(record: Record, value: Any, key: str) -> list[Message]:
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, list) and value and isinstance(value[0], Mapping) and "from" in value[0]:
        return [read_turn(record, turn, f'"{key}"[{index}]') for index, turn in enumerate(value)]
    return read_messages(record, value, key)


def _from_messages(record: Record) -> Preference:
    messages = under_system(record, read_messages(record, record.fields["messages"], "messages"))
    if len(messages) < 2 or messages[-1].role != "assistant":
        raise record.error('"messages" must end with the assistant\'s better reply')
    worse = Message("assistant", optional_text(record, "rejected_response"))
    return Preference(prompt=tuple(messages[:-1]), chosen=(messages[-1],), rejected=(worse,), key=record.key)
