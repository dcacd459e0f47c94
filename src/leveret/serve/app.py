"""The HTTP application: routes of the OpenAI API over one `Worker`.

A handler reads and checks the body, makes jobs of it (tokenizing runs in a thread pool, so that a long prompt does not
hold up others), hands them to the worker and writes what comes back. When the client goes away, its jobs are cancelled.
There is no CORS header: a web page from elsewhere cannot use a server on your machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from leveret.engine.reply import Delta, Usage, reply_from
from leveret.engine.text import Job, TextModel
from leveret.errors import LeveretError, RequestError
from leveret.serve.config import ServeConfig
from leveret.serve.protocol import Body, ChatBody, CompletionBody, parse_body
from leveret.serve.wire import Wire, error_body, event
from leveret.serve.worker import Ticket, Worker


def create_app(model: TextModel, config: ServeConfig) -> FastAPI:
    """The application for one model; its worker lives from start-up to shutdown."""
    name = config.served_model_name or model.name
    endpoint = _Endpoint(model, config, name)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        endpoint.start()
        try:
            yield
        finally:
            endpoint.close()

    app = FastAPI(title="Leveret", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.add_exception_handler(Exception, _answer_error)
    for kind in (LeveretError, HTTPException):
        app.add_exception_handler(kind, _answer_error)
    app.add_api_route("/health", endpoint.health, methods=["GET"])
    app.add_api_route("/v1/models", endpoint.models, methods=["GET"])
    app.add_api_route("/v1/models/{name:path}", endpoint.one_model, methods=["GET"])
    app.add_api_route("/v1/completions", endpoint.complete, methods=["POST"])
    app.add_api_route("/v1/chat/completions", endpoint.chat, methods=["POST"])
    return app


class _Endpoint:
    """The handlers, and what they share."""

    def __init__(self, model: TextModel, config: ServeConfig, name: str) -> None:
        self._model = model
        self._config = config
        self._name = name
        self._worker: Worker | None = None

    def start(self) -> None:
        self._worker = Worker(
            self._model,
            max_running=self._config.max_concurrent_requests,
            max_waiting=self._config.max_waiting_requests,
        )

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()

    async def health(self) -> dict[str, Any]:
        running = 0 if self._worker is None else self._worker.num_running
        return {"status": "ok", "model": self._name, "running": running}

    async def models(self, request: Request) -> dict[str, Any]:
        self._authorize(request)
        return {"object": "list", "data": [self._card()]}

    async def one_model(self, request: Request, name: str) -> dict[str, Any]:
        self._authorize(request)
        self._check_model(name)
        return self._card()

    async def complete(self, request: Request) -> Response:
        body = await self._body(request, CompletionBody)
        jobs = await run_in_threadpool(self._text_jobs, body)
        return await self._respond(request, body, jobs, "text_completion")

    async def chat(self, request: Request) -> Response:
        body = await self._body(request, ChatBody)
        jobs = await run_in_threadpool(self._chat_jobs, body)
        return await self._respond(request, body, jobs, "chat.completion")

    def _text_jobs(self, body: CompletionBody) -> list[Job]:
        jobs = []
        for prompt in body.prompts:
            for choice in range(body.n or 1):
                options = body.sampling()
                if body.seed is not None:
                    options["seed"] = body.seed + choice
                jobs.append(self._model.prepare_text(prompt, **options))
        return jobs

    def _chat_jobs(self, body: ChatBody) -> list[Job]:
        names, choice = body.offer()
        jobs = []
        for index in range(body.n or 1):
            options = body.sampling()
            if body.seed is not None:
                options["seed"] = body.seed + index
            job = self._model.prepare_chat(
                body.messages,
                tools=names,
                tool_choice=choice,
                parallel_tool_calls=body.parallel_tool_calls is not False,
                **options,
            )
            jobs.append(job)
        return jobs

    async def _body(self, request: Request, kind: type[Body]) -> Any:
        """The body, read and checked; the client is authorized first."""
        self._authorize(request)
        limit, raw = self._config.max_body_bytes, bytearray()
        async for piece in request.stream():
            raw += piece
            if len(raw) > limit:
                raise RequestError(f"the body is larger than {limit} bytes", code="request_too_large")
        body = parse_body(kind, bytes(raw))
        if body.model is not None:
            self._check_model(body.model)
        return body

    async def _respond(self, request: Request, body: Body, jobs: list[Job], kind: str) -> Response:
        assert self._worker is not None, "the application has not been started"
        usage = body.stream_options is not None and body.stream_options.include_usage
        wire = Wire(kind=kind, model=self._name, choices_per_prompt=body.n or 1, include_usage=usage)
        inbox = _Inbox(asyncio.get_running_loop())
        ticket = Ticket(jobs, inbox.put, inbox.fail)
        try:
            self._worker.submit(ticket)
        except RequestError as error:
            if wire.chat and error.param == "prompt":  # the engine's word for what a chat calls its messages
                error.param = "messages"
            raise
        if body.stream:
            headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
            pieces = _stream(request, ticket, inbox, wire)
            return StreamingResponse(pieces, media_type="text/event-stream", headers=headers)
        deltas: list[list[Delta]] = [[] for _ in jobs]
        async with contextlib.aclosing(_events(request, ticket, inbox)) as events:
            async for index, fresh in events:
                deltas[index] += fresh
        if any(not pieces or pieces[-1].finish_reason is None for pieces in deltas):
            return Response(status_code=499)  # the client has gone: nobody reads this
        return JSONResponse(wire.whole([reply_from(pieces) for pieces in deltas]))

    def _card(self) -> dict[str, Any]:
        context = self._model.engine.context_tokens
        return {"id": self._name, "object": "model", "created": 0, "owned_by": "leveret", "max_model_len": context}

    def _check_model(self, name: str) -> None:
        if name != self._name:
            raise RequestError(
                f"there is no model {name!r}", param="model", code="model_not_found", hint=f"it serves {self._name!r}"
            )

    def _authorize(self, request: Request) -> None:
        key = self._config.api_key
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if key is not None and not hmac.compare_digest(given.encode(), key.encode()):
            raise RequestError("the API key is missing or wrong", code="invalid_api_key")


class _Inbox:
    """Brings events from the worker's thread into a handler's event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: asyncio.Queue[tuple[int, list[Delta]] | BaseException] = asyncio.Queue()

    def put(self, index: int, deltas: list[Delta]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._queue.put_nowait, (index, deltas))

    def fail(self, error: BaseException) -> None:
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._queue.put_nowait, error)

    async def get(self) -> tuple[int, list[Delta]]:
        """The next event; raises the error that ended the ticket."""
        item = await self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item


