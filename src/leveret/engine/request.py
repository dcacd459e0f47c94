"""A request to the engine: prompt ids, how to sample, when to stop; and what comes back.

The engine speaks token ids only. Everything that needs text (stop strings, streaming, tool calls) reaches it through
two small doors of `Request`:

* `constraint` says which ids may come next (`tools/constraint.py` is one; any object with these methods will do);
* `watch` is called with every generated id and returns True when the request is finished. Stop strings work this way:
  a `TextAssembler` (engine/assembler.py) watches the decoded text.

With `logprobs`, `record` is called with the score of each id before `watch` is called with the id.

How one id is chosen from `SamplingParams` is written in `sampler.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from numbers import Integral, Real
from typing import Literal, Protocol

import numpy as np

from leveret.engine.token_score import TokenScore
from leveret.errors import RequestError

MAX_LOGPROBS = 20
"""Most alternatives a request may ask for with each token."""

FinishReason = Literal["stop", "length", "cancelled"]
"""`stop`: a stop id, a stop string or the end of a constraint; `length`: max_tokens; `cancelled`: by the caller."""


MIN_TEMPERATURE = 1e-5
"""Below it an answer is greedy: logits divided by less leave the range of numbers (vLLM draws the same line)."""


PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")

OPTIONAL = frozenset(["top_k", "top_p", "min_p", "logprobs", "seed"])
"""Numbers of `SamplingParams` that may be None."""


class Constraint(Protocol):
    """What may be generated next: an automaton over token ids, owned by one request."""

    @property
    def finished(self) -> bool:
        """True when nothing may follow; the request then ends with the reason `stop`."""

    def allowed_ids(self) -> np.ndarray:
        """Ids allowed now: (n,) int64, sorted, n >= 1. A single id is taken without sampling."""

    def advance(self, token_id: int) -> None:
        """Take one allowed id."""


@dataclass(frozen=True, kw_only=True)
class SamplingParams:
    """How ids are chosen and when a request ends; the defaults are greedy.

    Raises RequestError with the field's name as `param` when a value is out of range.
    """

    max_tokens: int = 512
    """Most ids to generate, at least 1 (the id that stops the request counts)."""
    temperature: float = 0.0
    """0, and all below 0.00001, is greedy (the likeliest id, the lowest id of equals); 1 samples from the model's own
    distribution."""
    top_k: int | None = None
    """Sample from the k likeliest ids only."""
    top_p: float | None = None
    """Sample from the fewest likeliest ids whose probabilities reach p (nucleus), 0 < p <= 1."""
    min_p: float | None = None
    """Drop ids less likely than this share of the likeliest one, 0 <= p <= 1."""
    repetition_penalty: float = 1.0
    """Above 1: ids seen in the prompt or the answer become less likely (CTRL, arXiv 1909.05858)."""
    presence_penalty: float = 0.0
    """Taken from the logit of every id that was generated before, -2 to 2; the prompt does not count."""
    frequency_penalty: float = 0.0
    """Taken from the logit of an id once for each time it was generated before, -2 to 2."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(id, number) pairs: numbers of -100 to 100 added to the logits of these ids."""
    logprobs: int | None = None
    """Record the log probability of each chosen id and of so many of the likeliest ids, 0 to 20; None: nothing."""
    seed: int | None = None
    """Same seed, same answer, whatever else is in the batch. None draws a fresh seed."""
    stop: tuple[str, ...] = ()
    """Strings that end the answer and are not part of it. Looked for by the text layer, which sets `Request.watch`."""
    stop_ids: tuple[int, ...] = ()
    """Ids that end the answer and are not part of it."""
    banned_ids: tuple[int, ...] = ()
    """Ids that are never chosen."""
    ignore_eos: bool = False
    """Only the caller's own stops end the answer. For the text layer, which otherwise adds the model's `stop_ids`."""
    skip_special_tokens: bool = True
    """Leave special tokens out of the text. For the text layer."""

    def __post_init__(self) -> None:
        self._check_types()
        _check(self.max_tokens >= 1, "max_tokens", self.max_tokens, "at least 1")
        _check(0 <= self.temperature < float("inf"), "temperature", self.temperature, "a finite number of at least 0")
        _check(self.top_k is None or self.top_k >= 1, "top_k", self.top_k, "at least 1")
        _check(self.top_p is None or 0 < self.top_p <= 1, "top_p", self.top_p, "above 0 and at most 1")
        _check(self.min_p is None or 0 <= self.min_p <= 1, "min_p", self.min_p, "between 0 and 1")
        _check(
            0 < self.repetition_penalty < float("inf"), "repetition_penalty", self.repetition_penalty, "finite, above 0"
        )
        for name in ("presence_penalty", "frequency_penalty"):
            _check(-2 <= getattr(self, name) <= 2, name, getattr(self, name), "between -2 and 2")
        for token_id, bias in self.logit_bias:
            _check(-100 <= bias <= 100, "logit_bias", {token_id: bias}, "between -100 and 100")
        wanted = f"between 0 and {MAX_LOGPROBS}"
        _check(self.logprobs is None or 0 <= self.logprobs <= MAX_LOGPROBS, "logprobs", self.logprobs, wanted)
        _check(self.seed is None or -(2**63) <= self.seed < 2**63, "seed", self.seed, "a 64-bit integer")
        _check(all(self.stop), "stop", self.stop, "strings that are not empty")

    def _check_types(self) -> None:
        for name in ("max_tokens", "top_k", "logprobs", "seed"):
            _check(_is(getattr(self, name), Integral, name), name, getattr(self, name), "a whole number")
        for name in ("temperature", "top_p", "min_p", *PENALTIES):
            _check(_is(getattr(self, name), Real, name), name, getattr(self, name), "a number")
        for name in ("ignore_eos", "skip_special_tokens"):
            _check(isinstance(getattr(self, name), bool), name, getattr(self, name), "true or false")
        _check(all(isinstance(stop, str) for stop in self.stop), "stop", self.stop, "texts")
        for name in ("stop_ids", "banned_ids"):
            ids = getattr(self, name)
            _check(all(isinstance(index, Integral) for index in ids), name, ids, "token ids")
        for token_id, bias in self.logit_bias:
            right = isinstance(token_id, Integral) and isinstance(bias, Real)
            _check(right, "logit_bias", {token_id: bias}, "numbers by token ids")

    @property
    def greedy(self) -> bool:
        """True when no random number is drawn."""
        return self.temperature < MIN_TEMPERATURE


