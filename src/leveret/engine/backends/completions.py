"""Completions: one endpoint `/v1/completions` as a stream of pieces, over the standard library's HTTP.

Some fields make a server's answer more exact and change nothing else (`HELPFUL`). Servers that do not know them either
leave them out or refuse the request; it is then asked once more without them, and so are all that follow.
"""

from __future__ import annotations

import http.client
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from leveret.engine.request import FinishReason, Request
from leveret.errors import RequestError
from leveret.openai_http import Refusal, answer_of, events, json_of

HELPFUL: Mapping[str, Any] = {"return_tokens_as_token_ids": True, "logprobs": 0, "skip_special_tokens": False}
"""vLLM's words: give ids, not only text, and do not leave special tokens out of the text."""

_ID = "token_id:"


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one event of a stream brings."""

    text: str
    ids: tuple[int, ...] | None
    """None: the server does not say which."""
    finish_reason: FinishReason | None


class Completions:
    """The endpoint of one model of a server."""

    def __init__(self, url: str) -> None:
        """Raises RequestError when nobody answers at the URL, or it serves no model of this name."""
        base, _, name = url.partition("#")
        self._url = base.rstrip("/")
        self._extras = dict(HELPFUL)
        card = self._card(name)
        self.model = str(card["id"])
        self.context_tokens: int | None = card.get("max_model_len") or (card.get("meta") or {}).get("n_ctx")
        """What the server says that it holds."""

    def stream(self, request: Request) -> Iterator[Piece]:
        """Send a request; what comes of it, the last piece with a reason. RequestError with the server's words."""
        body = request_body(request) | {"model": self.model, "stream": True}
        stops = {"stop_token_ids": list(request.params.stop_ids)} if request.params.stop_ids else {}
        with self._answer(body, self._extras | stops if self._extras else {}) as response:
            for event in events(response):
                for choice in event.get("choices", ()):
                    piece = _piece(choice)
                    yield piece
                    if piece.finish_reason is not None:
                        return
            raise RequestError(f"{self._url} ended its answer without a reason", code="bad_gateway")

    def _answer(self, body: Mapping[str, Any], extras: Mapping[str, Any]) -> http.client.HTTPResponse:
        url = self._url + "/completions"
        try:
            return answer_of(url, {**body, **extras})
        except Refusal as refusal:
            if not extras or refusal.status not in (400, 422):
                raise
        response = answer_of(url, body)
        self._extras = {}
        return response

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


def _piece(choice: Mapping[str, Any]) -> Piece:
    tokens = (choice.get("logprobs") or {}).get("tokens") or ()
    named = bool(tokens) and all(str(token).startswith(_ID) for token in tokens)
    text, reason = str(choice.get("text") or ""), choice.get("finish_reason")
    ids = tuple(int(token[len(_ID) :]) for token in tokens) if named else None if text else ()
    return Piece(
        text=text, ids=ids, finish_reason=None if reason is None else "length" if reason == "length" else "stop"
    )
