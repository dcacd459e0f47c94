"""Read training data from files and folders: documents, conversations, preferences.

    report = ReadReport()
    conversations = list(read_conversations(["sft.jsonl", "more/"], report))
    for line in report.lines(): print(line)

The format of each record is found from its keys (conversation_formats.py, preference_formats.py). A wrong record is a
DataError that begins with `file:line` and says what to change; a record that is right but of no use is left out and
counted in the report. Records come in a fixed order, one at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from leveret.chat.messages import Message
from leveret.data.conversation_formats import conversation_format, text_of, tools_of
from leveret.data.examples import Conversation, Document, Preference
from leveret.data.files import RECORD_SUFFIXES, ReadReport, Record, data_files, kind_of, read_records, read_text
from leveret.data.preference_formats import preference_from
from leveret.data.unread_keys import count_unread
from leveret.errors import DataError

Paths = str | Path | Sequence[str | Path]

TEXT_KEYS = ("text", "content")
"""Where a record of a pretraining file has its text."""

NOT_WANTED_KEYS = ("label", "kto_tag")
"""Where a record for KTO says, by true or false, whether its reply is one to give; TRL's name and LLaMA-Factory's."""


def read_documents(paths: Paths, report: ReadReport | None = None) -> Iterator[Document]:
    """Texts: each text file is one, and each record of a JSON file with a `text` (or `content`)."""
    report = report if report is not None else ReadReport()
    for path, named in data_files(paths, report):
        report.num_files += 1
        if kind_of(path) in RECORD_SUFFIXES:
            documents: Iterator[Document] = map(_document, read_records(path))
        else:
            documents = _text_file(path, named, report)
        for document in documents:
            if document.text.strip():
                report.num_records += 1
                yield document
            else:
                report.dropped["empty texts"] += 1


def read_conversations(paths: Paths, report: ReadReport | None = None) -> Iterator[Conversation]:
    """Conversations in any of the known formats; those that are empty, or whose reply is empty or not to be given, are
    left out. One in which nobody replies is a text like any other: whether it trains anything is for the mask to say.
    """
    report = report if report is not None else ReadReport()
    for record in _records(paths, report):
        name, reader = conversation_format(record)
        messages = reader(record)
        report.formats[name] += 1
        count_unread(record, report)
        if {"chosen", "rejected"} <= record.fields.keys() and messages and messages[-1].role != "assistant":
            raise record.error(
                'this is a preference: the replies stand under "chosen" and "rejected", and a conversation is '
                "trained on what it holds itself",
                hint="put the reply to learn at the end of the conversation",
            )
        if any(record.fields.get(key) is False for key in NOT_WANTED_KEYS):
            report.dropped["replies that are not wanted (label or kto_tag is false)"] += 1
            continue
        if (reason := _why_empty(messages)) is not None:
            report.dropped[reason] += 1
            continue
        report.num_records += 1
        yield Conversation(messages=tuple(messages), key=record.key, tools=tools_of(record))


def read_preferences(paths: Paths, report: ReadReport | None = None) -> Iterator[Preference]:
    """Preferences in any of the known formats, those whose two sides are equal or empty left out."""
    report = report if report is not None else ReadReport()
    for record in _records(paths, report):
        name, preference = preference_from(record)
        report.formats[name] += 1
        count_unread(record, report)
        if preference.chosen == preference.rejected:
            report.dropped["preferences whose two sides are equal"] += 1
        elif not all(any(m.content or m.tool_calls for m in side) for side in (preference.chosen, preference.rejected)):
            report.dropped["preferences with an empty side"] += 1
        else:
            report.num_records += 1
            yield preference


def _why_empty(messages: Sequence[Message]) -> str | None:
    """Why there is nothing to learn from a conversation, whatever of it is trained; None where there is something."""
    replies = [message for message in messages if message.role == "assistant"]
    if not any(message.content or message.tool_calls for message in replies or messages):
        return "conversations whose reply is empty" if replies else "empty conversations"
    return None


def _records(paths: Paths, report: ReadReport) -> Iterator[Record]:
    for path, named in data_files(paths, report):
        if kind_of(path) in RECORD_SUFFIXES:
            report.num_files += 1
            yield from read_records(path)
        elif named:
            raise DataError("a text file holds no records", path=path, hint="give a .jsonl or .json file")
        else:
            report.dropped["text files beside the records"] += 1


def _document(record: Record) -> Document:
    for key in TEXT_KEYS:
        if key in record.fields:
            return Document(text=text_of(record, record.fields[key], f'"{key}"'), source=record.key)
    raise record.error(
        f"there is no text to train on: the record has the keys {list(record.fields)}",
        hint='put the text under "text"; conversations are for `leveret finetune`',
    )


def _text_file(path: Path, named: bool, report: ReadReport) -> Iterator[Document]:
    try:
        yield Document(text=read_text(path), source=str(path))
    except DataError as error:
        if named or not isinstance(error.__cause__, UnicodeDecodeError):
            raise
        report.dropped["files that are not UTF-8"] += 1
