"""What training data is made of, whatever file it came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from leveret.chat.messages import Message


@dataclass(frozen=True, kw_only=True)
class Document:
    """A text to pretrain on."""

    text: str
    source: str
    """Where it came from, for people: `path` or `path:line`."""


@dataclass(frozen=True, kw_only=True)
class Conversation:
    """A conversation to fine-tune on."""

    messages: tuple[Message, ...]
    key: str
    """Where it came from, for people: `path:line`."""
    tools: tuple[dict[str, Any], ...] | None = None
    """The tools it was had with, in the OpenAI form."""


@dataclass(frozen=True, kw_only=True)
class Preference:
    """One prompt with a better and a worse continuation."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    key: str
