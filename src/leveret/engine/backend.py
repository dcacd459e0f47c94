"""Backend: what every program that runs a model offers to the rest: token ids in, token ids out.

Our own engine is one (engine.py); those in backends/ let transformers, llama.cpp or a server do the work. Callers
know this class only, so a conversation, an evaluation or a rollout is the same whoever runs the model.

`submit` takes a request at any time and `step` goes on with all that are under way; `generate` and `stream` do both for
a caller who only wants results.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

from leveret.engine.request import Completion, Request
from leveret.engine.row import Progress, Row
from leveret.engine.stats import EngineStats
from leveret.errors import RequestError


class Backend(ABC):
    """Runs one model for many requests. Several threads may use it; one step runs at a time."""

    @property
    @abstractmethod
    def context_tokens(self) -> int:
        """Most tokens a prompt and its answer may have together."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Ids that the model knows: 0 to this, exclusive."""

    @property
    @abstractmethod
    def stats(self) -> EngineStats:
        """What it has done and what it holds; may be read from any thread."""

    @property
    def runs_in(self) -> Backend:
        """The backend whose steps serve its requests: itself, unless it stands beside another (engine/beside.py)."""
        return self

    @abstractmethod
    def submit(self, request: Request) -> Row:
        """Take a request on; the steps that follow serve it. Raises RequestError when it cannot be served."""

    @abstractmethod
    def step(self) -> list[Progress]:
        """Go on with all rows; what came of it, nothing for a row that only read a piece of its prompt.

        A row that turns out not to be servable ends with `Row.error`, and no other row with it.
        """

    @abstractmethod
    def cancel(self, *rows: Row) -> None:
        """End rows now; they report nothing more. Nothing happens to those that have ended."""

    def close(self) -> None:
        """Give up what is held outside of Python. The default holds nothing."""
        return

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Complete all requests; the completions come in the order of the requests.

        Raises RequestError when a request cannot be served, mostly before anything is generated.
        """
        for request in requests:
            self.check(request)
        # Those that begin alike one after the other: what the first leaves in a cache is still there for the next.
        order = sorted(range(len(requests)), key=lambda index: requests[index].prompt_ids)
        rows = {index: self.submit(requests[index]) for index in order}
        try:
            while any(row.finish_reason is None for row in rows.values()):
                self.step()
        finally:
            self.cancel(*rows.values())
        return [rows[index].completion() for index in range(len(requests))]

    def stream(self, request: Request) -> Iterator[int]:
        """Generated ids one by one, without the stop id. Closing the iterator ends the generation."""
        seen = 0
        for row in self.follow(request):
            fresh = row.generated[seen:]
            seen += len(fresh)
            yield from fresh

    def follow(self, request: Request) -> Iterator[Row]:
        """The row of a request after each step, until it has finished. Closing the iterator ends the generation.

        Raises RequestError at once when the request cannot be served.
        """
        self.check(request)
        return self._followed(request)

    def check(self, request: Request) -> None:
        """Raise RequestError, with the numbers, when the prompt is empty, foreign to the model or too long.

        Also when no token is left to choose, or one that is named is none of the model's.
        """
        prompt, params, size = request.prompt_ids, request.params, self.vocab_size
        if not prompt:
            raise RequestError("the prompt has no tokens", param="prompt", code="empty_prompt")
        for param, ids in (
            ("prompt", prompt),
            ("banned_ids", params.banned_ids),
            ("logit_bias", dict(params.logit_bias)),
        ):
            foreign = [token_id for token_id in ids if not 0 <= token_id < size]
            if foreign:
                raise RequestError(
                    f"token id {foreign[0]} is outside the model's vocabulary of {size}",
                    param=param,
                    code="invalid_token_id",
                )
        if len(params.banned_ids) >= size and len(set(params.banned_ids)) == size:
            raise RequestError(
                f"banned_ids holds all {size} tokens of the model: none is left to choose",
                param="banned_ids",
                code="invalid_value",
            )
        if len(prompt) + params.max_tokens > self.context_tokens:
            holder, way_out = self._limit()
            raise RequestError(
                f"the prompt has {len(prompt)} tokens and max_tokens is {params.max_tokens}: together "
                f"{len(prompt) + params.max_tokens}, but the {holder} holds {self.context_tokens}",
                param="max_tokens" if len(prompt) < self.context_tokens else "prompt",
                code="context_length_exceeded",
                hint="shorten the prompt or lower max_tokens" + way_out,
            )

    def check_form(self, param: str) -> None:
        """Raise RequestError when no answer can be kept to a form here; `param`: what the caller calls the form."""
        return

    def _limit(self) -> tuple[str, str]:
        """What sets `context_tokens`, and what else than a shorter request would help."""
        return "model's context", ""

    def _followed(self, request: Request) -> Iterator[Row]:
        row = self.submit(request)
        try:
            finished = False
            while not finished:
                if row.finish_reason is None:
                    self.step()
                finished = row.finish_reason is not None  # another's step may end it while its news are taken
                if row.error is not None:
                    raise row.error
                yield row
        finally:
            self.cancel(row)
