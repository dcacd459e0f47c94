"""A running server that speaks the OpenAI API: what it can be asked about the model in it.

Servers differ in what they offer. Each thing is asked for in the ways that are known (vLLM's, llama.cpp's, ours), and
the answer is None where a server has none of them:

    ids of a text            POST /tokenize                        vLLM, llama.cpp
    ids of a conversation    POST /tokenize, /apply-template       vLLM; llama.cpp
    number of prompt ids     `usage` of a chat completion          all
    log probabilities        `echo` with `logprobs`                vLLM, llama-cpp-python, Leveret
    those of its answers     `logprobs`                            llama.cpp
    greedy text              temperature 0                         all

A prompt is given as ids; to a server that takes only text (llama-cpp-python's), as text, and what it answers counts
only if it read the text into as many ids.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from leveret.certify.zoo import Fixture
from leveret.errors import RequestError
from leveret.openai_http import Refusal, json_of
from leveret.tokenizer.files import Tokenizer

Body = dict[str, Any]

TOP = 5
"""Likeliest tokens that are asked for: OpenAI's own limit."""

BY_ID = {"return_tokens_as_token_ids": True}
"""vLLM's; without it two ids of one text are not told apart."""

EXTRAS: tuple[Body, ...] = (
    {**BY_ID, "repetition_penalty": 1.0, "repeat_penalty": 1.0},
    {"repetition_penalty": 1.0},
    {"repeat_penalty": 1.0},
    {},
)
"""Fields beyond OpenAI's, as many as a server takes: a model's own penalties would not be greedy."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What a server says of one position: log probabilities of what comes next."""

    following: float | None
    """Of the id that does come next; None at the end."""
    top: Mapping[int, float]
    """Of the likeliest ids; those whose text is the text of several ids are left out."""


@dataclass(frozen=True)
class Generated:
    """A greedy answer."""

    text: str
    steps: tuple[tuple[int | None, Mapping[int, float]], ...]
    """Each id (None where its text is that of several) and what was likeliest there; empty where it gives none."""


