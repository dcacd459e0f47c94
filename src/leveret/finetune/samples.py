"""Files of conversations or of tool requests become samples: ids, what of them is trained, and where they came from.

A tool call is written with the functional tokens of the tool set, so an assistant message of the model is either
text or calls. The strings of a call are spelled as in the user message before it (see tools/functional.py). What
the dialect writes is trusted: its special tokens are tokens. Nothing else in the data ever is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from leveret.chat.messages import Message
from leveret.chat.template import ChatTemplate
from leveret.data.examples import Conversation
from leveret.data.packing import Sample
from leveret.data.readers import read_conversations
from leveret.errors import DataError, LeveretError
from leveret.paths import files_below
from leveret.tokenizer.files import Tokenizer
from leveret.tools.functional import FunctionalDialect
from leveret.tools.requests import read_requests


def read_samples(
    path: Path, *, tokenizer: Tokenizer, template: ChatTemplate, dialect: FunctionalDialect | None
) -> list[Sample]:
    """All samples of a file or folder. DataError with file and line for what cannot be read or written."""
    samples = []
    for conversation in conversations_of(path, dialect):
        try:
            encoded = template.encode(tokenizer, in_dialect(conversation.messages, dialect), tools=conversation.tools)
        except LeveretError as error:
            raise DataError(f"{conversation.key}: {error.message}", hint=error.hint) from error
        samples.append(Sample(ids=encoded.ids, mask=encoded.mask, key=conversation.key))
    return samples


def conversations_of(path: Path, dialect: FunctionalDialect | None) -> Iterator[Conversation]:
    """The conversations of a file or folder; tool requests are read as conversations of two messages."""
    if not path.exists():
        raise DataError("no such file or folder", path=path)
    for file in files_below(path) if path.is_dir() else [path]:
        if _holds_requests(file):
            yield from _requests(file, dialect)
        else:
            yield from read_conversations([file])


def in_dialect(messages: Sequence[Message], dialect: FunctionalDialect | None) -> list[Message]:
    """The messages with their tool calls written as functional tokens (left alone without a dialect)."""
    if dialect is None:
        return list(messages)
    written = []
    query = None
    for message in messages:
        if message.role == "user":
            query = message.content
        if message.tool_calls:
            if message.content.strip():
                raise DataError("an assistant message has both text and tool calls; with functional tokens it has one")
            content = dialect.render(message.tool_calls, query)
            message = replace(message, content=content, tool_calls=(), trusted=True)
        written.append(message)
    return written


def _requests(file: Path, dialect: FunctionalDialect | None) -> Iterator[Conversation]:
    if dialect is None:
        raise DataError("holds tool requests, but no tool set is given", path=file, hint="set `tools` to its JSON file")
    for number, request in enumerate(read_requests(file, dialect.tools), start=1):
        answer = Message("assistant", dialect.render(request.calls, request.query), trusted=True)
        yield Conversation(messages=(Message("user", request.query), answer), key=f"{file}, request {number}")


def _holds_requests(file: Path) -> bool:
    """Whether the first line is a JSON object with a query and calls."""
    with open(file, encoding="utf-8-sig", errors="replace") as lines:
        first = next((line for line in lines if line.strip()), "")
    try:
        entry = json.loads(first)
    except ValueError:
        return False
    return isinstance(entry, dict) and {"query", "calls"} <= entry.keys()
