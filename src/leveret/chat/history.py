"""Keep the newest part of a conversation that fits into a model's context.

A turn is a user's message and everything up to the next one (the reply, tool calls and their results), and is kept
or dropped as a whole: half a turn teaches the model to answer nobody. System messages at the head always stay. Nothing
is cut inside a message, and the caller's list is not changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from leveret.chat.messages import Message
from leveret.chat.template import ChatTemplate
from leveret.errors import RequestError
from leveret.tokenizer.files import Tokenizer


@dataclass(frozen=True, kw_only=True)
class FittedHistory:
    """What was kept of a conversation."""

    messages: tuple[Message, ...]
    ids: list[int]
    """The kept messages as a prompt."""
    num_dropped: int
    """Messages left out, the oldest ones."""


def fit_history(
    template: ChatTemplate,
    tokenizer: Tokenizer,
    messages: Sequence[Message],
    *,
    max_tokens: int,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> FittedHistory:
    """The system messages and as many of the newest turns as make a prompt of at most `max_tokens`.

    RequestError (code `context_length_exceeded`) if the last turn alone is too long.
    """
    head, turns = _split(messages)
    first = _first_turn_that_may_fit(tokenizer, head, turns, max_tokens)
    while True:
        kept = [*head, *(message for turn in turns[first:] for message in turn)]
        ids = template.encode(tokenizer, kept, tools=tools, add_generation_prompt=True).ids
        if len(ids) <= max_tokens:
            return FittedHistory(messages=tuple(kept), ids=ids, num_dropped=len(messages) - len(kept))
        if first >= len(turns) - 1:
            raise RequestError(
                f"the last message and the system message take {len(ids)} tokens, but {max_tokens} are left for them",
                param="messages",
                code="context_length_exceeded",
            )
        first += 1


def _split(messages: Sequence[Message]) -> tuple[list[Message], list[list[Message]]]:
    """The system messages at the head, and the turns after them."""
    size = 0
    while size < len(messages) and messages[size].role == "system":
        size += 1
    turns: list[list[Message]] = []
    for message in messages[size:]:
        if message.role == "user" or not turns:
            turns.append([])
        turns[-1].append(message)
    return list(messages[:size]), turns


def _first_turn_that_may_fit(
    tokenizer: Tokenizer, head: Sequence[Message], turns: Sequence[Sequence[Message]], max_tokens: int
) -> int:
    """Skip turns whose content alone is plainly too long, so that a long history is not rendered once a turn.

    Rendering adds tokens to the contents and can join at most a few at their borders: half is a safe bound.
    """
    left = 2 * max_tokens - _size(tokenizer, head)
    for index in range(len(turns) - 1, -1, -1):
        left -= _size(tokenizer, turns[index])
        if left < 0:
            return min(index + 1, max(len(turns) - 1, 0))
    return 0


def _size(tokenizer: Tokenizer, messages: Sequence[Message]) -> int:
    return sum(len(ids) for ids in tokenizer.encode_batch([message.content for message in messages]))
