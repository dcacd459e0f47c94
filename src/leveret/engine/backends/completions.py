"""Completions: one endpoint `/v1/completions` as a stream of pieces, over the standard library's HTTP.

Some fields make a server's answer more exact and change nothing else (`HELPFUL`). Servers that do not know them either
leave them out or refuse the request; it is then asked once more with fewer, and so are all that follow.
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from leveret.engine.request import FinishReason, Request
from leveret.errors import RequestError
from leveret.openai_http import Refusal, answer_of, events, json_of

EXACT: Mapping[str, Any] = {"return_tokens_as_token_ids": True, "logprobs": 0, "skip_special_tokens": False}
"""vLLM's words: give ids, not only text, and do not leave special tokens out of the text."""

COUNTED: Mapping[str, Any] = {"stream_options": {"include_usage": True}}
"""OpenAI's words: say how many tokens the answer has."""

HELPFUL: tuple[Mapping[str, Any], ...] = ({**EXACT, **COUNTED}, COUNTED, {})
"""What a server is asked for besides, until it does not refuse it."""

_ID = "token_id:"


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one event of a stream brings."""

    text: str
    ids: tuple[int, ...] | None
    """None: the server does not say which."""
    finish_reason: FinishReason | None
    num_generated: int | None = None
    """On the last piece, if the server has counted them: the tokens of the whole answer."""


class Completions:
    """The endpoint of one model of a server."""

    def __init__(self, url: str) -> None:
        """Raises RequestError when nobody answers at the URL, or it serves no model of this name."""
        base, _, name = url.partition("#")
        self._url = base.rstrip("/")
        self._helpful = HELPFUL
        card = self._card(name)
        self.model = str(card["id"])
        self.context_tokens: int | None = card.get("max_model_len") or (card.get("meta") or {}).get("n_ctx")
        """What the server says that it holds."""

    def stream(self, request: Request) -> Iterator[Piece]:
        """Send a request; what comes of it, the last piece with a reason. RequestError with the server's words."""
        body = request_body(request) | {"model": self.model, "stream": True}
        stops = {"stop_token_ids": list(request.params.stop_ids)} if request.params.stop_ids else {}
        with self._answer(body, stops) as response:
            arriving = events(response)
            for event in arriving:
                for choice in event.get("choices") or ():
                    piece = _piece(choice)
                    if piece.finish_reason is not None:
                        yield replace(piece, num_generated=_counted(event, arriving))
                        return
                    yield piece
            raise RequestError(f"{self._url} ended its answer without a reason", code="bad_gateway")

    def _answer(self, body: Mapping[str, Any], stops: Mapping[str, Any]) -> http.client.HTTPResponse:
        """`stops`: vLLM's words too, for a server that knows the others."""
        url = self._url + "/completions"
        for place, helpful in enumerate(tried := self._helpful, start=1):
            try:
                response = answer_of(url, {**body, **helpful, **(stops if EXACT.keys() <= helpful.keys() else {})})
            except Refusal as refusal:
                if place == len(tried) or refusal.status not in (400, 422):
                    raise
            else:
                self._helpful = tried[place - 1 :]
                return response
        raise AssertionError("the last way of asking ends the loop")

    def _card(self, name: str) -> dict[str, Any]:
        cards: list[dict[str, Any]] = json_of(self._url + "/models").get("data") or []
        names = [str(card["id"]) for card in cards]
        if not names or (name and name not in names):
            wanted = f"no model {name!r}" if name else "no model"
            raise RequestError(f"{self._url} serves {wanted}; it has: {', '.join(names) or 'none'}", code="not_found")
        return cards[names.index(name) if name else 0]


def request_body(request: Request) -> dict[str, Any]:
    """The sampling of a request in OpenAI's words, and in vLLM's for what OpenAI has none; defaults are left out."""
    params = request.params
    body: dict[str, Any] = {
        "prompt": list(request.prompt_ids),
        "max_tokens": params.max_tokens,
        "temperature": params.temperature,
    }
    bias = dict(params.logit_bias) | dict.fromkeys(params.banned_ids, -100.0)
    further: dict[str, Any] = {
        "top_p": params.top_p,
        "seed": params.seed,
        "presence_penalty": params.presence_penalty or None,
        "frequency_penalty": params.frequency_penalty or None,
        "logit_bias": {str(token_id): number for token_id, number in bias.items()} or None,
        "top_k": params.top_k,
        "min_p": params.min_p,
        "repetition_penalty": None if params.repetition_penalty == 1 else params.repetition_penalty,
        "ignore_eos": params.ignore_eos or None,
    }
    return body | {name: value for name, value in further.items() if value is not None}


def _counted(last: Mapping[str, Any], behind: Iterator[Mapping[str, Any]]) -> int | None:
    """The tokens of an answer, as the server counts them in its last event or in one behind it; None: it does not."""
    with contextlib.suppress(RequestError):  # the answer is complete: what breaks off now is no matter
        for event in itertools.chain([last], behind):
            number = (event.get("usage") or {}).get("completion_tokens")
            if isinstance(number, int):
                return number
    return None


def _piece(choice: Mapping[str, Any]) -> Piece:
    tokens = (choice.get("logprobs") or {}).get("tokens") or ()
    named = bool(tokens) and all(str(token).startswith(_ID) for token in tokens)
    text, reason = str(choice.get("text") or ""), choice.get("finish_reason")
    ids = tuple(int(token[len(_ID) :]) for token in tokens) if named else None if text else ()
    return Piece(
        text=text, ids=ids, finish_reason=None if reason is None else "length" if reason == "length" else "stop"
    )
