"""The conversation's page, in Gradio: what is on it and which event leads where; what it does is in `talk.py`.

This file is imported when somebody first opens the page: Gradio takes seconds to import, and the API does not need it.
Nothing is reported to anybody and nothing loaded from elsewhere: analytics off, fonts of the system, no shared links.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Iterator
from dataclasses import fields
from typing import Any

import gradio as gr

from leveret.engine.request import SamplingParams
from leveret.serve.web.answering import Interruption
from leveret.serve.web.language import LANGUAGES, Language, preferred
from leveret.serve.web.talk import Settings, Talk, Turns, View
from leveret.serve.web.words import WORDS, Words

SECONDS_KEPT = 3600
"""How long the turns of a closed page are kept."""

CSS = """
footer { display:none !important; }
.gradio-container { width:100% !important; max-width:1240px !important; margin:0 auto !important; }
#chat { min-height:300px; height:calc(100vh - 310px) !important; }
#head { align-items:flex-start; } #head h2 { margin:0; } #head p { margin:0; }
button { white-space:nowrap; }
#chat pre, #chat code { white-space:pre-wrap !important; overflow-wrap:anywhere; }
#language { float:right; padding-top:4px; }
@media (max-width: 640px) { #chat { height:52vh !important; } #language { float:none; } }
"""

Update = dict[str, Any]


class Page:
    """The components of one page and their events."""

    def __init__(self, talk: Talk, name: str, *, runs: bool) -> None:
        """`runs`: whether there are pages of runs to lead to."""
        self._talk, self._name, self._runs = talk, name, runs
        self._ends: dict[str, Interruption] = {}
        words = WORDS["en"]
        with gr.Blocks(analytics_enabled=False, title=f"{name} · Leveret", fill_width=True) as self.blocks:
            self._turns = gr.State((), time_to_live=SECONDS_KEPT)
            with gr.Row(elem_id="head"):
                with gr.Column(scale=4, min_width=280):
                    self._head = gr.Markdown(self._heading(words, "en"))
                with gr.Column(scale=1, min_width=200):
                    self._language = gr.Radio(
                        [(name, code) for code, name in LANGUAGES.items()],
                        value="en", show_label=False, container=False, elem_id="language", interactive=True,
                    )  # fmt: skip
            with gr.Row():
                with gr.Column(scale=3, min_width=320):
                    self._conversation(words)
                with gr.Column(scale=1, min_width=280):
                    self._settings(words, talk.model.defaults, talk.model.engine.context_tokens)
            self._events()
        self.blocks.queue(default_concurrency_limit=None, api_open=False)  # the worker has a queue, and says when full

    def _conversation(self, words: Words) -> None:
        self._chat = gr.Chatbot(
            elem_id="chat", show_label=False, buttons=["copy"], placeholder=words.empty.format(self._name),
            feedback_options=None, allow_tags=False, height=480,
        )  # fmt: skip
        self._message = gr.Textbox(
            label=words.message, placeholder=words.message_hint, lines=1, max_lines=8, autofocus=True, elem_id="message"
        )
        with gr.Row():
            self._send = gr.Button(words.send, variant="primary", elem_id="send", min_width=120, scale=2)
            self._stop = gr.Button(
                words.stop, variant="stop", elem_id="stop", min_width=120, scale=2, interactive=False
            )
            self._retry = gr.Button(words.retry, elem_id="retry", min_width=120)
            self._clear = gr.Button(words.clear, elem_id="clear", min_width=120)

    def _settings(self, words: Words, defaults: SamplingParams, context: int) -> None:
        base, tools = self._talk.base, self._talk.model.tools is not None
        self._title = gr.Markdown(f"### {words.settings}")
        self._system = gr.Textbox(
            "",
            label=words.system,
            placeholder=words.system_hint,
            lines=2,
            max_lines=8,
            visible=not base,
            elem_id="system",
        )
        self._tools = gr.Checkbox(
            tools, label=words.tools, info=words.tools_hint, visible=tools and not base, elem_id="tools"
        )
        self._max_tokens = _slider(1, context, min(defaults.max_tokens, context), 1, "max_tokens", words)
        self._temperature = _slider(0, 2, min(defaults.temperature, 2), 0.05, "temperature", words)
        self._top_p = _slider(0.05, 1, defaults.top_p or 1, 0.05, "top_p", words)
        self._top_k = _slider(0, 200, min(defaults.top_k or 0, 200), 1, "top_k", words)
        penalty = min(max(defaults.repetition_penalty, 1), 2)
        self._penalty = _slider(1, 2, penalty, 0.01, "repetition_penalty", words)

    def _events(self) -> None:
        views = [self._turns, self._chat, self._message, self._send, self._stop, self._retry]
        settings = [
            self._system, self._temperature, self._top_p, self._top_k, self._max_tokens, self._penalty, self._tools,
            self._language,
        ]  # fmt: skip
        hidden: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
        gr.on(
            [self._send.click, self._message.submit],
            self._say,
            [self._message, self._turns, *settings],
            views,
            **hidden,
        )
        self._retry.click(self._say_again, [self._turns, *settings], views, **hidden)
        self._stop.click(self._end, None, None, queue=False, **hidden)
        for clear in (self._clear.click, self._chat.clear):  # the chat has a small button of its own
            clear(self._forget, None, views, queue=False, **hidden)
        spoken = [self._language, *self._spoken()]
        self.blocks.load(self._greet, None, spoken, queue=False, **hidden)
        self._language.input(self._speak, self._language, spoken, queue=False, **hidden)

    async def _say(self, request: gr.Request, text: str, turns: Turns, *settings: Any) -> AsyncGenerator[list[Any]]:
        *values, language = settings
        with self._answering(request) as end:
            async for view in self._talk.say(text, turns, _read(values), WORDS[language], end):
                yield _drawn(view)

    async def _say_again(self, request: gr.Request, turns: Turns, *settings: Any) -> AsyncGenerator[list[Any]]:
        *values, language = settings
        with self._answering(request) as end:
            async for view in self._talk.retry(turns, _read(values), WORDS[language], end):
                yield _drawn(view)

    async def _end(self, request: gr.Request) -> None:
        """Stop the answer; its last view, which comes the way of the others and so after them, sets the buttons."""
        if (end := self._ends.get(_person(request))) is not None:
            end.ask()

    async def _forget(self, request: gr.Request) -> list[Any]:
        if (end := self._ends.get(_person(request))) is not None:
            end.ask(clear=True)
        return [(), [], "", *_buttons(running=False)]

    @contextlib.contextmanager
    def _answering(self, request: gr.Request) -> Iterator[Interruption]:
        """How the answer to this person can be ended, for as long as it is under way."""
        person, end = _person(request), Interruption()
        self._ends[person] = end
        try:
            yield end
        finally:
            if self._ends.get(person) is end:
                del self._ends[person]

    def _greet(self, request: gr.Request) -> list[Any]:
        return self._speak(preferred(request.headers.get("accept-language", "")))

    def _speak(self, language: Language) -> list[Any]:
        """The value of the language switch, and every text of the page in that language."""
        return [gr.update(value=language), *(gr.update(**text) for text in self._spoken(language).values())]

    def _spoken(self, language: Language = "en") -> dict[gr.blocks.Block, Update]:
        """Which components have words, and which words."""
        words = WORDS[language]
        sliders = {
            self._max_tokens: "max_tokens", self._temperature: "temperature", self._top_p: "top_p",
            self._top_k: "top_k", self._penalty: "repetition_penalty",
        }  # fmt: skip
        return {
            self._head: {"value": self._heading(words, language)},
            self._chat: {"placeholder": words.empty.format(self._name)},
            self._message: {"label": words.message, "placeholder": words.message_hint},
            self._send: {"value": words.send},
            self._stop: {"value": words.stop},
            self._retry: {"value": words.retry},
            self._clear: {"value": words.clear},
            self._title: {"value": f"### {words.settings}"},
            self._system: {"label": words.system, "placeholder": words.system_hint},
            self._tools: {"label": words.tools, "info": words.tools_hint},
            **{
                slider: {"label": getattr(words, key), "info": getattr(words, f"{key}_hint")}
                for slider, key in sliders.items()
            },
        }

    def _heading(self, words: Words, language: Language) -> str:
        intro = words.intro_base if self._talk.base else words.intro_chat
        runs = f" · [{words.runs}](/runs?lang={language})" if self._runs else ""
        return f"## {self._name}\n{intro}{runs}"


def _slider(low: float, high: float, value: float, step: float, key: str, words: Words) -> gr.Slider:
    return gr.Slider(
        low, high, value, step=step, label=getattr(words, key), info=getattr(words, f"{key}_hint"), elem_id=key
    )


def _read(values: list[Any]) -> Settings:
    return Settings(**dict(zip([field.name for field in fields(Settings)], values, strict=True)))


def _drawn(view: View) -> list[Any]:
    """A view as values of the turns, the chat, the message box and the three buttons."""
    message = gr.skip() if view.message is None else view.message
    return [view.turns, view.bubbles, message, *_buttons(running=view.running)]


def _buttons(*, running: bool) -> list[Any]:
    return [gr.update(interactive=not running), gr.update(interactive=running), gr.update(interactive=not running)]


def _person(request: gr.Request) -> str:
    """Who asks: Gradio's name for one open page."""
    return str(request.session_hash)
