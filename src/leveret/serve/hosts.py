"""Known hosts: whom a browser thinks it talks to, when it talks to this machine only.

A page of evil.example may let this name point at 127.0.0.1 once it is loaded (DNS rebinding). To the browser our
answers are its own then: the `Origin` is evil.example, and so is the `Host`, so that comparing the two says nothing. A
request that arrives at a loopback address must therefore call this machine by a name of its own, by the `host` that was
given, or by the name of an origin that may use the server anyway (`allow_origins`). With a key there is no need for it:
pages elsewhere do not know the key, and a cookie of ours is not sent to another name. Programs that are no browser are
not asked: what they put there is their affair.
"""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from leveret.errors import RequestError
from leveret.serve.config import ServeConfig
from leveret.serve.wire import error_body

BROWSERS = ("origin", "accept-language", "referer", "sec-fetch-mode")
"""Headers of which a browser sends at least one. Its pages can change the second and cannot leave it out
(https://fetch.spec.whatwg.org/#http-network-or-cache-fetch); a GET to their own host has no `Origin`."""


class KnownHosts:
    """An ASGI application that refuses, in front of another, what was meant for a host of another name."""

    def __init__(self, app: ASGIApp, *, config: ServeConfig) -> None:
        self._app = app
        origins = (urlsplit(origin).hostname for origin in config.allow_origins)
        self._names = {"localhost", config.host.lower(), *filter(None, origins)}
        self._open = bool(config.api_keys) or "*" in config.allow_origins or _is_everywhere(config.host)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._open or not _is_loopback((scope.get("server") or ("",))[0]):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        host = headers.get("host")
        if host is None or self._knows(host) or not any(name in headers for name in BROWSERS):
            await self._app(scope, receive, send)
            return
        status, body = error_body(
            RequestError(
                f"this server is not {host[:200]!r}: a page that came from there may not use it",
                code="forbidden",
                hint="call it 127.0.0.1 or localhost, list the origin in allow_origins, or set an API key",
            )
        )
        await JSONResponse(body, status_code=status)(scope, receive, send)

    def _knows(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:  # a bracket without its twin
            return False
        return name in self._names or _is_loopback(name)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _is_everywhere(address: str) -> bool:
    """Whether a server that listens there is reached by whatever names the machine has in its networks."""
    try:
        return not address or ipaddress.ip_address(address).is_unspecified
    except ValueError:
        return False