@dataclass(frozen=True)
class Server:
    """A server at a base URL such as http://127.0.0.1:8000/v1; `tokenizer` reads tokens that it gives as text."""

    url: str
    tokenizer: Tokenizer
    refusals: list[str] = field(default_factory=list)
    """What it refused, in its own words."""
    taken: dict[str, Body] = field(default_factory=dict)
    """The extra fields that it took, for scores and for answers."""

    @cached_property
    def model(self) -> str | None:
        """The name of the first model it serves; RequestError when there is no server."""
        with self._expected("names of models"):
            served = json_of(self.url + "/models").get("data") or []
            return str(served[0]["id"]) if served else None

    def ids(self, fixture: Fixture) -> tuple[int, ...] | None:
        """Ids of a fixture; None where the server gives none, or refuses the conversation."""
        if fixture.text is not None:
            body = {"prompt": fixture.text, "add_special_tokens": False, "content": fixture.text, "add_special": False}
            return self._tokens(body | {"parse_special": False})
        asked = _conversation(fixture) | {"add_generation_prompt": fixture.add_generation_prompt}
        if ids := self._tokens(asked):
            return ids
        rendered = self._try(self._root + "/apply-template", asked)
        if rendered is None or "prompt" not in rendered:
            return None
        return self._tokens({"content": rendered["prompt"], "add_special": True, "parse_special": True})

    def count(self, fixture: Fixture) -> int | None:
        """How many ids a conversation has for it, to which it would reply; None where it refuses."""
        if fixture.text is not None or not fixture.add_generation_prompt:
            return None
        answer = self._try(self.url + "/chat/completions", _conversation(fixture) | self._named | {"max_tokens": 1})
        with self._expected("usage"):
            usage = (answer or {}).get("usage") or {}
            return None if usage.get("prompt_tokens") is None else int(usage["prompt_tokens"])

    def scores(self, ids: Sequence[int]) -> list[Scored] | None:
        """After each of the ids but the last, what it thinks comes next; None where it does not score a prompt."""
        body = {"echo": True, "logprobs": TOP, "max_tokens": 1, "temperature": 0}
        given = (self._completion("scores", ids, body) or {}).get("logprobs")
        with self._expected("logprobs of a prompt"):
            if not given or not self._aligned(given.get("tokens"), ids):
                return None
            logprobs, tops = given["token_logprobs"], given["top_logprobs"] or []
            return [
                Scored(
                    following=None if logprobs[at] is None else float(logprobs[at]),
                    top=self._by_ids(tops[at] if at < len(tops) else None),
                )
                for at in range(1, len(ids))
            ]

    def continue_greedily(self, ids: Sequence[int], max_tokens: int) -> Generated | None:
        """Its answer to a prompt of ids; None where it takes none."""
        body = {"max_tokens": max_tokens, "temperature": 0}
        given = self._completion("answers", ids, body | {"logprobs": TOP}) or self._completion(
            "bare answers", ids, body
        )
        with self._expected("text and its logprobs"):
            return None if given is None else Generated(str(given["text"]), self._steps(given.get("logprobs")))

    @cached_property
    def takes_ids(self) -> bool:
        """Whether a prompt may be a list of ids."""
        body = {"prompt": [self.tokenizer.encode("a")[0]], "max_tokens": 1} | self._named
        return self._try(self.url + "/completions", body) is not None

    @property
    def _named(self) -> Body:
        return {} if self.model is None else {"model": self.model}

    @property
    def _root(self) -> str:
        return self.url.removesuffix("/v1")

    @cached_property
    def _id_of_bytes(self) -> dict[bytes, int | None]:
        """The id of each token's bytes; None where several ids have them."""
        found: dict[bytes, int | None] = {}
        for index in range(self.tokenizer.vocab_size):
            data = self.tokenizer.bytes_of(index, skip_special=False)
            found[data] = None if data in found else index
        return found

    def _id(self, token: str) -> int | None:
        """By its number (vLLM's way when asked), or its text, or its bytes where it is no text (OpenAI's way)."""
        if token.startswith("token_id:"):
            return int(token.removeprefix("token_id:"))
        if re.fullmatch(r"bytes:(\\x[0-9a-f]{2})+", token):
            return self._id_of_bytes.get(bytes.fromhex(token.removeprefix("bytes:").replace("\\x", "")))
        return self._id_of_bytes.get(token.encode())

    def _by_ids(self, top: Mapping[str, float] | None) -> dict[int, float]:
        found = {}
        for token, logprob in (top or {}).items():
            if (index := self._id(token)) is not None:
                found[index] = float(logprob)
        return found

    def _steps(self, given: Body | None) -> tuple[tuple[int | None, Mapping[int, float]], ...]:
        """From OpenAI's two lists, or from llama.cpp's list of objects with ids."""
        if not given:
            return ()
        if "content" in given:
            return tuple(
                (step.get("id"), {one["id"]: one["logprob"] for one in step.get("top_logprobs", ())})
                for step in given["content"]
            )
        tokens, tops = given.get("tokens") or (), given.get("top_logprobs") or ()
        return tuple((self._id(token), self._by_ids(top)) for token, top in zip(tokens, tops, strict=False))

    def _aligned(self, tokens: Sequence[str] | None, ids: Sequence[int]) -> bool:
        """Whether a server's list begins with these ids, as far as their texts say."""
        if tokens is None or len(tokens) < len(ids):
            return False  # it scored only what it generated
        for token, index in zip(tokens, ids, strict=False):
            found = self._id(token)
            if found is not None and found != index:
                return False
        return True

    def _completion(self, purpose: str, ids: Sequence[int], body: Body) -> Body | None:
        """The first choice of a completion, with as many of EXTRAS as the server takes."""
        prompt: list[int] | str = list(ids)
        if not self.takes_ids:
            prompt = self.tokenizer.decode(list(ids))
            if self.tokenizer.encode(prompt, allow_special=True) != list(ids):
                return None
        for extra in (self.taken[purpose],) if purpose in self.taken else EXTRAS:
            answer = self._try(self.url + "/completions", {"prompt": prompt} | body | self._named | extra)
            if answer is not None:
                self.taken[purpose] = extra
                with self._expected("choices"):
                    read = (answer.get("usage") or {}).get("prompt_tokens", len(ids))
                    return dict(answer["choices"][0]) if self.takes_ids or read == len(ids) else None
        return None

    def _tokens(self, body: Body) -> tuple[int, ...] | None:
        answer = self._try(self._root + "/tokenize", body | self._named)
        with self._expected("tokens"):
            return None if answer is None or "tokens" not in answer else tuple(int(index) for index in answer["tokens"])

    @contextmanager
    def _expected(self, what: str) -> Iterator[None]:
        """Reading a part of an answer: RequestError where it has not the form that this API, or its maker, gives it."""
        try:
            yield
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise RequestError(
                f"{self.url} answers, but its {what} are not of the usual form ({type(error).__name__}: {error})",
                code="bad_gateway",
                hint="the server must answer as OpenAI's API, vLLM, llama.cpp or Leveret does",
            ) from error

    def _try(self, url: str, body: Body) -> Body | None:
        try:
            return json_of(url, body)
        except Refusal as refusal:
            if str(refusal) not in self.refusals:
                self.refusals.append(str(refusal))
            return None


def _conversation(fixture: Fixture) -> Body:
    return {"messages": list(fixture.messages)} | ({"tools": list(fixture.tools)} if fixture.tools else {})
