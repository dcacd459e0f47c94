"""`leveret chat`: talk to a model in the terminal, or pipe messages in, one a line.

Answers appear as they are generated. Tool calls are shown with what a phone would do for them, and nothing is done.
A conversation that has outgrown the context loses its oldest turns, and says so.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator

from leveret.chat.messages import Message, ToolCall
from leveret.cli.chat_config import ChatConfig
from leveret.commands import StageResult
from leveret.console import Console
from leveret.engine.text import TextModel
from leveret.errors import RequestError, ToolError
from leveret.tools.android import plan

COMMANDS = {
    "/help": "this list",
    "/reset": "forget the conversation",
    "/system TEXT": "set the system message and forget the conversation; without TEXT the template's own",
    "/tools on|off": "let the model call its tools, or not; without a word list them",
    "/exit": "leave (so does Ctrl-D)",
}


def run(config: ChatConfig, console: Console) -> StageResult:
    """Answer until the input ends."""
    model = TextModel.load(config.model, dtype=config.dtype, device=config.device)
    session = Session(model, config, console)
    if sys.stdin.isatty():
        console.info(f"{model.name}: {session.mode}; /help lists the commands, /exit leaves")
    for line in _lines():
        if line and not session.handle(line):
            break
    return StageResult(output=None, summary={"answers": session.num_answers})


class Session:
    """One conversation: what was said, and what is switched on."""

    def __init__(self, model: TextModel, config: ChatConfig, console: Console) -> None:
        """Raises RequestError when the model cannot chat, or has no tools and they are asked for."""
        self._model = model
        self._config = config
        self._console = console
        self._system = config.system
        self._turns: list[Message] = []
        self._tools = model.tools is not None if config.tools is None else config.tools
        self.num_answers = 0
        model.prepare_chat([Message("user", "Hello")], tools="all" if self._tools else None)

    @property
    def mode(self) -> str:
        """What a message leads to, in words."""
        return "calls tools (dry run)" if self._tools else "answers in text"

    def handle(self, line: str) -> bool:
        """Obey a command or answer a message; False to leave."""
        if not line.startswith("/"):
            self._answer(line)
            return True
        word, _, rest = line.partition(" ")
        if word == "/exit":
            return False
        commands = {"/help": self._help, "/reset": self._reset, "/system": self._set_system, "/tools": self._set_tools}
        if word in commands:
            commands[word](rest.strip())
        else:
            self._console.warn(f"there is no command {word}; /help lists them")
        return True

    def _answer(self, text: str) -> None:
        self._turns.append(Message("user", text))
        try:
            reply, calls = self._stream()
        except RequestError as error:
            self._turns.pop()
            self._console.error(str(error))
            return
        except KeyboardInterrupt:
            self._turns.pop()
            print(" (interrupted)", flush=True)
            return
        self.num_answers += 1
        self._turns.append(Message("assistant", reply, tool_calls=calls))

    def _stream(self) -> tuple[str, tuple[ToolCall, ...]]:
        """Print the answer as it comes; returns its text and calls."""
        text, calls = "", []
        for delta in self._model.stream_chat(
            self._fitting_messages(), tools="all" if self._tools else None, **self._config.options()
        ):
            text += delta.content
            print(delta.content, end="", flush=True)
            if delta.tool_call is not None:
                calls.append(delta.tool_call)
                print(describe_call(delta.tool_call), flush=True)
            if delta.finish_reason == "length":
                print(" ... (cut off at max_tokens)", end="", flush=True)
        if not calls:
            print("" if text or not self._tools else "(no tool fits)", flush=True)
        return text, tuple(calls)

    def _fitting_messages(self) -> list[Message]:
        """What the model is shown; the oldest turns are forgotten when the context would overflow."""
        system = [] if self._system is None else [Message("system", self._system)]
        remember = not self._tools if self._config.history is None else self._config.history
        while True:
            messages = [*system, *(self._turns if remember else self._turns[-1:])]
            job = self._model.prepare_chat(messages, tools="all" if self._tools else None, **self._config.options())
            try:
                self._model.engine.check(job.request)
            except RequestError as error:
                if error.code != "context_length_exceeded" or len(self._turns) < 3 or not remember:
                    raise
                del self._turns[:2]
                self._console.warn("the conversation has outgrown the model's context: its oldest turn is forgotten")
                continue
            return messages

    def _help(self, rest: str) -> None:
        for usage, meaning in COMMANDS.items():
            print(f"  {usage:15} {meaning}", flush=True)

    def _reset(self, rest: str) -> None:
        self._turns.clear()
        self._console.info("the conversation is forgotten")

    def _set_system(self, text: str) -> None:
        self._system = text or None
        self._reset("")

    def _set_tools(self, word: str) -> None:
        if self._model.tools is None:
            self._console.warn(f"{self._model.name} has no tools")
        elif word in ("on", "off"):
            self._tools = word == "on"
            self._turns.clear()
            self._console.info(f"the model now {self.mode}")
        else:
            for tool in self._model.tools:
                print(
                    f"  {tool.name}({', '.join(each.name for each in tool.parameters)})  {tool.description}", flush=True
                )


def describe_call(call: ToolCall) -> str:
    """A call as a programmer would write it, and below it what an Android phone would be told."""
    arguments = ", ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in call.arguments.items())
    lines = [f"{call.name}({arguments})"]
    try:
        intent = plan(call)
    except ToolError:
        return lines[0]  # a tool of the user's own, for which we know no intent
    if intent.action is not None:
        lines.append(f"  dry run: {' '.join(intent.command())}")
    if intent.lookup is not None:
        lines.append(f"  after looking up the {intent.lookup[0]} {intent.lookup[1]!r}")
    if intent.needs_confirmation:
        lines.append("  to be confirmed by the user first")
    if intent.note is not None:
        lines.append(f"  note: {intent.note}")
    return "\n".join(lines)


def _lines() -> Iterator[str]:
    """Stripped lines of the input, with line editing on a terminal; ends at its end or at an interrupt."""
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin)
        return
    with contextlib.suppress(ImportError):  # where it exists, importing it gives input() editing and history
        import readline  # noqa: F401
    while True:
        try:
            yield input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
