"""Answers that call tools: in functional tokens, as text of a dialect, or both.

Each call is given out twice: piece by piece while it is written (`Delta.call_piece`, for clients that are streamed to)
and whole once its end has come (`Delta.tool_call`). An answer may end within a call, mostly by max_tokens; all that was
given out of it then comes once more, together (`Delta.cut_call`). What does not parse, as a model left unconstrained
may write it, or ends before it has a name, is given out as the raw text that it is. Either way `parsed` is False.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

from leveret.chat.messages import ToolCall
from leveret.engine.assembler import TextAssembler
from leveret.engine.functional_reader import FunctionalReader
from leveret.engine.open_call import OpenCalls
from leveret.engine.reply import Delta, ReplyReason, usage_of
from leveret.engine.request import Completion
from leveret.engine.score_line import PlacedScore, ScoreLine
from leveret.engine.token_score import TokenScore
from leveret.errors import ToolError
from leveret.tokenizer.files import Tokenizer
from leveret.tokenizer.stream import StreamDecoder
from leveret.tools.dialects import CallStream
from leveret.tools.functional import FunctionalDialect


class Following(Protocol):
    """A constraint that may have to give up."""

    @property
    def problem(self) -> str | None:
        """Why it did; the answer is then incomplete."""


@dataclass(kw_only=True)
class ToolAnswer:
    """An answer in functional tokens only."""

    tokenizer: Tokenizer
    dialect: FunctionalDialect
    parsed: bool = True
    """False after `finish` when the ids were not calls, or the last call was cut off."""
    _ids: list[int] = field(default_factory=list)
    _num_certain: int = 0
    _num_given: int = 0
    _fresh: list[Delta] = field(default_factory=list)
    _broken: bool = False
    _open: OpenCalls = field(default_factory=OpenCalls)
    _scores: ScoreLine = field(default_factory=ScoreLine)

    @cached_property
    def _reader(self) -> FunctionalReader:
        return FunctionalReader(tokenizer=self.tokenizer, dialect=self.dialect)

    def record(self, score: TokenScore) -> None:
        self._scores.record(score)

    def watch(self, token_id: int) -> bool:
        self._scores.place(0)
        self._ids.append(token_id)
        reader = self._reader
        if not self._broken and (reader.inside or token_id in reader.tool_ids):
            try:
                deltas = reader.push(token_id)
                self._open.note(deltas)
                self._fresh += deltas
            except ToolError:
                self._broken = True
        elif self._ids != [self.tokenizer.id_of(self.dialect.no_tool_token)]:
            self._broken = True
        if not self._broken and not reader.inside:
            self._num_certain, self._num_given = len(self._ids), reader.num_calls
        return False

    def drain(self) -> list[Delta]:
        deltas, self._fresh = self._fresh, []
        return _with_scores(deltas, self._scores.given()) if deltas else []

    def finish(self, completion: Completion) -> list[Delta]:
        deltas = self.drain()
        calls = self._parse(self._ids)
        self.parsed = calls is not None
        cut_call = None if self._broken else self._open.last
        if calls is None and cut_call is None:
            deltas.append(Delta(content=self.tokenizer.decode(self._ids[self._num_certain :])))
        elif calls is not None:  # white space between calls is no mistake, though nothing was given out from there on
            deltas += [Delta(tool_call=call) for call in calls[self._num_given :]]
            self._num_given = len(calls)
        called = self._num_given > 0 and completion.finish_reason == "stop"
        reason: ReplyReason = "tool_calls" if called else completion.finish_reason
        deltas.append(Delta(finish_reason=reason, usage=usage_of(completion), cut_call=cut_call))
        return _with_scores(deltas, self._scores.given())

    def _parse(self, ids: list[int]) -> list[ToolCall] | None:
        try:
            return self.dialect.parse(self.tokenizer.decode(ids))
        except ToolError:
            return None


@dataclass(kw_only=True)
class MixedAnswer:
    """An answer of text, calls written in a dialect, and calls in functional tokens.

    White space between text and a call is left out, and stop strings are looked for in the text only.
    """

    decoder: StreamDecoder
    assembler: TextAssembler
    written: CallStream | None
    """None when the answer has no written calls."""
    functional: FunctionalReader | None
    """None when the model has no functional tokens."""
    form: Following | None = None
    parsed: bool = True
    """False once a call was malformed or cut off."""
    _fresh: list[Delta] = field(default_factory=list)
    _num_written: int = 0
    _space: str = ""
    _after_call: bool = False
    _open: OpenCalls = field(default_factory=OpenCalls)
    _scores: ScoreLine = field(default_factory=ScoreLine)

    def record(self, score: TokenScore) -> None:
        self._scores.record(score)

    def watch(self, token_id: int) -> bool:
        self._scores.place(self.assembler.num_read)
        reader = self.functional
        if reader is not None and self.parsed:
            if reader.inside or token_id in reader.tool_ids:
                self._take_functional(reader, token_id)
                return False
            if token_id == reader.tokenizer.id_of(reader.dialect.no_tool_token):
                return False
        self._take_text(self.decoder.push(token_id))
        return self.assembler.stopped

    def drain(self) -> list[Delta]:
        deltas, self._fresh = self._fresh, []
        return _with_scores(deltas, self._scores.given(self._end_of_scores)) if deltas else []

    def finish(self, completion: Completion) -> list[Delta]:
        self._take_text(self.decoder.finish())
        self._finish_calls()
        self._show(self._space if not self._num_calls else "")
        self._show_certain(self.assembler.finish())
        cut_off = self.form is not None and self.form.problem is not None
        reason: ReplyReason = "length" if cut_off else completion.finish_reason
        if self._num_calls and reason == "stop":
            reason = "tool_calls"
        last = Delta(finish_reason=reason, usage=usage_of(completion), cut_call=self._open.last)
        deltas = [*self.drain(), last]
        return _with_scores(deltas, self._scores.given(self._end_of_scores))

    @property
    def _end_of_scores(self) -> int | None:
        """Where the text ends that is given out, once a stop string has been found: its tokens are nobody's."""
        return self.assembler.num_given if self.assembler.stopped else None

    @property
    def _num_calls(self) -> int:
        return self._num_written if self.functional is None else self.functional.num_calls

    def _finish_calls(self) -> None:
        if self.functional is not None and self.functional.inside:
            self.parsed = False
        if self.written is not None and self.parsed:
            try:
                self._take_content(self.written.finish())
            except ToolError:
                self.parsed = False
                if self._open.last is None:
                    self._show(self.written.held)

    def _take_functional(self, reader: FunctionalReader, token_id: int) -> None:
        try:
            self._give(reader.push(token_id))
        except ToolError:
            self._give_up(reader.raw)
        self._space, self._after_call = "", True

    def _take_text(self, text: str) -> None:
        if self.written is None or not self.parsed:
            self._take_content(text)
            return
        try:
            content, calls = self.written.push(text)
        except ToolError:
            self._give_up(self.written.held)
            return
        self._take_content(content)
        earlier = 0 if self.functional is None else self.functional.num_calls - self._num_written
        pieces = [replace(piece, index=piece.index + earlier) for piece in self.written.pieces()]
        self._give([Delta(call_piece=piece) for piece in pieces] + [Delta(tool_call=call) for call in calls])
        self._num_written += len(calls)
        if self.functional is not None:
            self.functional.num_calls += len(calls)
        if pieces or calls:
            self._space, self._after_call = "", True

    def _take_content(self, text: str) -> None:
        """Plain text; its trailing white space waits for what follows, and is nothing before or after a call."""
        text = self._space + text
        if self._after_call:
            text = text.lstrip()
        shown = text.rstrip()
        self._space = text[len(shown) :]
        if shown:
            self._after_call = False
            self._show(shown)

    def _give(self, deltas: list[Delta]) -> None:
        self._open.note(deltas)
        self._fresh += deltas

    def _give_up(self, raw: str) -> None:
        """What looked like a call is none."""
        self.parsed = False
        self._open.clear()
        self._show(raw)

    def _show(self, text: str) -> None:
        self._show_certain(self.assembler.push_text(text))

    def _show_certain(self, text: str) -> None:
        if text:
            self._fresh.append(Delta(content=text))


def _with_scores(deltas: list[Delta], scores: tuple[PlacedScore, ...]) -> list[Delta]:
    """The first piece brings the scores of all tokens since the last ones."""
    return [replace(deltas[0], scores=(*deltas[0].scores, *scores)), *deltas[1:]]
