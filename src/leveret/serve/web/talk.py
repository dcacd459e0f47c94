"""A conversation on the page, without the page: what a message, a retry or an error leads to, view after view.

The turns travel with the person: they come in with each event and go out with each view, and nothing is kept here, so
two browsers cannot mix. Every view is complete. The last view of an answer, also of one that is stopped, comes after
all others the same way, so the page cannot end in the state of an earlier one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from textwrap import dedent
from typing import Any

from starlette.concurrency import run_in_threadpool

from leveret.chat.messages import Message, ToolCall
from leveret.engine.conversation import Conversation
from leveret.engine.defaults import SamplingOptions
from leveret.engine.text import TextModel
from leveret.errors import LeveretError
from leveret.serve.ticket import Ticket
from leveret.serve.web.answering import Interruption, Sofar, answering
from leveret.serve.web.words import Words
from leveret.tools.call_text import describe_call

Bubble = dict[str, Any]
"""One message as Gradio's Chatbot draws it."""
Turns = tuple[Message, ...]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the sliders say; None where somebody has emptied the field, or where it is not shown."""

    system: str | None
    temperature: float | None
    top_p: float | None
    top_k: float | None
    max_tokens: float | None
    repetition_penalty: float | None
    tools: bool | None

    def options(self) -> SamplingOptions:
        """For the engine; 0 and 1 are how a slider says "off". What is empty is left to the model."""
        options: SamplingOptions = {}
        if self.temperature is not None:
            options["temperature"] = float(self.temperature)
        if self.top_p is not None:
            options["top_p"] = None if self.top_p >= 1 else float(self.top_p)
        if self.top_k is not None:
            options["top_k"] = int(self.top_k) or None
        if self.max_tokens is not None:
            options["max_tokens"] = int(self.max_tokens)
        if self.repetition_penalty is not None:
            options["repetition_penalty"] = float(self.repetition_penalty)
        return options


@dataclass(frozen=True, kw_only=True)
class View:
    """What the page shows now."""

    turns: Turns
    bubbles: list[Bubble]
    message: str | None = None
    """What is put into the message box: nothing, or a question that could not be answered; None leaves it alone."""
    running: bool = False


@dataclass(frozen=True, kw_only=True)
class Talk:
    """The model behind the page, and the way to the server's worker."""

    model: TextModel
    submit: Callable[[Ticket], None]

    @property
    def base(self) -> bool:
        """Whether the model continues texts instead of answering."""
        return self.model.template is None

    async def say(
        self, text: str, turns: Turns, settings: Settings, words: Words, end: Interruption | None = None
    ) -> AsyncGenerator[View]:
        """The views of a new message and its answer."""
        if not (text or "").strip():
            yield View(turns=turns, bubbles=self._bubbles(turns, words))
            return
        asked = (*turns, Message("user", text))
        async for view in self._answer(asked, settings, words, end, give_back=text):
            yield view

    async def retry(
        self, turns: Turns, settings: Settings, words: Words, end: Interruption | None = None
    ) -> AsyncGenerator[View]:
        """The views of another answer to the last message; the turns before it stay."""
        conversation = self._conversation(turns, settings)
        if not conversation.take_back_answer():
            yield View(turns=(), bubbles=[_note(words.nothing_asked)])
            return
        async for view in self._answer(tuple(conversation.turns), settings, words, end):
            yield view

    async def _answer(
        self,
        turns: Turns,
        settings: Settings,
        words: Words,
        end: Interruption | None = None,
        *,
        give_back: str | None = None,
    ) -> AsyncGenerator[View]:
        emptied = None if give_back is None else ""
        yield View(turns=turns, bubbles=self._bubbles(turns, words), message=emptied, running=True)
        notes: list[Bubble] = []
        try:
            conversation = self._conversation(turns, settings)
            job = await run_in_threadpool(lambda: conversation.prepare(**settings.options()))
            notes = [_note(words.forgotten)] if conversation.forgotten else []
            turns = tuple(conversation.turns)
            async for sofar in answering(job, self.submit, end):
                if sofar.finish_reason == "cancelled":
                    yield self._ended(turns, sofar, words, end, give_back)
                    return
                answer = Message("assistant", sofar.content, tool_calls=sofar.calls)
                finished = sofar.finish_reason is not None
                shown = [*notes, *self._bubbles((*turns, answer), words)]
                if finished:
                    shown += _endings(sofar, settings, words)
                give_back = None
                yield View(turns=(*turns, answer), bubbles=shown, running=not finished)
        except Exception as error:  # whatever it is, the person must be told, and the buttons must come back
            if not isinstance(error, LeveretError):
                logging.getLogger(__name__).exception("an answer on the page ended with an error")
            yield self._refused(turns, words, give_back, error)

    def _ended(self, turns: Turns, sofar: Sofar, words: Words, end: Interruption | None, give_back: str | None) -> View:
        """After stop, what was said so far stays, and a question without an answer goes back; after clear, nothing."""
        if end is not None and end.cleared:
            return View(turns=(), bubbles=[], message="")
        if sofar.content or sofar.calls:
            turns = (*turns, Message("assistant", sofar.content, tool_calls=sofar.calls))
            give_back = None
        elif give_back is not None:
            turns = turns[:-1]
        return View(turns=turns, bubbles=self._bubbles(turns, words), message=give_back)

    def _refused(self, turns: Turns, words: Words, give_back: str | None, error: Exception) -> View:
        """A question that got no answer goes back into the box, and the error where the answer would be."""
        said = self._bubbles(turns, words)
        text = f"{type(error).__name__}: {error}"
        if isinstance(error, LeveretError):
            text = f"{error.message}.{f' {error.hint}' if error.hint else ''}"
        said.append(_note(text, title=words.error))
        if give_back is None:
            return View(turns=turns, bubbles=said)
        return View(turns=turns[:-1], bubbles=said, message=give_back)

    def _bubbles(self, turns: Turns, words: Words) -> list[Bubble]:
        return bubbles(turns, words, verbatim=self.base)

    def _conversation(self, turns: Turns, settings: Settings) -> Conversation:
        tools = bool(settings.tools) and not self.base
        return Conversation(
            model=self.model,
            system=(settings.system or "").strip() or None,
            tools=tools,
            base=self.base,
            remember=not (tools or self.base),
            turns=list(turns),
        )


