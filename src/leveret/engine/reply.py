"""What a caller gets: a `Reply` at once, or `Delta`s as they become certain, which add up to the same reply.

An answer in the making is either text (`TextAnswer`) or tool calls (call_answer.py). Both ride on one engine request:
the engine shows them each id (`watch`), the caller drains what became certain after each step, and `finish` gives the
rest with the finish reason and the usage. So the reply that is streamed and the reply that is not are the same code.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from leveret.chat.messages import CallPiece, ToolCall
from leveret.engine.assembler import TextAssembler
from leveret.engine.grammar_constraint import GrammarConstraint
from leveret.engine.request import Completion
from leveret.engine.score_line import PlacedScore, ScoreLine
from leveret.engine.token_score import TokenScore

ReplyReason = Literal["stop", "length", "tool_calls", "cancelled"]
"""Why a reply ended; `tool_calls` when it ended by itself and holds calls."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens of one request."""

    prompt_tokens: int
    """Length of the prompt."""
    completion_tokens: int
    """Generated tokens, the stop token included."""

    @property
    def total_tokens(self) -> int:
        """Prompt and answer together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, kw_only=True)
class Delta:
    """One piece of a reply. The last piece, and only that one, has a finish reason and a usage."""

    content: str = ""
    """New text."""
    tool_call: ToolCall | None = None
    """A new, complete tool call."""
    call_piece: CallPiece | None = None
    """More of a tool call that is being written; the call comes whole as well, after its last piece."""
    cut_call: CallPiece | None = None
    """On the last piece, if the answer ended within a call: all pieces of that one, together."""
    scores: tuple[PlacedScore, ...] = ()
    """The scores of the tokens that this piece came of, or that came before it, if they were asked for."""
    prompt_scores: tuple[TokenScore, ...] = ()
    """The scores of the prompt's tokens, if they were asked for; on a first piece without text."""
    num_generated: int | None = None
    """Tokens of the answer when this was given out, where somebody counts along."""
    finish_reason: ReplyReason | None = None
    """Set on the last piece."""
    usage: Usage | None = None
    """Set on the last piece."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """A whole answer."""

    content: str
    """The text; empty when the model called tools or refused to."""
    tool_calls: tuple[ToolCall, ...]
    """The calls in order."""
    finish_reason: ReplyReason
    """Why it ended."""
    usage: Usage
    """Tokens in and out."""
    scores: tuple[PlacedScore, ...] = ()
    """The scores of the tokens of `content`, and of those that wrote calls, if they were asked for."""
    prompt_scores: tuple[TokenScore, ...] = ()
    """The scores of the prompt's tokens, if they were asked for."""
    cut_call: CallPiece | None = None
    """A call that the answer ended within: its name, and the beginning of its arguments."""
    parsed: bool = True
    """False when tool calls were asked for and what came is not calls: raw text in `content`, or a call cut off."""


class Answer(Protocol):
    """An answer in the making."""

    @property
    def parsed(self) -> bool:
        """False once it is known that tool calls were asked for and something else came."""

    def record(self, score: TokenScore) -> None:
        """Take the score of the id that `watch` is about to be shown, or of a stop id, which it is not shown."""

    def watch(self, token_id: int) -> bool:
        """Take one generated id; True when the answer is complete. Passed to the engine as `Request.watch`."""

    def drain(self) -> list[Delta]:
        """What became certain since the last call."""

    def finish(self, completion: Completion) -> list[Delta]:
        """The rest, ending with the last piece."""


@dataclass(kw_only=True)
class TextAnswer:
    """An answer in plain text, special tokens left out, cut before a stop string."""

    assembler: TextAssembler
    form: GrammarConstraint | None = None
    """What keeps the answer to a form, if it must have one."""
    parsed: bool = True
    """Text is text."""
    _fresh: list[str] = field(default_factory=list)
    _scores: ScoreLine = field(default_factory=ScoreLine)

    def record(self, score: TokenScore) -> None:
        self._scores.record(score)

    def watch(self, token_id: int) -> bool:
        start = self.assembler.num_read
        self._fresh.append(self.assembler.push(token_id))
        self._scores.place(start + self.assembler.num_before)
        return self.assembler.stopped

    def drain(self) -> list[Delta]:
        text = "".join(self._fresh)
        self._fresh.clear()
        return [Delta(content=text, scores=self._scores.given(self.assembler.num_given))] if text else []

    def finish(self, completion: Completion) -> list[Delta]:
        stopped = self.assembler.stopped
        self._fresh.append(self.assembler.finish())
        cut_off = self.form is not None and self.form.problem is not None
        reason: ReplyReason = "length" if cut_off else completion.finish_reason
        deltas = self.drain()
        rest = () if stopped else self._scores.given(self.assembler.num_given + 1)
        return [*deltas, Delta(scores=rest, finish_reason=reason, usage=usage_of(completion))]


def reply_from(deltas: Iterable[Delta], *, parsed: bool = True) -> Reply:
    """The reply that the deltas of a whole answer add up to."""
    pieces = list(deltas)
    last = pieces[-1]
    assert last.finish_reason is not None and last.usage is not None, "the last delta ends the reply"
    return Reply(
        content="".join(piece.content for piece in pieces),
        tool_calls=tuple(piece.tool_call for piece in pieces if piece.tool_call is not None),
        finish_reason=last.finish_reason,
        usage=last.usage,
        scores=tuple(score for piece in pieces for score in piece.scores),
        prompt_scores=tuple(score for piece in pieces for score in piece.prompt_scores),
        cut_call=last.cut_call,
        parsed=parsed,
    )


def usage_of(completion: Completion) -> Usage:
    """The tokens of a request."""
    return Usage(prompt_tokens=completion.num_prompt_tokens, completion_tokens=completion.num_generated_tokens)
