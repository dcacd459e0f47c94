"""`leveret serve`: a model answers at an OpenAI-compatible endpoint, until interrupted or, with `ask`, until done."""

from __future__ import annotations

import contextlib
import json
import os
import time
from typing import Any

from leveret.chat.messages import ToolCall
from leveret.commands import StageResult
from leveret.console import Console
from leveret.engine.backends.names import VLLM
from leveret.engine.text import TextModel
from leveret.extras import require
from leveret.paths import atomic_write
from leveret.serve.client import Answer, ask
from leveret.serve.config import ServeConfig
from leveret.serve.vllm import serve_by_vllm

KEY_VARIABLE = "LEVERET_API_KEY"
"""An environment variable that says what `api_key` would."""


def run(config: ServeConfig, console: Console) -> StageResult:
    """Serve; returns when interrupted, or when the questions of `ask` are answered."""
    if config.backend == VLLM:
        serve_by_vllm(_with_key(config), console)
    for package in ("fastapi", "uvicorn", "prometheus_client"):
        require(package, extra="serve", purpose="the server")
    config = _with_key(config)
    model = TextModel.load(
        config.model, dtype=config.dtype, device=config.device, quantize=config.quantize, backend=config.backend
    )
    return _answer(model, config, console) if config.ask else _serve(model, config, console)


def _with_key(config: ServeConfig) -> ServeConfig:
    """The config, with the key that the environment has if it has none."""
    key = os.environ.get(KEY_VARIABLE)
    return config.model_copy(update={"api_key": key}) if key and config.api_key is None else config


def _serve(model: TextModel, config: ServeConfig, console: Console) -> StageResult:
    from leveret.serve.running import bound_socket, server_for, url_of

    with bound_socket(config) as listener:
        server, url = server_for(model, config), url_of(listener)
        console.info(f"{config.served_model_name or model.name} answers at {url}/v1 (stop with Ctrl-C); try:")
        console.info(_curl(url, with_tools=model.tools is not None, with_chat=model.template is not None))
        with contextlib.suppress(KeyboardInterrupt):
            server.run([listener])
    console.info("stopped")
    return StageResult(output=None)


def _answer(model: TextModel, config: ServeConfig, console: Console) -> StageResult:
    from leveret.serve.running import running

    tools = None if model.tools is None else model.tools.to_openai()
    answers: list[dict[str, Any]] = []
    with running(model, config.model_copy(update={"port": 0})) as url:
        console.info(f"{config.served_model_name or model.name} answers at {url}/v1, streaming:")
        for question in config.ask:
            started = time.monotonic()
            answer = ask(url, question, tools=tools, api_key=next(iter(config.api_keys), None))
            console.print(f"> {question}")
            console.print(f"  {shown(answer, with_tools=bool(tools))}   ({(time.monotonic() - started) * 1000:.0f} ms)")
            calls = [{"name": call.name, "arguments": call.arguments} for call in answer.tool_calls]
            answers.append({"query": question, "content": answer.content, "calls": calls})
    if config.output is not None:
        lines = [json.dumps(answer, ensure_ascii=False) for answer in answers]
        config.output.mkdir(parents=True, exist_ok=True)
        atomic_write(config.output / "answers.jsonl", "\n".join(lines) + "\n")
    console.info(f"talk to it:  leveret chat {config.model}")
    console.info(f"serve it:    leveret serve {config.model}")
    return StageResult(output=config.output, summary={"answers": answers})


def shown(answer: Answer, *, with_tools: bool) -> str:
    """An answer on one line: its calls as a programmer would write them, or its text."""
    if not answer.tool_calls:
        nothing = "(cut off)" if answer.finish_reason == "length" else "(no tool fits)" if with_tools else "(nothing)"
        return answer.content or nothing
    return "; ".join(f"{call.name}({_arguments(call)})" for call in answer.tool_calls)


def _arguments(call: ToolCall) -> str:
    return ", ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in call.arguments.items())


def _curl(url: str, *, with_tools: bool, with_chat: bool) -> str:
    """A request to try, on one line."""
    path, body = "completions", '{"prompt": "Once upon a time", "max_tokens": 40}'
    if with_chat:
        path, body = "chat/completions", '{"messages": [{"role": "user", "content": "Hello!"}]}'
    if with_tools:
        body = '{"messages": [{"role": "user", "content": "Set a timer for five minutes"}], "tools": "all"}'
    return f"  curl {url}/v1/{path} -d '{body}'"
