"""`leveret chat`: talk to a model in the terminal, or pipe messages in, one a line.

Answers appear as they are generated. Tool calls are shown with what a phone would do for them, and nothing is done
unless a Python file of functions is given (chat_tools.py).
A conversation that has outgrown the context loses its oldest turns, and says so. A base model continues what is typed.
"""

from __future__ import annotations

import sys

from leveret.cli.chat_config import ChatConfig
from leveret.cli.chat_lines import messages
from leveret.cli.chat_session import Session
from leveret.cli.chat_tools import chat_tools
from leveret.commands import StageResult
from leveret.console import Console
from leveret.engine.text import TextModel


def run(config: ChatConfig, console: Console) -> StageResult:
    """Answer until the input ends."""
    model = TextModel.load(
        config.model,
        dtype=config.dtype,
        device=config.device,
        adapter=config.adapter,
        quantize=config.quantize,
        backend=config.backend,
        engine=config.engine,
    )
    with chat_tools(config, console) as tools:
        session = Session(model, config, console, tools)
        if sys.stdin.isatty():
            console.info(f"{model.name}: {session.mode}; /help lists the commands, /exit leaves")
        for line in messages():
            if line and not session.handle(line):
                break
    failed = session.num_failed
    failure = None
    if failed and not sys.stdin.isatty():
        failure = f"{failed} {'messages were' if failed > 1 else 'message was'} not answered"
    return StageResult(output=None, summary={"answers": session.num_answers}, failure=failure)
