"""Keys of messages that nobody reads, counted, so that a misspelt or unknown setting is told, not lost in silence.

Data sets carry ids, ratings and dates beside what was said, so such a key is no error. But `weigth: 0`, or `thinking`
where `reasoning_content` is read, changes what the model learns, and nothing in the trained model would show it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from leveret.chat.messages import READ_KEYS
from leveret.data.conversation_formats import MESSAGE_ROLES, PAIR_KEYS, TURN_KEYS, TURN_KEYS_OF_OTHER_ROLES
from leveret.data.files import ReadReport, Record
from leveret.spelling import mistyped

HOLDERS = ("messages", "conversations", "conversation", "prompt", "query", "question", "completion", "response",
           "chosen", "rejected")  # fmt: skip
"""Keys of a record that may hold messages."""

_NOTHING: tuple[object, ...] = (None, "", [], {})
"""Values with which nothing is lost."""


def count_unread(record: Record, report: ReadReport) -> None:
    """Count the keys of a record's messages that no reader looks at, and remember where the first one stood."""
    for key in _unread(record):
        report.unread[key] += 1
        report.first_unread = report.first_unread or record.key


def unread_line(report: ReadReport) -> str | None:
    """One line for people about what was counted; None where every key was read."""
    if not report.unread:
        return None
    return f"nothing reads {', '.join(map(_told, report.unread.items()))} in messages; first at {report.first_unread}"


def _unread(record: Record) -> Iterator[str]:
    for holder in HOLDERS:
        value = record.fields.get(holder)
        for message in [value] if isinstance(value, Mapping) else value if isinstance(value, list) else ():
            if isinstance(message, Mapping):
                read = _keys_read(holder, message)
                yield from (str(key) for key, value in message.items() if key not in read and value not in _NOTHING)


def _keys_read(holder: str, message: Mapping[str, Any]) -> Iterable[str]:
    """What the reader of this message looks at, as conversation_formats.py decides it."""
    if holder == "conversation":
        return PAIR_KEYS
    if holder == "conversations" and "role" in message and message["role"] not in MESSAGE_ROLES:
        return TURN_KEYS_OF_OTHER_ROLES
    return READ_KEYS if "role" in message else TURN_KEYS


def _told(counted: tuple[str, int]) -> str:
    key, count = counted
    near = mistyped(key, {*READ_KEYS, *TURN_KEYS, *PAIR_KEYS})
    return f"{key!r} ({count:,}{f'; did you mean {near!r}?' if near else ''})"
