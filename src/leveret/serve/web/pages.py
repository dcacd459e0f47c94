"""The pages, /gradio and /runs, put on the application of the API behind their door; `app.py` knows `add_pages` only.

Gradio is imported, and its page built, when the page is first opened, in a thread: the API starts at once and pays
nothing. Where Gradio is not installed, /gradio says which command brings it, and the rest works.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from leveret.engine.text import TextModel
from leveret.errors import MissingExtra
from leveret.extras import require
from leveret.serve.config import ServeConfig
from leveret.serve.ticket import Ticket
from leveret.serve.web.door import GRADIO_POLICY, LOGIN, STILL_POLICY, Door, log_in
from leveret.serve.web.runs import runs_app
from leveret.serve.web.talk import Talk

PATH = "/gradio"
ICON = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32" fill="#2563eb"><circle cx="16" cy="21" r="9"/>'
    '<ellipse cx="11" cy="9" rx="3" ry="8"/><ellipse cx="21" cy="9" rx="3" ry="8"/></svg>'
)
"""A hare's head: browsers ask for it unasked, and a 404 in their log looks like a fault."""


def add_pages(app: FastAPI, model: TextModel, config: ServeConfig, submit: Callable[[Ticket], None]) -> None:
    """Put the pages that the config asks for on the application; `submit` hands a ticket to its worker."""
    pages: dict[str, ASGIApp] = {}
    most, keys = config.max_body_bytes, config.api_keys
    if config.page:
        talk = Talk(model=model, submit=submit)
        name = config.served_model_name or model.name
        gradio = GradioPage(talk, name, runs=config.runs is not None)
        pages[PATH] = Door(gradio, api_keys=keys, most_bytes=most, policy=GRADIO_POLICY)
        app.router.lifespan_context = _closing(app.router.lifespan_context, gradio)
    if config.runs is not None:
        pages["/runs"] = Door(runs_app(config.runs), api_keys=keys, most_bytes=most, policy=STILL_POLICY)
    if pages:
        app.add_middleware(_Pages, pages=pages)
        _add_side_doors(app, keys)


def _add_side_doors(app: FastAPI, api_keys: tuple[str, ...]) -> None:
    """Where the key is typed, and what browsers ask every site for."""

    async def enter(request: Request) -> Response:
        return await log_in(request, api_keys)

    async def manifest() -> Response:
        return JSONResponse({"name": "Leveret", "start_url": f"{PATH}/", "display": "browser"})

    async def icon() -> Response:
        return Response(ICON, media_type="image/svg+xml")

    app.add_api_route(LOGIN, enter, methods=["POST"])
    app.add_api_route("/manifest.json", manifest, methods=["GET"])
    app.add_api_route("/favicon.ico", icon, methods=["GET"])


class _Pages:
    """Middleware: what is below a page's path goes to the page, all else to the API."""

    def __init__(self, app: ASGIApp, pages: dict[str, ASGIApp]) -> None:
        self._app = app
        self._pages = pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        page = next((page for top, page in self._pages.items() if path == top or path.startswith(f"{top}/")), None)
        if page is None or scope["type"] != "http":
            await self._app(scope, receive, send)
        else:
            await page(scope, receive, send)


class GradioPage:
    """An ASGI application that becomes the Gradio page when it is first asked for it."""

    def __init__(self, talk: Talk, name: str, *, runs: bool) -> None:
        self._talk, self._name, self._runs = talk, name, runs
        self._lock = asyncio.Lock()
        self._app: FastAPI | None = None
        self._life: asyncio.Task[None] | None = None
        self._end = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == PATH:
            await RedirectResponse(f"{PATH}/")(scope, receive, send)
            return
        try:
            app = await self._opened()
        except MissingExtra as error:
            text = f"{error.message}.\n{error.hint}\n\nThe API works without it.\n"
            await PlainTextResponse(text, status_code=501)(scope, receive, send)
            return
        await app(scope, receive, send)

    async def close(self) -> None:
        """End what Gradio has running."""
        self._end.set()
        if self._life is not None:
            await self._life

    async def _opened(self) -> FastAPI:
        async with self._lock:
            if self._app is None:
                app = await run_in_threadpool(asyncio.run, self._built())
                started = asyncio.Event()
                self._life = asyncio.create_task(self._live(app, started))
                await started.wait()
                self._app = app
            return self._app

    async def _built(self) -> FastAPI:
        """The page. Async, though it waits for nothing: without a running loop Gradio makes one a lock."""
        require("gradio", extra="web", purpose="the page at /gradio")
        from leveret.serve.web.mounted import mounted

        return mounted(self._talk, self._name, PATH, runs=self._runs)

    async def _live(self, app: FastAPI, started: asyncio.Event) -> None:
        """Gradio's own start and end, both in one task, as its context wants."""
        async with app.router.lifespan_context(app):
            started.set()
            await self._end.wait()


def _closing(lifespan: Callable[[Any], Any], page: GradioPage) -> Callable[[Any], Any]:
    """The lifespan of the application, at whose end the page is closed first."""

    @contextlib.asynccontextmanager
    async def with_page(app: Any) -> Any:
        async with lifespan(app) as state:
            try:
                yield state
            finally:
                await page.close()

    return with_page
