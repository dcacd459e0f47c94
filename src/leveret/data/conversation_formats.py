"""The forms in which people write conversations, each turned into messages.

| format            | recognised by              | one record                                                          |
|-------------------|----------------------------|---------------------------------------------------------------------|
| messages          | `messages`                 | OpenAI messages, with tool calls, `tools`, per-message `loss`       |
| sharegpt          | `conversations`            | `{"from": "human" or "gpt" or ..., "value": ...}`, `system`, `tools`|
| firefly           | `conversation`             | `{"human": ..., "assistant": ...}` pairs, `system`                  |
| alpaca            | `instruction` and `output` | with `input`, `system`, `history`; input joins after a newline      |
| prompt-completion | `prompt` and `completion`  | texts or lists of messages; also `prompt` or `query` with           |
|                   |                            | `response`; `system`; `history` with a text                         |

Each function takes a record and gives its messages, or raises a DataError that names the key and the fix.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from leveret.chat.messages import ROLE_ALIASES, Message, ToolCall, checked_text, messages_from, said_to_be_trained
from leveret.config import suggest
from leveret.data.files import Record
from leveret.errors import RequestError
from leveret.spelling import mistyped

SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "model": "assistant",
    "assistant": "assistant",
    "bot": "assistant",
    "chatgpt": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
    "tool_response": "tool",
    "function_call": "assistant",
    "tool_call": "assistant",
    "系统": "system",
    "用户": "user",
    "助手": "assistant",
}

CALLERS = ("function_call", "tool_call")
"""Speakers of calls, as JSON."""

ROLES = ("system", "developer", "user", "assistant", "tool")
"""Roles that every template may be given; others are left to the template."""

MESSAGE_ROLES = (*ROLES, *ROLE_ALIASES)
"""The roles by which a ShareGPT turn with `role` is known for a message in OpenAI's form."""

TURN_KEYS = frozenset({"from", "value", "loss", "weight"})
"""The keys of a ShareGPT turn that are read."""

TURN_KEYS_OF_OTHER_ROLES = frozenset({"role", "content", "loss", "weight"})
"""The same of a turn that says `role` and means one of ShareGPT's speakers."""

PAIR_KEYS = frozenset({"human", "assistant"})
"""The keys of a Firefly pair that are read."""

Reader = Callable[[Record], list[Message]]


def conversation_format(record: Record) -> tuple[str, Reader]:
    """The format of a record and its reader; DataError naming the keys it has, and those it could have."""
    for name, keys, reader in _FORMATS:
        if all(key in record.fields for key in keys):
            return name, reader
    wanted = "; ".join(f"{name}: {', '.join(keys)}" for name, keys, _ in _FORMATS)
    known = sorted({key for _, keys, _ in _FORMATS for key in keys})
    unknown = [key for key in record.fields if key not in known]
    nearest = [f"{key!r} looks like {found!r}" for key in unknown if (found := suggest(key, known))]
    raise record.error(
        f"the keys {list(record.fields)} are not those of a conversation" + "".join(f"; {text}" for text in nearest),
        hint=f"known formats and their keys are {wanted}",
    )


def tools_of(record: Record) -> tuple[dict[str, Any], ...] | None:
    """The tools of a record: a list, or the JSON text of one; None where there are none."""
    tools = record.fields.get("tools")
    if isinstance(tools, str):
        tools = _parsed(record, tools, '"tools"') if tools.strip() else None
    if not tools:
        return None
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise record.error('"tools" must be a list of objects, or the JSON text of one')
    return tuple(tools)


def read_messages(record: Record, value: Any, key: str) -> list[Message]:
    """OpenAI messages under `key`. Templates write any role, so a mistyped one would be read and never trained."""
    try:
        messages = messages_from(value)
    except RequestError as error:
        raise record.error(error.message.replace("messages", f'"{key}"', 1), hint=error.hint) from error
    for index, message in enumerate(messages):
        near = SHAREGPT_ROLES.get(message.role) or mistyped(message.role, ROLES)
        if near is not None and message.role not in (*ROLES, "observation"):
            raise record.error(
                f'"{key}"[{index}] has "role": {message.role!r}, which is no role of a message',
                hint=f"did you mean {near!r}?",
            )
    return messages


def read_turns(record: Record, turns: Any, key: str) -> list[Message]:
    """ShareGPT turns under `key`."""
    if not isinstance(turns, list):
        raise record.error(f'"{key}" must be a list of {{"from": ..., "value": ...}}')
    return [read_turn(record, turn, f'"{key}"[{index}]') for index, turn in enumerate(turns)]


def read_turn(record: Record, turn: Any, place: str) -> Message:
    """One ShareGPT turn."""
    if isinstance(turn, Mapping) and "role" in turn:  # some files mix the two spellings
        if turn["role"] in MESSAGE_ROLES:
            return _message(record, turn, place)
        turn = {**turn, "from": turn["role"], "value": turn.get("content")}
    if not isinstance(turn, Mapping) or "from" not in turn or "value" not in turn:
        raise record.error(f'{place} must be {{"from": ..., "value": ...}}')
    speaker = turn["from"]
    role = SHAREGPT_ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        nearest = suggest(str(speaker), list(SHAREGPT_ROLES))
        raise record.error(
            f'{place} has "from": {speaker!r}, which is not a known speaker',
            hint=f"did you mean {nearest!r}?" if nearest else f"known are {', '.join(SHAREGPT_ROLES)}",
        )
    value = text_of(record, turn["value"], f'{place} "value"')
    try:
        trained = said_to_be_trained(turn, place)
    except RequestError as error:
        raise record.error(error.message) from error
    if speaker in CALLERS:
        return Message("assistant", "", tool_calls=_calls(record, value, place), trained=trained)
    return Message(role, value, trained=trained)