async def _events(request: Request, ticket: Ticket, inbox: _Inbox) -> AsyncGenerator[tuple[int, list[Delta]]]:
    """Events of a ticket until all its jobs have ended or the client has gone; cancels the ticket on the way out."""
    gone = asyncio.create_task(_disconnected(request))
    unfinished = len(ticket.jobs)
    try:
        while unfinished:
            arrival = asyncio.create_task(inbox.get())
            await asyncio.wait({arrival, gone}, return_when=asyncio.FIRST_COMPLETED)
            if not arrival.done():
                arrival.cancel()
                return
            index, deltas = arrival.result()
            unfinished -= deltas[-1].finish_reason is not None
            yield index, deltas
    finally:
        ticket.cancel()
        gone.cancel()


async def _stream(request: Request, ticket: Ticket, inbox: _Inbox, wire: Wire) -> AsyncIterator[bytes]:
    """The body of a streamed response."""
    usages: dict[int, Usage] = {}
    yield wire.opening(len(ticket.jobs))
    try:
        async with contextlib.aclosing(_events(request, ticket, inbox)) as events:
            async for index, deltas in events:
                for delta in deltas:
                    if delta.usage is not None:
                        usages[index] = delta.usage
                    yield wire.piece(index, delta)
    except Exception as error:  # the status line is sent already, so the error travels in the stream
        yield event(error_body(error)[1])
        return
    if len(usages) == len(ticket.jobs):
        yield wire.closing([usages[index] for index in sorted(usages)])


async def _disconnected(request: Request) -> None:
    """Returns when the client has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _answer_error(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
        error = RequestError(f"{request.method} {request.url.path}: {error.detail}", code=code)
    status, body = error_body(error)
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    return JSONResponse(body, status_code=status, headers=headers)
