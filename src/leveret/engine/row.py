"""A row: one request in flight, with what it has generated, where its keys and values lie, and why it ended.

`ids` are the prompt and the answer so far; the cache holds the first `num_cached` of them, and the rest are pending: at
first the prompt, later the one id just chosen, or several where a constraint left no choice and ids were appended
without asking the model. Reading a prompt, decoding, skipping forced ids and reading again after a preemption are all
the same: feed pending ids, and choose one more when none is left.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass

from leveret.engine.blocks import chained
from leveret.engine.request import Completion, FinishReason, Request
from leveret.engine.sampler import RowSampler
from leveret.errors import LeveretError


class Row:
    """One request in flight; made by `Engine.submit`."""

    def __init__(self, request: Request, *, arrival: int = 0, salt: bytes = b"", model: int = 0) -> None:
        """`arrival`: who came first has the lowest; `salt`: what besides the ids decides about keys and values.

        model: the number of the model that answers, where an engine has several.
        """
        self.request = request
        self.model = model
        self.arrival = arrival
        self.ids: list[int] = list(request.prompt_ids)
        self.num_cached = 0
        self.table: list[int] = []
        self.num_reused = 0
        """Tokens that were in the cache already, counted again after a preemption."""
        self.times_passed = 0
        """How many later requests were begun while this one waited for room in the cache."""
        self.finish_reason: FinishReason | None = None
        self.stop_id: int | None = None
        self.num_counted: int | None = None
        """How many ids another program that answers says it generated."""
        self.error: Exception | None = None
        """Why the row was given up, where it was taken on and could not be served after all; a mistake of ours, too."""
        self.sampler = RowSampler(request.params, request.prompt_ids, request.constraint, request.record)
        self._names: list[bytes] = [salt]
        self._stop_ids = frozenset(request.params.stop_ids)

    @property
    def generated(self) -> list[int]:
        """The answer so far."""
        return self.ids[len(self.request.prompt_ids) :]

    @property
    def num_generated(self) -> int:
        """Length of the answer so far."""
        return len(self.ids) - len(self.request.prompt_ids)

    @property
    def num_pending(self) -> int:
        """Ids that the model has still to see."""
        return len(self.ids) - self.num_cached

    @property
    def planned_length(self) -> int:
        """The length the row may reach."""
        return len(self.request.prompt_ids) + self.request.params.max_tokens

    def name(self, block: int, size: int) -> bytes:
        """What block number `block` of the row, of `size` ids that are all known, is called."""
        while len(self._names) <= block + 1:
            start = (len(self._names) - 1) * size
            assert start + size <= len(self.ids), "only a full block has a name"
            self._names.append(chained(self._names[-1], self.ids[start : start + size]))
        return self._names[block + 1]

    def take(self, token_id: int) -> list[int]:
        """Append a chosen id and those that the constraint then forces; returns what was appended."""
        first = len(self.ids)
        following: int | None = token_id
        while following is not None:
            self._append(following)
            following = None if self.finish_reason else self.sampler.forced()
        return self.ids[first:]

    def _append(self, token_id: int) -> None:
        if token_id in self._stop_ids:
            self.stop_id, self.finish_reason = token_id, "stop"
            return
        self.ids.append(token_id)
        watch = self.request.watch
        ended = self.sampler.accept(token_id)
        if (watch is not None and watch(token_id)) or ended:
            self.finish_reason = "stop"
        elif self.num_generated == self.request.params.max_tokens:
            self.finish_reason = "length"

    def fail(self, error: Exception) -> None:
        """Give the row up."""
        self.error, self.finish_reason = error, "cancelled"

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Whatever goes wrong inside ends this row, and no other one of the step."""
        try:
            yield
        except LeveretError as error:  # its own mistake, or the model's, which shows only now
            self.fail(error)
        except Exception as error:
            logging.getLogger(__name__).exception("a request failed; the others go on")
            self.fail(error)

    def completion(self) -> Completion:
        """The result; only for a finished row. Raises its error, if it was given up."""
        assert self.finish_reason is not None, "the row is not finished"
        if self.error is not None:
            raise self.error
        return Completion(
            ids=tuple(self.generated),
            finish_reason=self.finish_reason,
            stop_id=self.stop_id,
            num_prompt_tokens=len(self.request.prompt_ids),
            num_counted=self.num_counted,
        )


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What one step did to one row."""

    row: Row
    """The row, as returned by `Engine.submit`."""
    ids: list[int]
    """Ids appended in this step, in order; empty when only a stop id came."""
    completion: Completion | None
    """The result, if the row ended in this step; None too if it ended with an error (`Row.error`)."""