def bubbles(turns: Turns, words: Words, *, verbatim: bool = False) -> list[Bubble]:
    """The turns as messages of Gradio's Chatbot; each tool call is one with a title.

    verbatim: not as Markdown, for what a base model continues may be a program, whose indentation counts.
    """
    drawn: list[Bubble] = []
    for turn in turns:
        if turn.content or not turn.tool_calls:
            drawn.append({"role": turn.role, "content": _fenced(turn.content) if verbatim else turn.content})
        drawn += [_call(call, words) for call in turn.tool_calls]
    return drawn


def _call(call: ToolCall, words: Words) -> Bubble:
    arguments = json.dumps(call.arguments, ensure_ascii=False, indent=2)
    _, _, plan = describe_call(call).partition("\n")
    text = f"{_fenced(arguments, 'json')}\n{_fenced(dedent(plan)) if plan else ''}".strip()
    return {"role": "assistant", "content": text, "metadata": {"title": words.call.format(call.name)}}


def _endings(sofar: Sofar, settings: Settings, words: Words) -> list[Bubble]:
    if sofar.finish_reason == "length":
        return [_note(f"… {words.cut_off}")]
    silent = settings.tools and not sofar.content and not sofar.calls
    return [_note(words.no_tool)] if silent else []


def _note(text: str, title: str | None = None) -> Bubble:
    """Something the page says, not the model."""
    if title is None:
        return {"role": "assistant", "content": f"({text})"}
    return {"role": "assistant", "content": _fenced(text), "metadata": {"title": title}}


def _fenced(text: str, language: str = "") -> str:
    """Text that Markdown must not read; the fence is longer than any in it."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"
