"""A session of `leveret chat`: what a typed line leads to, an answer or the obeying of a command.

Ctrl-C while an answer is written stops the answer between two tokens, and what was written so far counts as said; a
second one, when the model does not get to its next token, stops at once. Neither leaves the program.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from leveret.chat.messages import ToolCall
from leveret.cli.chat_config import ChatConfig
from leveret.cli.chat_tools import DRY_RUN, ChatTools, TerminalLoop, list_tools
from leveret.cli.fields import keys_of
from leveret.cli.sampling_config import SamplingConfig
from leveret.config import parse_config, suggest
from leveret.console import Console
from leveret.engine.conversation import Conversation
from leveret.engine.defaults import SamplingOptions
from leveret.engine.jobs import Job
from leveret.engine.text import TextModel
from leveret.errors import LeveretError, RequestError

COMMANDS = {
    "/help": "this list",
    "/clear": "forget the conversation",
    "/retry": "answer the last message again",
    "/system TEXT": "set the system message and forget the conversation; without TEXT the template's own",
    "/set KEY=VALUE ...": "change how answers are sampled; without KEY=VALUE say how, KEY= is the model's own value",
    "/mode chat|base": "answer messages, or continue them as text",
    "/tools on|off": "let the model call its tools, or not; without a word list them",
    "/save FILE": "write the conversation, as a line of JSON that can be trained on",
    "/load FILE": "go on with a conversation that was saved",
    "/exit": "leave (so does Ctrl-D); Ctrl-C stops an answer",
    '"""': "begins and ends a message of several lines; so does a \\ at a line's end",
}


