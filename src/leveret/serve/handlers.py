"""The handlers of the API: a body in, jobs to the worker, what comes back out.

A handler checks who asks, reads and checks the body, makes jobs of it (tokenizing runs in a thread pool, so that a long
prompt does not hold up others), hands them to the worker and writes what comes back. When the client goes away, its
jobs are cancelled.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool

from leveret.engine.reply import Delta, Usage, reply_from
from leveret.engine.text import TextModel
from leveret.errors import LeveretError, RequestError
from leveret.serve.asked import Asked, ask_chat, ask_text
from leveret.serve.config import ServeConfig
from leveret.serve.guard import Guard
from leveret.serve.inbox import Inbox, events
from leveret.serve.metrics import CONTENT_TYPE, Metrics
from leveret.serve.models import ServedModels, explain
from leveret.serve.protocol import AdapterBody, Body, ChatBody, CompletionBody, StreamOptions, parse_body, parse_object
from leveret.serve.ticket import Ticket
from leveret.serve.wire import Wire, error_body, event
from leveret.serve.worker import Worker
from leveret.version import VERSION


class Handlers:
    """The handlers, and what they share."""

    def __init__(self, model: TextModel, config: ServeConfig) -> None:
        self._config = config
        self._model = model
        self._models = ServedModels(model, config)
        self._guard = Guard(config)
        self.metrics = Metrics()
        self.metrics.watch_engines(self._models.engine_stats)
        self._worker: Worker | None = None
        self._draining = False

    def start(self) -> None:
        """Begin to answer."""
        self._worker = Worker(
            self._model,
            max_running=self._config.max_concurrent_requests,
            max_waiting=self._config.max_waiting_requests,
            max_seconds=self._config.max_answer_seconds,
            metrics=self.metrics,
        )

    def drain(self) -> None:
        """Take nothing new; what runs goes on."""
        self._draining = True
        if self._worker is not None:
            self._worker.drain()

    def close(self) -> None:
        """End; what still runs is answered with an error."""
        if self._worker is not None:
            self._worker.close()

    @property
    def busy(self) -> bool:
        """Whether anything is being answered, or an answer is on its way to its client."""
        return self.metrics.num_open > 0 or (self._worker is not None and self._worker.busy)

    def submit(self, ticket: Ticket) -> None:
        """Hand a ticket to the worker; for the pages, which are no part of the API."""
        assert self._worker is not None, "the application has not been started"
        self._worker.submit(ticket)

    async def health(self) -> Response:
        running = 0 if self._worker is None else self._worker.num_running
        status = "draining" if self._draining else "ok"
        content = {"status": status, "model": self._models.name, "running": running}
        return JSONResponse(content, status_code=503 if self._draining else 200)

    async def version(self) -> dict[str, str]:
        return {"version": VERSION}

    async def metrics_text(self) -> Response:
        return Response(self.metrics.text(), media_type=CONTENT_TYPE)

    async def models(self, request: Request) -> dict[str, Any]:
        self._guard.check(request)
        return {"object": "list", "data": self._models.cards()}

    async def one_model(self, request: Request, name: str) -> dict[str, Any]:
        self._guard.check(request)
        return self._models.card(name)

    async def complete(self, request: Request) -> Response:
        body = await self._body(request, CompletionBody)
        model = self._models.find(body.model)
        asked = await run_in_threadpool(ask_text, model, body, most_tokens=self._config.max_answer_tokens)
        return await self._respond(request, body, asked, model, "text_completion")

    async def chat(self, request: Request) -> Response:
        body = await self._body(request, ChatBody)
        model = self._models.find(body.model)
        asked = await run_in_threadpool(ask_chat, model, body, most_tokens=self._config.max_answer_tokens)
        return await self._respond(request, body, asked, model, "chat.completion")

    async def embed(self, request: Request) -> Response:
        self._guard.check(request)
        raise RequestError(
            "this server generates text; it gives no embeddings", param="model", code="unsupported_endpoint"
        )

    async def load_adapter(self, request: Request) -> Response:
        body = await self._adapter_body(request)
        if body.lora_path is None:
            raise RequestError("lora_path is missing", param="lora_path", code="missing_required_parameter")
        try:
            await run_in_threadpool(self._models.load, body.lora_name, body.lora_path)
        except LeveretError as error:
            raise explain(error, body.lora_path) from None
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    async def unload_adapter(self, request: Request) -> Response:
        body = await self._adapter_body(request)
        await run_in_threadpool(self._models.unload, body.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    async def _adapter_body(self, request: Request) -> AdapterBody:
        self._guard.check(request)
        if not self._guard.has_keys:
            raise RequestError(
                "adapters are loaded over HTTP only at a server with an API key", code="forbidden",
                hint="give them at the start: leveret serve MODEL --adapter NAME=FOLDER",
            )  # fmt: skip
        return parse_object(AdapterBody, await self._guard.read(request))

    async def _body(self, request: Request, kind: type[Body]) -> Any:
        """The body, read and checked; the client is authorized first."""
        self._guard.check(request)
        if self._draining:
            raise RequestError("the server is shutting down", code="shutting_down")
        body = parse_body(kind, await self._guard.read(request))
        if self._worker is not None and body.num_answers > self._worker.max_jobs:  # it would never fit
            raise RequestError(
                f"{body.num_answers} answers are asked for; this server takes {self._worker.max_jobs} at a time",
                param="n",
                code="invalid_value",
            )
        return body

    async def _respond(self, request: Request, body: Body, asked: Asked, model: TextModel, kind: str) -> Response:
        options = body.stream_options or StreamOptions()
        counts = options.include_usage and options.continuous_usage_stats
        wire = Wire(
            kind=kind,
            model=self._models.name if body.model is None else body.model,
            jobs_per_prompt=asked.jobs_per_prompt,
            include_usage=options.include_usage,
            prompt_tokens=tuple(len(job.request.prompt_ids) for job in asked.jobs) if counts else (),
            role=self._config.response_role,
            tokenizer=asked.tokenizer,
            echoes=asked.echoes,
            choices_per_prompt=asked.choices_per_prompt,
        )
        inbox = Inbox(asyncio.get_running_loop())
        ticket = Ticket(asked.jobs, inbox.put, inbox.fail, model=model, counts=counts)
        self.submit(ticket)
        if body.stream:
            headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            pieces = _stream(request, ticket, inbox, wire, asked)
            return StreamingResponse(pieces, media_type="text/event-stream", headers=headers)
        return await _whole(request, ticket, inbox, wire, asked)


async def _whole(request: Request, ticket: Ticket, inbox: Inbox, wire: Wire, asked: Asked) -> Response:
    """A response that is not streamed."""
    deltas: list[list[Delta]] = [[] for _ in ticket.jobs]
    async with contextlib.aclosing(events(request, ticket, inbox)) as arrivals:
        async for news in arrivals:
            for index, fresh in news:
                deltas[index] += asked.shown(fresh)
    if any(not pieces or pieces[-1].finish_reason is None for pieces in deltas):
        return Response(status_code=499)  # the client has gone: nobody reads this
    written = await run_in_threadpool(_written, deltas, wire, asked)  # megabytes, with log probabilities
    return Response(written, media_type="application/json")


def _written(deltas: Sequence[Sequence[Delta]], wire: Wire, asked: Asked) -> bytes:
    """The body of a whole response."""
    replies = [reply_from(pieces) for pieces in deltas]
    content = wire.whole(asked.best(replies), usages=[reply.usage for reply in replies])
    return json.dumps(content, ensure_ascii=False).encode()


async def _stream(request: Request, ticket: Ticket, inbox: Inbox, wire: Wire, asked: Asked) -> AsyncIterator[bytes]:
    """The body of a streamed response."""
    usages: dict[int, Usage] = {}
    yield wire.opening(len(ticket.jobs))
    try:
        async with contextlib.aclosing(events(request, ticket, inbox)) as arrivals:
            async for news in arrivals:
                pieces = []
                for index, delta in ((index, delta) for index, fresh in news for delta in asked.shown(fresh)):
                    if delta.usage is not None:
                        usages[index] = delta.usage
                    pieces.append(wire.piece(index, delta))
                yield b"".join(pieces)
    except Exception as error:  # the status line is sent already, so the error travels in the stream
        yield event(error_body(error)[1])
        return
    if len(usages) == len(ticket.jobs):
        yield wire.closing([usages[index] for index in sorted(usages)])
