"""The tools of `leveret chat`: what the model is offered, what runs its calls, and who is asked before an act.

(nothing)      the functions that the model has a token for; each call is shown as the intent a phone would be sent
tools=F.json   the functions declared in a file (OpenAI's form or MCP's); calls are shown, and nothing is run
tools=F.py     the functions of a Python file; calls run in a sandbox, acts only after a yes, and the model goes on
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leveret.chat.messages import ToolCall
from leveret.cli.chat_config import ChatConfig
from leveret.console import Console
from leveret.engine.conversation import Conversation
from leveret.engine.tool_calls import ListedTools
from leveret.engine.tool_loop import Runner, ToolLoop
from leveret.tools.call_text import describe_call, name_call
from leveret.tools.dry_run import DryRun
from leveret.tools.sandbox import Sandbox
from leveret.tools.schema import ToolSet, declarations

FILE_ROUNDS = 5
"""Most answers to one question where results are fed back."""


@dataclass(frozen=True, kw_only=True)
class ChatTools:
    """What a session offers, and what becomes of calls."""

    offered: ListedTools = "all"
    runner: Runner
    max_rounds: int = 1
    allowed: tuple[str, ...] = ()
    """Acts that need no yes."""
    runs: bool = False
    """Whether anything is done at all."""

    @property
    def describe(self) -> Callable[[ToolCall], str]:
        """How a call is shown: with the intent of a phone where it is not run."""
        return name_call if self.runs else describe_call


DRY_RUN = ChatTools(runner=DryRun())
"""The model's own functions, shown and not run."""


@contextlib.contextmanager
def chat_tools(config: ChatConfig, console: Console) -> Iterator[ChatTools]:
    """The tools of a session; a sandbox lives as long as the block. ToolError when the file cannot be offered."""
    file = config.tools if isinstance(config.tools, Path) else None
    if file is None or file.suffix != ".py":
        offered: ListedTools = "all" if file is None else list(declarations(file))
        yield ChatTools(offered=offered, runner=DryRun(), max_rounds=config.max_rounds or 1)
        return
    limits = config.sandbox
    with Sandbox(file, seconds=limits.seconds, memory_mib=limits.memory_mib, network=limits.network) as sandbox:
        console.info(f"{', '.join(sandbox.names)} run with: {'; '.join(sandbox.held)}")
        yield ChatTools(
            offered=sandbox.declarations,
            runner=sandbox,
            max_rounds=config.max_rounds or FILE_ROUNDS,
            allowed=tuple(config.allow),
            runs=True,
        )


class TerminalLoop:
    """Runs the calls of an answer where their results are wanted, and prints what came of them."""

    def __init__(self, tools: ChatTools, console: Console) -> None:
        self._tools = tools
        self._console = console
        self._always = set(tools.allowed)
        self._loop = ToolLoop(tools.runner, confirm=self._confirm, max_rounds=tools.max_rounds)

    def begin(self) -> None:
        """A new question."""
        self._loop.begin()

    def goes_on(self, talk: Conversation, calls: list[ToolCall]) -> bool:
        """Run the calls if that is to be done; whether the model is to be asked again."""
        if not calls or (not self._tools.runs and self._tools.max_rounds == 1):
            return False
        for _, outcome in self._loop.feed_back(talk, calls):
            print(f"  {'error' if outcome.failed else '->'} {outcome.text}", flush=True)
        if self._loop.goes_on(calls):
            return True
        self._console.info("that was the last round of calls: say something, or set max_rounds higher")
        return False

    def _confirm(self, call: ToolCall) -> bool:
        if call.name in self._always:
            return True
        if not sys.stdin.isatty():
            self._console.warn(f"{call.name} is an act, and nobody is there to allow it; allow=[{call.name}] would")
            return False
        while True:
            try:
                answer = input(f"  run {name_call(call)}? [y]es, [n]o, [a]lways: ").strip().lower()
            except (EOFError, KeyboardInterrupt):
                return False
            if answer in ("a", "always"):
                self._always.add(call.name)
            if answer in ("y", "yes", "a", "always", "n", "no"):
                return answer[0] != "n"


def list_tools(offered: ListedTools, own: ToolSet | None) -> list[str]:
    """The functions that are offered, one a line: its name, its arguments, what it does."""
    entries = [] if offered is None else own.to_openai() if offered == "all" and own is not None else list(offered)
    lines = []
    for entry in entries:
        function: Mapping[str, Any] = {"name": entry} if isinstance(entry, str) else entry.get("function", entry)
        schema = function.get("parameters", function.get("inputSchema")) or {}
        names = ", ".join(schema.get("properties", {}))
        lines.append(f"{function.get('name')}({names})  {function.get('description') or ''}".rstrip())
    return lines
