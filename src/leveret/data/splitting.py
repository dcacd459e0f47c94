"""Conversations too long for a row, divided at the borders of their turns.

A turn is what the user says up to the next thing the user says after a reply; the system message and the tools open
each part again. Turns go into a part as long as they fit. What a later part loses is the turns before it, so this suits
conversations whose turns stand alone. A single turn that is too long stays as it is, for the caller to leave out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from leveret.chat.messages import Message
from leveret.data.examples import Conversation

T = TypeVar("T")


def split_conversation(
    conversation: Conversation, render: Callable[[Conversation], T], fits: Callable[[T], bool]
) -> list[tuple[Conversation, T]]:
    """The parts of a conversation, each with what `render` makes of it; itself alone where it fits.

    All parts have the key of the whole, so that they are found and left out together.
    """
    whole = render(conversation)
    if fits(whole):
        return [(conversation, whole)]
    opening, turns = _turns(conversation.messages)
    parts: list[tuple[Conversation, T]] = []
    first = 0
    for last in range(len(turns)):
        messages = (*opening, *(message for turn in turns[first : last + 1] for message in turn))
        part = replace(conversation, messages=messages)
        written = render(part)
        if first < last and not fits(written):
            first = last
            part = replace(conversation, messages=(*opening, *turns[last]))
            written = render(part)
        elif first < last:
            parts.pop()
        parts.append((part, written))
    return parts or [(conversation, whole)]


def _turns(messages: tuple[Message, ...]) -> tuple[tuple[Message, ...], list[tuple[Message, ...]]]:
    """The system messages at the beginning, and the turns; every turn has a reply, if the conversation has one."""
    count = next((place for place, message in enumerate(messages) if message.role != "system"), len(messages))
    turns: list[list[Message]] = []
    answered = True
    for message in messages[count:]:
        if not turns or (message.role == "user" and answered):
            turns.append([])
            answered = False
        turns[-1].append(message)
        answered = answered or message.role == "assistant"
    if len(turns) > 1 and not answered:
        last = turns.pop()
        turns[-1] += last
    return messages[:count], [tuple(turn) for turn in turns]
