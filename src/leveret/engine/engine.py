"""The engine runs a model: requests of token ids in, completions of token ids out; it knows no text.

`generate` is for many requests at once (evaluation, rollouts), `stream` for one, and `start` gives a `Batch` that the
caller steps itself (the server, which reads new requests between the steps). Greedy results in fp32 do not depend on
which requests share a batch, in which order, or on the size of a prefill chunk.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from leveret.engine.batch import Batch
from leveret.engine.compiled_step import CompiledStep
from leveret.engine.request import Completion, Request
from leveret.errors import RequestError
from leveret.model.decoder import Decoder


class Engine:
    """KV-cached, batched generation over one model."""

    def __init__(self, model: Decoder, *, max_rows: int = 64, prefill_chunk_tokens: int = 512) -> None:
        """
        Args:
            model: the decoder; the engine neither moves it nor changes its mode.
            max_rows: most requests that `generate` steps together.
            prefill_chunk_tokens: longest piece of a prompt fed in one step, which bounds the memory of attention.
        """
        assert max_rows >= 1 and prefill_chunk_tokens >= 1
        self._model = model
        self._max_rows = max_rows
        self._chunk = prefill_chunk_tokens

    @property
    def context_tokens(self) -> int:
        """Most tokens a prompt and its answer may have together."""
        return self._model.config.max_position_embeddings

    def generate(self, requests: Sequence[Request]) -> list[Completion]:
        """Complete all requests, `max_rows` at a time, those of similar length together.

        Returns the completions in the order of the requests.
        Raises RequestError when a request cannot be served, before anything is generated.
        """
        for request in requests:
            self.check(request)
        results: dict[int, Completion] = {}
        order = sorted(range(len(requests)), key=lambda index: len(requests[index].prompt_ids))
        for first in range(0, len(order), self._max_rows):
            indices = order[first : first + self._max_rows]
            batch = self.start([requests[index] for index in indices])
            index_of = dict(zip(batch.rows, indices, strict=True))
            while not batch.finished:
                for progress in batch.step():
                    if progress.completion is not None:
                        results[index_of[progress.row]] = progress.completion
        return [results[index] for index in range(len(requests))]

    def stream(self, request: Request) -> Iterator[int]:
        """Generated ids one by one, without the stop id. Closing the iterator ends the generation."""
        batch = self.start([request])
        while not batch.finished:
            for progress in batch.step():
                yield from progress.ids

    def start(self, requests: Sequence[Request]) -> Batch:
        """A batch of at least one request, to be stepped by the caller.

        Raises RequestError when a request cannot be served.
        """
        assert requests, "a batch needs a request"
        for request in requests:
            self.check(request)
        step = CompiledStep.of(self._model)
        return Batch(self._model, requests, prefill_chunk_tokens=self._chunk, compiled_step=step)

    def check(self, request: Request) -> None:
        """Raise RequestError, with the numbers, when the prompt is empty, foreign to the model or too long."""
        prompt, params = request.prompt_ids, request.params
        if not prompt:
            raise RequestError("the prompt has no tokens", param="prompt", code="empty_prompt")
        vocab_size = self._model.config.vocab_size
        for param, ids in (("prompt", (*prompt, *params.banned_ids)), ("logit_bias", dict(params.logit_bias))):
            foreign = [token_id for token_id in ids if not 0 <= token_id < vocab_size]
            if foreign:
                raise RequestError(
                    f"token id {foreign[0]} is outside the model's vocabulary of {vocab_size}",
                    param=param,
                    code="invalid_token_id",
                )
        if len(prompt) + params.max_tokens > self.context_tokens:
            raise RequestError(
                f"the prompt has {len(prompt)} tokens and max_tokens is {params.max_tokens}: together "
                f"{len(prompt) + params.max_tokens}, but the model's context holds {self.context_tokens}",
                param="max_tokens" if len(prompt) < self.context_tokens else "prompt",
                code="context_length_exceeded",
                hint="shorten the prompt or lower max_tokens",
            )
