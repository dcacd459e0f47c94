"""The guard: who may ask, from where, how much at a time, and whether we take anything new.

* With keys set, a request must carry one of them. Keys are compared in constant time.
* A web page elsewhere may not use the server unless its origin is on the list: browsers name the page's origin, and not
  sending CORS headers would only hide the answer from the page, not spare us the work. Programs name no origin.
* A body is read up to a number of bytes and for a number of seconds.
"""

from __future__ import annotations

import asyncio
import hmac
from urllib.parse import urlsplit

from starlette.requests import Request

from leveret.errors import RequestError
from leveret.serve.config import ServeConfig


class Guard:
    """The rules of one server."""

    def __init__(self, config: ServeConfig) -> None:
        self._keys = tuple(key.encode() for key in config.api_keys)
        self._origins = frozenset(config.allow_origins)
        self._max_bytes = config.max_body_bytes
        self._max_seconds = config.max_body_seconds

    @property
    def has_keys(self) -> bool:
        """Whether a key is needed."""
        return bool(self._keys)

    def check(self, request: Request) -> None:
        """RequestError when the request has no right to be answered."""
        origin = request.headers.get("origin")
        if origin is not None and not self._knows(origin, request.headers.get("host")):
            raise RequestError(
                f"pages of {origin} may not use this server",
                code="forbidden",
                hint="allow_origins lists the pages that may",
            )
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        given = given.strip() if scheme.lower() == "bearer" else ""  # RFC 7235: its case does not matter
        sent = given.encode("latin-1")  # as which headers are read
        right = [hmac.compare_digest(sent, key) for key in self._keys]  # all of them, whichever fits
        if right and not any(right):
            raise RequestError("the API key is missing or wrong", code="invalid_api_key")

    async def read(self, request: Request) -> bytes:
        """The body. RequestError when it is too large, or takes too long to come."""
        body = bytearray()
        try:
            async with asyncio.timeout(self._max_seconds):
                async for piece in request.stream():
                    body += piece
                    if len(body) > self._max_bytes:
                        raise RequestError(f"the body is larger than {self._max_bytes} bytes", code="request_too_large")
        except TimeoutError:
            raise RequestError(
                f"the body did not arrive within {self._max_seconds:g} s", code="body_too_slow"
            ) from None
        return bytes(body)

    def _knows(self, origin: str, host: str | None) -> bool:
        return urlsplit(origin).netloc == host or origin in self._origins or "*" in self._origins