class Session:
    """One conversation on the terminal."""

    def __init__(self, model: TextModel, config: ChatConfig, console: Console, offer: ChatTools = DRY_RUN) -> None:
        """Raises RequestError when the model cannot chat, or has no tools and they are asked for."""
        self._model = model
        self._config = config
        self._console = console
        base = model.template is None if config.mode is None else config.mode == "base"
        tools = model.tools is not None and not base if config.tools is None else config.tools is not False
        self._talk = Conversation(model=model, system=config.system, tools=tools, offered=offer.offered, base=base)
        self._offer = offer
        self._loop = TerminalLoop(offer, console)
        self.num_answers = 0
        self.num_failed = 0
        """Messages that could not be answered."""
        self._settle()
        if not base:
            model.prepare_chat([{"role": "user", "content": "Hello"}], tools=offer.offered if tools else None)

    @property
    def mode(self) -> str:
        """What a message leads to, in words."""
        if self._talk.base:
            return "continues the text"
        if not self._talk.tools:
            return "answers in text"
        return "calls tools" if self._offer.runs else "calls tools (dry run)"

    def handle(self, line: str) -> bool:
        """Obey a command or answer a message; False to leave."""
        word, _, rest = line.partition(" ")
        if not line.startswith("/"):
            self._answer(line)
            return True
        if word == "/exit":
            return False
        commands: dict[str, Callable[[str], None]] = {
            "/help": self._help, "/clear": self._clear, "/reset": self._clear, "/retry": self._retry,
            "/system": self._set_system, "/set": self._set, "/mode": self._set_mode, "/tools": self._set_tools,
            "/save": self._save, "/load": self._load,
        }  # fmt: skip
        if word not in commands:
            near = suggest(word, [*commands, "/exit"])
            self._console.warn(
                f"there is no command {word}; {f'did you mean {near}? ' if near else ''}/help lists them"
            )
            return True
        try:
            commands[word](rest.strip())
        except LeveretError as error:
            self._console.error(str(error))
        return True

    def _answer(self, text: str) -> None:
        self._talk.ask(text)
        self._loop.begin()
        if not self._write_answer():
            self._talk.take_back_answer()
            self._talk.take_back_question()

    def _write_answer(self) -> bool:
        """Print the answer to the open question as it comes, and record it; False when there was none."""
        forgotten = self._talk.forgotten
        try:
            job = self._talk.prepare(**self._config.options())
            if self._talk.forgotten > forgotten:
                self._console.warn("the conversation has outgrown the model's context: its oldest turn is forgotten")
            text, calls, ended = self._stream(job)
        except RequestError as error:
            self._console.error(str(error))
            self.num_failed += 1
            return False
        if not (text or calls or ended):
            return False
        self.num_answers += 1
        self._talk.record(text, calls)
        return not (ended and self._loop.goes_on(self._talk, calls)) or self._write_answer()

    def _stream(self, job: Job) -> tuple[str, list[ToolCall], bool]:
        """Print the answer; returns its text and calls, and whether it came to an end by itself."""
        text, calls, reason = "", [], None
        with stopping() as stopped:
            with contextlib.suppress(KeyboardInterrupt):  # a second Ctrl-C; what was written counts as with the first
                for delta in self._model.deltas(_stopped_by(job, stopped)):
                    text += delta.content
                    print(delta.content, end="", flush=True)
                    if delta.tool_call is not None:
                        calls.append(delta.tool_call)
                        print(self._offer.describe(delta.tool_call), flush=True)
                    reason = delta.finish_reason or reason
            note = " (stopped)" if stopped() else " ... (cut off at max_tokens)" if reason == "length" else ""
        silent = "(no tool fits)" if self._talk.tools and not (text or calls or note) else ""
        if not calls or note:
            print(note + silent, flush=True)
        return text, calls, not stopped()

    def _help(self, rest: str) -> None:
        for usage, meaning in COMMANDS.items():
            print(f"  {usage:19} {meaning}", flush=True)

    def _clear(self, rest: str) -> None:
        self._talk.clear()
        self._console.info("the conversation is forgotten")

    def _retry(self, rest: str) -> None:
        before = list(self._talk.turns)
        if not self._talk.take_back_answer():
            self._console.warn("nothing was asked yet")
            return
        with contextlib.suppress(RequestError):
            if self._talk.prepare(**self._config.options()).request.params.greedy:
                self._console.info("the likeliest words are chosen, so it will be the same; try /set temperature=0.8")
        if not self._write_answer():
            self._talk.turns = before

    def _set_system(self, text: str) -> None:
        self._talk.system = text or None
        self._clear("")

    def _set(self, words: str) -> None:
        keys = {key.name: key for key in keys_of(SamplingConfig) if key.name in SamplingOptions.__optional_keys__}
        changes: dict[str, Any] = {}
        for word in words.split():
            name, equals, value = word.partition("=")
            name = name.replace("-", "_")
            if not equals or name not in keys:
                near = suggest(name, keys)
                self._console.warn(
                    f"/set takes KEY=VALUE, and no KEY {name}"
                    + (f"; did you mean {near}?" if near else f"; keys are {', '.join(keys)}")
                )
                return
            changes[name] = keys[name].read(value) if value else None
        given = self._config.model_dump(exclude_none=True) | changes
        config = parse_config(ChatConfig, {k: v for k, v in given.items() if v is not None}, source="/set")
        self._model.prepare_text("x", **config.options())  # refuses what is out of range, before it is kept
        self._config = config
        shown = ", ".join(f"{name}={value}" for name, value in config.options().items())
        self._console.info(f"sampling: {shown or 'as the model says'}")

    def _set_mode(self, word: str) -> None:
        if word not in ("chat", "base"):
            self._console.warn("/mode takes chat or base")
        elif word == "chat" and self._model.template is None:
            self._console.warn(f"{self._model.name} has no chat template: it is a base model")
        else:
            self._talk.base = word == "base"
            self._talk.tools = self._talk.tools and not self._talk.base
            self._settle()
            self._console.info(f"the model now {self.mode}")

    def _set_tools(self, word: str) -> None:
        if self._model.tools is None and self._offer.offered == "all":
            self._console.warn(f"{self._model.name} has no tools")
        elif word in ("on", "off"):
            self._talk.tools, self._talk.base = word == "on", False
            self._settle()
            self._console.info(f"the model now {self.mode}")
        else:
            for line in list_tools(self._offer.offered, self._model.tools):
                print(f"  {line}", flush=True)

    def _settle(self) -> None:
        """A way of answering that has changed begins a new conversation."""
        self._talk.clear()
        alone = self._talk.tools or self._talk.base
        self._talk.remember = not alone if self._config.history is None else self._config.history

    def _save(self, file: str) -> None:
        if not file:
            self._console.warn("/save takes a file")
            return
        try:
            self._talk.save(Path(file).expanduser())
        except OSError as error:
            self._console.error(f"{file} cannot be written: {error.strerror}")
            return
        self._console.info(f"{len(self._talk.turns)} messages are in {file}")

    def _load(self, file: str) -> None:
        if not file:
            self._console.warn("/load takes a file")
            return
        self._talk.load(Path(file).expanduser())
        self._console.info(f"going on after {len(self._talk.turns)} messages of {file}")


@contextlib.contextmanager
def stopping() -> Iterator[Callable[[], bool]]:
    """In the block a first Ctrl-C makes the function it yields true and interrupts nothing; a second raises.

    So a step of the engine is not cut in half. Outside the main thread, where no signal comes, it is never true.
    """
    seen = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield seen.is_set
        return

    def note(number: int, frame: object) -> None:
        if seen.is_set():
            raise KeyboardInterrupt
        seen.set()

    before = signal.signal(signal.SIGINT, note)
    try:
        yield seen.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def _stopped_by(job: Job, stopped: Callable[[], bool]) -> Job:
    """The job, which also ends at the first token after `stopped` is true."""
    watch = job.request.watch

    def watch_both(token_id: int) -> bool:
        return (watch is not None and watch(token_id)) or stopped()

    return replace(job, request=replace(job.request, watch=watch_both))
