"""The HTTP application: routes of the OpenAI API, of adapters, and for those who watch the server.

    GET   /health  /version  /metrics            open to all; HEAD too, and so below
    GET   /v1/models  /v1/models/NAME            with a key, if one is set, as everything below
    POST  /v1/completions  /v1/chat/completions
    POST  /v1/embeddings                         refused, with the reason
    POST  /v1/load_lora_adapter  /v1/unload_lora_adapter

The handlers are in `handlers.py`, who may call them in `guard.py` and `hosts.py`, the pages for people in `web/`.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from leveret.engine.text import TextModel
from leveret.errors import LeveretError, RequestError
from leveret.serve.config import ServeConfig
from leveret.serve.handlers import Handlers
from leveret.serve.hosts import KnownHosts
from leveret.serve.metrics import CountRequests
from leveret.serve.models import configured
from leveret.serve.web.pages import add_pages
from leveret.serve.wire import error_body

PREFIX = "/v1/"
GENERATING = (f"{PREFIX}chat/completions", f"{PREFIX}completions")


def create_app(model: TextModel, config: ServeConfig) -> FastAPI:
    """The application for one model; its worker lives from start-up to shutdown.

    `app.state.handlers` can drain it. Raises ConfigError and the like when an adapter or a template cannot be used.
    """
    model = configured(model, config, name=config.served_model_name)
    handlers = Handlers(model, config)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        handlers.start()
        try:
            yield
        finally:
            handlers.close()

    app = FastAPI(title="Leveret", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.state.handlers = handlers
    app.add_exception_handler(Exception, _answer_error)
    for kind in (LeveretError, HTTPException, ClientDisconnect):
        app.add_exception_handler(kind, _answer_error)
    endpoints = _add_routes(app, handlers)
    add_pages(app, model, config, handlers.submit)
    if config.allow_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=config.allow_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type", "*"],
        )
    app.add_middleware(KnownHosts, config=config)
    app.add_middleware(CountRequests, metrics=handlers.metrics, endpoints=endpoints)
    return app


def _add_routes(app: FastAPI, handlers: Handlers) -> frozenset[str]:
    """Put the handlers in their places; the paths."""
    reading: dict[str, Callable[..., Any]] = {
        "/health": handlers.health,
        "/version": handlers.version,
        "/metrics": handlers.metrics_text,
        "/v1/models": handlers.models,
        "/v1/models/{name:path}": handlers.one_model,
    }
    writing: dict[str, Callable[..., Any]] = {
        "/v1/completions": handlers.complete,
        "/v1/chat/completions": handlers.chat,
        "/v1/embeddings": handlers.embed,
        "/v1/load_lora_adapter": handlers.load_adapter,
        "/v1/unload_lora_adapter": handlers.unload_adapter,
    }
    for path, read in reading.items():
        app.add_api_route(path, read, methods=["GET", "HEAD"], response_model=None)
    for path, write in writing.items():
        app.add_api_route(path, write, methods=["POST"], response_model=None)
    return frozenset([*reading, *writing])


async def _answer_error(request: Request, error: Exception) -> Response:
    if isinstance(error, ClientDisconnect):
        return Response(status_code=499)  # gone before its request was whole: nobody reads this
    headers: dict[str, str] = {}
    if isinstance(error, HTTPException):
        headers.update(error.headers or {})  # a 405 says which methods there are
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code)
        hint = _way_to(request.url.path) if error.status_code == 404 else None
        error = RequestError(f"{request.method} {request.url.path}: {error.detail}", code=code, hint=hint)
    status, body = error_body(error)
    further = {401: {"WWW-Authenticate": "Bearer"}, 429: {"Retry-After": "1"}, 503: {"Retry-After": "5"}}
    headers.update(further.get(status, {}))
    return JSONResponse(body, status_code=status, headers=headers)


def _way_to(path: str) -> str | None:
    """What a client may have meant that asked at a path where nothing is: most forget the /v1 of the base URL."""
    if path.startswith(PREFIX):
        return f"texts are generated at {' and '.join(GENERATING)}"
    meant = f"{PREFIX}{path.lstrip('/')}"
    return f"the API is under {PREFIX}: {meant}" if meant in (*GENERATING, f"{PREFIX}models") else None
