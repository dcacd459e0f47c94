"""A conversation on the page, without the page: what a message, a retry or an error leads to, view after view.

The turns travel with the person: they come in with each event and go out with each view, and nothing is kept here, so
two browsers cannot mix. Every view is complete: when the next one never comes, because somebody pressed stop, the turns
of the last one are the conversation.
"""

from __future__ import annotations

import json
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
from leveret.serve.web.answering import Sofar, answering
from leveret.serve.web.words import Words
from leveret.serve.worker import Ticket
from leveret.tools.call_text import describe_call

Bubble = dict[str, Any]
"""One message as Gradio's Chatbot draws it."""
Turns = tuple[Message, ...]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the sliders say."""

    system: str
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    repetition_penalty: float
    tools: bool

    def options(self) -> SamplingOptions:
        """For the engine; 0 and 1 are how a slider says "off"."""
        return {
            "temperature": float(self.temperature),
            "top_p": None if self.top_p >= 1 else float(self.top_p),
            "top_k": int(self.top_k) or None,
            "max_tokens": int(self.max_tokens),
            "repetition_penalty": float(self.repetition_penalty),
        }


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

    async def say(self, text: str, turns: Turns, settings: Settings, words: Words) -> AsyncGenerator[View]:
        """The views of a new message and its answer."""
        if not text.strip():
            yield View(turns=turns, bubbles=bubbles(turns, words))
            return
        asked = (*turns, Message("user", text))
        async for view in self._answer(asked, settings, words, give_back=text):
            yield view

    async def retry(self, turns: Turns, settings: Settings, words: Words) -> AsyncGenerator[View]:
        """The views of another answer to the last message; the turns before it stay."""
        conversation = self._conversation(turns, settings)
        if not conversation.take_back_answer():
            yield View(turns=(), bubbles=[_note(words.nothing_asked)])
            return
        async for view in self._answer(tuple(conversation.turns), settings, words):
            yield view

    async def _answer(
        self, turns: Turns, settings: Settings, words: Words, *, give_back: str | None = None
    ) -> AsyncGenerator[View]:
        emptied = None if give_back is None else ""
        yield View(turns=turns, bubbles=bubbles(turns, words), message=emptied, running=True)
        conversation = self._conversation(turns, settings)
        notes: list[Bubble] = []
        try:
            job = await run_in_threadpool(lambda: conversation.prepare(**settings.options()))
            notes = [_note(words.forgotten)] if conversation.forgotten else []
            turns = tuple(conversation.turns)
            async for sofar in answering(job, self.submit):
                answer = Message("assistant", sofar.content, tool_calls=sofar.calls)
                finished = sofar.finish_reason is not None
                shown = [*notes, *bubbles((*turns, answer), words)]
                if finished:
                    shown += _endings(sofar, settings, words)
                give_back = None
                yield View(turns=(*turns, answer), bubbles=shown, running=not finished)
        except LeveretError as error:
            yield self._refused(turns, words, give_back, error)

    def _refused(self, turns: Turns, words: Words, give_back: str | None, error: LeveretError) -> View:
        """A question that got no answer goes back into the box, and the error where the answer would be."""
        said = bubbles(turns, words)
        hint = f" {error.hint}" if error.hint else ""
        said.append(_note(f"{error.message}.{hint}", title=words.error))
        if give_back is None:
            return View(turns=turns, bubbles=said)
        return View(turns=turns[:-1], bubbles=said, message=give_back)

    def _conversation(self, turns: Turns, settings: Settings) -> Conversation:
        alone = settings.tools or self.base
        return Conversation(
            model=self.model,
            system=settings.system.strip() or None,
            tools=settings.tools,
            base=self.base,
            remember=not alone,
            turns=list(turns),
        )


def bubbles(turns: Turns, words: Words) -> list[Bubble]:
    """The turns as messages of Gradio's Chatbot; each tool call is one with a title."""
    drawn: list[Bubble] = []
    for turn in turns:
        if turn.content or not turn.tool_calls:
            drawn.append({"role": turn.role, "content": turn.content})
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
        return {"role": "assistant", "content": f"*{text}*"}
    return {"role": "assistant", "content": _fenced(text), "metadata": {"title": title}}


def _fenced(text: str, language: str = "") -> str:
    """Text that Markdown must not read; the fence is longer than any in it."""
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"
