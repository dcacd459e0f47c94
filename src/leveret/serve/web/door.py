"""The door to the pages: who may come in, from where, and what a page may load.

* With an API key set, the key is first typed; the browser then carries a cookie (not the key but a MAC under it,
  unreadable to scripts, never sent along from other sites). Programs may send `Authorization: Bearer <key>` instead.
* A request that another site's page makes is refused: its `Origin` is not this host. Gradio alone would allow it.
* The answer forbids the browser to load anything from elsewhere, whatever a model has written into its answer: an
  image in Markdown, whose address could carry a conversation away, is not fetched.
* Bodies are limited, and doors of Gradio that no page of ours uses (uploads, its proxy) are shut.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from hashlib import sha256
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request, cookie_parser
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from leveret.serve.web.login_page import login_page

COOKIE = "leveret_page"
LOGIN = "/login"
SHUT = ("/gradio_api/upload", "/gradio_api/proxy=", "/gradio_api/stream/", "/gradio_api/deep_link")
MOST_LOGIN_BYTES = 10_000

GRADIO_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; object-src 'none'; "
    "base-uri 'self'; form-action 'self'; frame-ancestors 'none'"
)
"""Gradio's own scripts are inline and evaluated; nothing may come from another host."""
STILL_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'self'; frame-ancestors 'none'"
)
"""For pages without a script."""


class Door:
    """An ASGI application that lets requests through to the pages behind it, or answers them itself."""

    def __init__(self, pages: ASGIApp, *, api_keys: Sequence[str], most_bytes: int, policy: str) -> None:
        self._pages = pages
        self._api_keys = api_keys
        self._most_bytes = most_bytes
        self._policy = policy

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        refusal = self._refusal(scope["method"], scope["path"], headers)
        if refusal is None and not self._knows(headers):
            refusal = HTMLResponse(login_page(headers, next_path=scope["path"]), status_code=401)
        if refusal is None:
            await self._pages(scope, receive, self._guarded(send))
        else:
            await refusal(scope, receive, self._guarded(send, STILL_POLICY))

    def _refusal(self, method: str, path: str, headers: Mapping[str, str]) -> Response | None:
        if not same_origin(headers):
            return PlainTextResponse("this page cannot be used from another site", status_code=403)
        if any(each in path for each in SHUT):
            return PlainTextResponse("not here", status_code=404)
        length = headers.get("content-length", "0" if method in ("GET", "HEAD") else "")
        if not length.isdecimal():
            return PlainTextResponse("say how long the body is (Content-Length)", status_code=411)
        if int(length) > self._most_bytes:
            return PlainTextResponse(f"the body is larger than {self._most_bytes} bytes", status_code=413)
        return None

    def _knows(self, headers: Headers) -> bool:
        if not self._api_keys:
            return True
        bearer = headers.get("authorization", "").removeprefix("Bearer ")
        cookie = cookie_parser(headers.get("cookie", "")).get(COOKIE, "")
        given = (bearer.encode("latin-1"), cookie.encode("latin-1"))  # as which headers are read
        return bool(_matching(given[0], self._api_keys)) or any(
            hmac.compare_digest(given[1], ticket_for(key).encode()) for key in self._api_keys
        )

    def _guarded(self, send: Send, policy: str | None = None) -> Send:
        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = policy or self._policy
                headers["Referrer-Policy"] = "same-origin"
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        return send_guarded


async def log_in(request: Request, api_keys: Sequence[str]) -> Response:
    """Take the key from the form of the login page; the cookie is the answer to the right one."""
    length = request.headers.get("content-length", "")
    if not same_origin(request.headers) or not length.isdecimal() or int(length) > MOST_LOGIN_BYTES:
        return PlainTextResponse("not from here, or too long", status_code=403)
    fields = {name: values[0] for name, values in parse_qs((await request.body()).decode(errors="replace")).items()}
    target = local_path(fields.get("next", ""))
    key = _matching(fields.get("key", "").encode(), api_keys)
    if api_keys and key is None:
        page = login_page(request.headers, next_path=target, wrong=True)
        return HTMLResponse(page, status_code=401, headers={"Content-Security-Policy": STILL_POLICY})
    response = RedirectResponse(target, status_code=303)
    if key is not None:
        secure = request.url.scheme == "https"
        response.set_cookie(COOKIE, ticket_for(key), httponly=True, samesite="strict", secure=secure, path="/")
    return response


def _matching(given: bytes, keys: Sequence[str]) -> str | None:
    """The key that was given, if it is one."""
    return next((key for key in keys if hmac.compare_digest(given, key.encode())), None)


def ticket_for(api_key: str) -> str:
    """What a browser that knew the key carries; it does not give the key away."""
    return hmac.new(api_key.encode(), b"the pages of leveret", sha256).hexdigest()


def same_origin(headers: Mapping[str, str]) -> bool:
    """False for what a page of another site asked for; programs send no Origin."""
    origin = headers.get("origin")
    return origin is None or urlsplit(origin).netloc == headers.get("host")


def local_path(path: str) -> str:
    """The path if it leads to this server; else the conversation's."""
    return path if path.startswith("/") and path[1:2] not in ("/", "\\") and path.isprintable() else "/gradio/"
