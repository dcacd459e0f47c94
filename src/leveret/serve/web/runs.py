"""The routes of the runs: /runs lists them, /runs/NAME shows one. A name is looked up, never made into a path."""

from __future__ import annotations

from pathlib import Path

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route

from leveret.serve.web.language import Language, preferred
from leveret.serve.web.run_folder import runs_below
from leveret.serve.web.run_page import list_page, run_page


def runs_app(root: Path) -> Starlette:
    """The pages of the runs in a folder; the folder is looked through anew for each request."""

    async def listed(request: Request) -> Response:
        page = await run_in_threadpool(lambda: list_page(runs_below(root), _language(request)))
        return HTMLResponse(page)

    async def shown(request: Request) -> Response:
        name = request.path_params["name"]
        run = (await run_in_threadpool(runs_below, root)).get(name)
        if run is None:
            return PlainTextResponse("there is no such run", status_code=404)
        return HTMLResponse(await run_in_threadpool(lambda: run_page(name, run, _language(request))))

    return Starlette(routes=[Route("/runs", listed), Route("/runs/", listed), Route("/runs/{name}", shown)])


def _language(request: Request) -> Language:
    chosen = request.query_params.get("lang")
    if chosen in ("zh", "en"):
        return "zh" if chosen == "zh" else "en"
    return preferred(request.headers.get("accept-language", ""))