@dataclass(frozen=True, kw_only=True)
class Request:
    """One prompt to continue."""

    prompt_ids: tuple[int, ...]
    """At least one id."""
    params: SamplingParams = field(default_factory=SamplingParams)
    """How to sample and when to stop."""
    constraint: Constraint | None = None
    """Which ids may come next; the engine advances it, so it serves one request only."""
    watch: Callable[[int], bool] | None = None
    """Called with each generated id (a stop id excepted); True ends the request with the reason `stop`."""
    record: Callable[[TokenScore], None] | None = None
    """Called with the score of each id, the stop id included, if `params.logprobs` asks for scores."""


@dataclass(frozen=True, kw_only=True)
class Completion:
    """What one request became."""

    ids: tuple[int, ...]
    """Generated ids, without the stop id that ended them."""
    finish_reason: FinishReason
    """Why it ended."""
    stop_id: int | None
    """The stop id that ended it, if one did."""
    num_prompt_tokens: int
    """Length of the prompt."""
    num_counted: int | None = None
    """Ids that another program says it produced, where `ids` may be others of the same text."""

    @property
    def num_generated_tokens(self) -> int:
        """Ids the model produced, the stop id included."""
        return len(self.ids) + (self.stop_id is not None) if self.num_counted is None else self.num_counted


def _is(value: object, kind: type, name: str) -> bool:
    """Whether a value is a number of a kind, or None where that means something."""
    return name in OPTIONAL if value is None else isinstance(value, kind) and not isinstance(value, bool)


def _check(good: bool, name: str, value: object, wanted: str) -> None:
    if not good:
        raise RequestError(f"{name} is {value!r}; it must be {wanted}", param=name, code="invalid_value")
