"""Files of conversations or of tool requests become samples: ids, what of them is trained, and where they came from.

A tool call is written with the functional tokens of the tool set, so an assistant message of the model is either
text or calls, and the tools need not be described in the prompt. The strings of a call are spelled as in the user
message before it (see tools/functional.py). What the dialect writes is trusted: its special tokens are tokens.
Nothing else in the data ever is.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from leveret.chat.messages import Message
from leveret.chat.template import ChatTemplate, EncodeText
from leveret.data.examples import Conversation
from leveret.data.files import RECORD_SUFFIXES, ReadReport, data_files, kind_of, opened
from leveret.data.masks import Mask
from leveret.data.packing import Sample
from leveret.data.readers import read_conversations
from leveret.data.samples import render_sample
from leveret.data.splitting import split_conversation
from leveret.engine.tool_calls import with_calls_rendered
from leveret.errors import DataError, RequestError
from leveret.forked import in_processes
from leveret.tokenizer.dropout import BpeDropout
from leveret.tokenizer.files import Tokenizer
from leveret.tools.functional import FunctionalDialect
from leveret.tools.requests import read_request, request_lines

Parts = list[tuple[Conversation, Sample]]
"""What one conversation became: itself, or the parts that it was divided into, each beside its sample."""


@dataclass(frozen=True, kw_only=True)
class Writing:
    """How conversations are written for training."""

    tokenizer: Tokenizer
    template: ChatTemplate
    dialect: FunctionalDialect | None = None
    mask: Mask = "assistant"
    split_above: int | None = None
    """Conversations of more tokens are divided at their turns. None: none is."""

    def sample(self, conversation: Conversation, *, encode_text: EncodeText | None = None) -> Sample:
        """One conversation as it is trained."""
        sample = render_sample(self.tokenizer, self.template, conversation, mask=self.mask, encode_text=encode_text)
        return sample.compact()

    def parts(self, conversation: Conversation, report: ReadReport) -> Parts:
        """The same, or what it was divided into; parts that train nothing are left out."""
        if not self.template.writes_reasoning:
            unwritten = sum(bool(message.reasoning) for message in conversation.messages)
            report.dropped["reasoning_content of messages, which the chat template does not write"] += unwritten
        most = self.split_above
        if most is None:
            return [(conversation, self.sample(conversation))]
        found = split_conversation(conversation, self.sample, lambda sample: len(sample.ids) <= most)
        if len(found) == 1:
            return found
        report.num_split += 1
        report.num_parts += len(found)
        trained = [part for part in found if part[1].num_trained]
        report.dropped["parts of long conversations in which nothing is trained"] += len(found) - len(trained)
        return trained or found[:1]

    def forms(
        self, written: Sequence[tuple[Conversation, Sample]], dropout: BpeDropout, *, passes: int, seed: int
    ) -> list[list[Sample]]:
        """The samples in other tokens for each pass; what they are follows from the seed, the pass and the place."""

        def in_pass(number: int, part: Sequence[tuple[int, Conversation]]) -> list[Sample]:
            return [
                self.sample(conversation, encode_text=dropout.reader(f"{seed}:{number}:{place}"))
                for place, conversation in part
            ]

        places = [(place, conversation) for place, (conversation, _) in enumerate(written)]
        return [in_processes(partial(in_pass, number), places) for number in range(passes)]


def read_samples(path: Path, report: ReadReport, writing: Writing) -> list[Parts]:
    """All samples of a file or folder, each beside what it says; those that come of one conversation in one list.

    Errors name the file and the line of what cannot be read or written.
    """
    found = []
    for file, _ in data_files(path, report):
        if kind_of(file) not in RECORD_SUFFIXES:
            report.dropped["text files beside the records"] += 1
        elif _holds_requests(file):
            found += _requests(file, report, writing)
        else:
            found += _conversations(list(read_conversations(file, report)), report, writing)
    report.dropped = +report.dropped
    return found


def _conversations(conversations: Sequence[Conversation], report: ReadReport, writing: Writing) -> list[Parts]:
    def write(part: Sequence[Conversation]) -> list[tuple[list[Parts], ReadReport]]:
        counted = ReadReport()
        return [([writing.parts(_in_dialect(one, writing.dialect), counted) for one in part], counted)]

    found = []
    for groups, counted in in_processes(write, conversations):
        found += groups
        report.num_split += counted.num_split
        report.num_parts += counted.num_parts
        report.dropped += counted.dropped
    return found


def _in_dialect(conversation: Conversation, dialect: FunctionalDialect | None) -> Conversation:
    """With its calls written in functional tokens, by the function that serving uses for the turns before."""
    if dialect is None:
        return conversation
    if any(message.tool_calls and message.content.strip() for message in conversation.messages):
        raise DataError(
            f"{conversation.key}: an assistant message has both text and tool calls; with functional tokens it is "
            "either one or the other",
            hint="remove the text or the calls, or fine-tune without `tools` on a template that writes both",
        )
    try:
        messages = with_calls_rendered(conversation.messages, dialect)
    except RequestError as error:
        raise DataError(f"{conversation.key}: {error.message}", hint=error.hint) from error
    return replace(conversation, messages=tuple(messages), tools=None)


def _requests(file: Path, report: ReadReport, writing: Writing) -> list[Parts]:
    """Tool requests as conversations of two messages; where no tool fits, the answer is the no-tool token."""
    dialect = writing.dialect
    if dialect is None:
        raise DataError("holds tool requests, but no tool set is given", path=file, hint="set `tools` to its JSON file")

    def write(part: Sequence[tuple[int, tuple[int, str]]]) -> list[Parts]:
        found: list[Parts] = []
        for number, (line_number, line) in part:
            request = read_request(file, line_number, line, dialect.tools)
            answer = Message("assistant", dialect.render(request.calls, request.query), trusted=True)
            messages = (Message("user", request.query), answer)
            conversation = Conversation(messages=messages, key=f"{file}, request {number}")
            found.append([(conversation, writing.sample(conversation))])
        return found

    lines = request_lines(file)
    report.num_files += 1
    report.num_records += len(lines)
    report.formats["tool requests"] += len(lines)
    return in_processes(write, list(enumerate(lines, start=1)))


def _holds_requests(file: Path) -> bool:
    """Whether the first line is a JSON object with a query and calls."""
    with opened(file) as lines:
        first = next((line for line in lines if line.strip()), "")
    try:
        entry = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(entry, dict) and {"query", "calls"} <= entry.keys()