def text_of(record: Record, value: Any, place: str) -> str:
    """`value` if it is a text."""
    if not isinstance(value, str):
        raise record.error(f"{place} must be a text, not {type(value).__name__}")
    try:
        return checked_text(value, place)
    except RequestError as error:
        raise record.error(error.message) from error


def optional_text(record: Record, key: str) -> str:
    """The text under `key`, empty where it is missing or null."""
    value = record.fields.get(key)
    return "" if value is None else text_of(record, value, f'"{key}"')


def alpaca_prompt(record: Record) -> list[Message]:
    """System message, history and instruction of an alpaca record."""
    instruction = text_of(record, record.fields["instruction"], '"instruction"')
    question = "\n".join(part for part in (instruction, optional_text(record, "input")) if part)
    return [*_system(record), *_history(record), Message("user", question)]


def prompt_of(record: Record, key: str) -> list[Message]:
    """A prompt that is a text or a list of messages."""
    value = record.fields[key]
    if isinstance(value, str):
        return [*_system(record), *_history(record), Message("user", text_of(record, value, f'"{key}"'))]
    if record.fields.get("history"):
        raise record.error(f'"history" stands beside a "{key}" of messages', hint=f'put it in front of them in "{key}"')
    return under_system(record, read_messages(record, value, key))


def under_system(record: Record, messages: list[Message]) -> list[Message]:
    """Messages behind the text under `system`, unless they begin with a system message of their own."""
    return messages if messages and messages[0].role == "system" else [*_system(record), *messages]


def _messages(record: Record) -> list[Message]:
    return under_system(record, read_messages(record, record.fields["messages"], "messages"))


def _sharegpt(record: Record) -> list[Message]:
    return under_system(record, read_turns(record, record.fields["conversations"], "conversations"))


def _firefly(record: Record) -> list[Message]:
    turns = record.fields["conversation"]
    if not isinstance(turns, list):
        raise record.error('"conversation" must be a list of {"human": ..., "assistant": ...}')
    messages = _system(record)
    for index, turn in enumerate(turns):
        place = f'"conversation"[{index}]'
        if not isinstance(turn, Mapping) or not set(turn) >= PAIR_KEYS:
            raise record.error(f'{place} must have "human" and "assistant"')
        messages.append(Message("user", text_of(record, turn["human"], f'{place} "human"')))
        messages.append(Message("assistant", text_of(record, turn["assistant"], f'{place} "assistant"')))
    return messages


def _alpaca(record: Record) -> list[Message]:
    return [*alpaca_prompt(record), Message("assistant", text_of(record, record.fields["output"], '"output"'))]


def _prompt_completion(record: Record) -> list[Message]:
    prompt_key, key = ("prompt" if "prompt" in record.fields else "query"), "completion"
    if key not in record.fields:
        key = "response"
    prompt, completion = prompt_of(record, prompt_key), record.fields[key]
    if isinstance(completion, str):
        return [*prompt, Message("assistant", text_of(record, completion, f'"{key}"'))]
    return [*prompt, *read_messages(record, completion, key)]


def _history(record: Record) -> list[Message]:
    """What was said before, under `history`."""
    messages: list[Message] = []
    history = record.fields.get("history") or []
    if not isinstance(history, list):
        raise record.error('"history" must be a list of [question, answer] pairs')
    for index, pair in enumerate(history):
        if not isinstance(pair, list) or len(pair) != 2:
            raise record.error(f'"history"[{index}] must be a pair [question, answer]')
        asked, answered = (text_of(record, text, f'"history"[{index}]') for text in pair)
        messages += [Message("user", asked), Message("assistant", answered)]
    return messages


def _system(record: Record) -> list[Message]:
    system = optional_text(record, "system")
    return [Message("system", system)] if system else []


def _message(record: Record, turn: Mapping[str, Any], place: str) -> Message:
    """A turn that is a message in OpenAI's form."""
    try:
        return messages_from([turn])[0]
    except RequestError as error:
        raise record.error(error.message.replace("messages[0]", place, 1), hint=error.hint) from error


def _calls(record: Record, value: str, place: str) -> tuple[ToolCall, ...]:
    calls = _parsed(record, value, f"{place} is a function_call whose value")
    if calls == []:
        raise record.error(f"{place} is a function_call of no function", hint="leave it out")
    return tuple(_call(record, call, place) for call in (calls if isinstance(calls, list) else [calls]))


def _call(record: Record, call: Any, place: str) -> ToolCall:
    arguments = call.get("arguments", {}) if isinstance(call, Mapping) else None
    if isinstance(arguments, str):
        arguments = _parsed(record, arguments, f"{place}: what stands under arguments")
    if not isinstance(arguments, Mapping) or not isinstance(call.get("name"), str):
        raise record.error(f'{place} must be a function_call {{"name": ..., "arguments": {{...}}}}')
    return ToolCall(call["name"], dict(arguments))


def _parsed(record: Record, text: str, what: str) -> Any:
    """The value of JSON text inside a record, without what Python reads and no text can hold: NaN, half a character."""
    try:
        value = json.loads(text)
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise record.error(f"{what} is not valid JSON: {error}") from error
    return value


_FORMATS: Sequence[tuple[str, tuple[str, ...], Reader]] = (
    ("messages", ("messages",), _messages),
    ("sharegpt", ("conversations",), _sharegpt),
    ("firefly", ("conversation",), _firefly),
    ("alpaca", ("instruction", "output"), _alpaca),
    ("prompt-completion", ("prompt", "completion"), _prompt_completion),
    ("prompt-completion", ("prompt", "response"), _prompt_completion),
    ("prompt-completion", ("query", "response"), _prompt_completion),
)
