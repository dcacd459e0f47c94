"""Asking a server that speaks the OpenAI API: one request over the standard library's HTTP, its answer or its refusal.

    with answer_of("http://127.0.0.1:8000/v1/completions", {"prompt": "A hare", "stream": True}) as response:
        for event in events(response): ...

A key is taken from the environment variable OPENAI_API_KEY, as OpenAI's own client does.
"""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

from leveret.errors import RequestError

TIMEOUT_SECONDS = 600.0
"""Without a word from the server."""

MOST_WORDS = 300
"""Characters of a server's words that an error repeats."""


class Refusal(RequestError):
    """The server answered that it will not, or cannot, do what was asked; `status` is HTTP's."""

    def __init__(self, message: str, *, status: int) -> None:
        way_out = "a key goes into the environment variable OPENAI_API_KEY" if status in (401, 403) else None
        super().__init__(message, code="refused", hint=way_out)
        self.status = status


def answer_of(
    url: str, body: Mapping[str, Any] | None = None, *, api_key: str | None = None
) -> http.client.HTTPResponse:
    """The response to a GET, or to a POST of a JSON body; close it. `api_key`: instead of the environment's.

    Raises Refusal with the server's words, and RequestError when nobody answers.
    """
    headers = {"Content-Type": "application/json"}
    if key := api_key or os.environ.get("OPENAI_API_KEY"):
        headers["Authorization"] = f"Bearer {key}"
    data = None if body is None else json.dumps(body).encode()
    try:
        request = urllib.request.Request(url, data, headers)
        response: http.client.HTTPResponse = _opener(request.host).open(request, timeout=TIMEOUT_SECONDS)
        return response
    except urllib.error.HTTPError as error:
        with error:
            words = words_of(error.read().decode(errors="replace"))
        raise Refusal(f"{url} answered {error.code}: {words}", status=error.code) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise RequestError(
            f"no answer from {url}: {error}",
            code="bad_gateway",
            hint="name the base URL, such as http://127.0.0.1:8000/v1",
        ) from error


def _opener(host: str) -> urllib.request.OpenerDirector:
    """What asks a host: the environment's proxy (http_proxy) is for others than this machine."""
    name = (urlsplit(f"//{host}").hostname or "").lower()
    own = name == "localhost" or name == "::1" or name.startswith("127.")
    return urllib.request.build_opener(*([urllib.request.ProxyHandler({})] if own else []))


def json_of(url: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The JSON object that a request is answered with. Raises as `answer_of`, and RequestError when it is none."""
    try:
        with answer_of(url, body) as response:
            answer = json.load(response)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise RequestError(f"{url} does not answer in JSON: {error}", code="bad_gateway") from error
    if not isinstance(answer, dict):
        raise RequestError(f"{url} does not answer with an object, but {str(answer)[:40]}", code="bad_gateway")
    return answer


def events(response: http.client.HTTPResponse) -> Iterator[dict[str, Any]]:
    """What a stream of server-sent events brings, up to `[DONE]`.

    Raises RequestError with the server's words when it fails, breaks off or ends without `[DONE]`; a reader that knows
    the last event by itself need not go so far.
    """
    url = response.geturl()
    try:
        for line in response:
            field, _, data = line.decode("utf-8").strip().partition(":")
            if field != "data":
                continue
            if data.strip() == "[DONE]":
                return
            event = json.loads(data)
            if not isinstance(event, dict):
                raise RequestError(f"{url} sent no object, but {data.strip()[:MOST_WORDS]}", code="bad_gateway")
            if event.get("error") is not None:  # some servers say in every event that there is none
                raise RequestError(f"{url} failed: {words_of(data)}", code="bad_gateway")
            yield event
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise RequestError(f"{url} broke off: {error}", code="bad_gateway") from error
    raise RequestError(f"{url} closed the connection before the answer was complete", code="bad_gateway")


def words_of(answer: str) -> str:
    """The server's own words in the body of an error."""
    try:
        content = json.loads(answer)
        return str(content.get("error", content).get("message", answer))[:MOST_WORDS]
    except (ValueError, AttributeError):
        return answer[:MOST_WORDS]
