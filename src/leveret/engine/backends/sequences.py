"""Sequences: what a program has to offer for our sampler to run it, and the backend made of that.

A program that gives logits is all that is needed: constraints, penalties, seeds, stops and log probabilities stay ours,
and so mean the same whoever computes the logits.

    waiting rows --open--> feed pending ids of all rows --> logits --> each row chooses its next id --> ... --> close
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from leveret.engine.backends.queued import QueuedBackend
from leveret.engine.row import Progress, Row

Feed = tuple[int, Sequence[int], bool]
"""A sequence, the next ids for it, and whether the logits after the last of them are wanted."""


class Sequences(Protocol):
    """A model that keeps the keys and values of several sequences; ids are fed in their order."""

    vocab_size: int
    context_tokens: int
    """Most tokens of one sequence."""
    max_sequences: int
    """Most sequences open at a time."""
    max_fed_tokens: int
    """Most ids of all sequences fed at a time."""

    def open(self) -> int:
        """An empty sequence; what is returned names it."""

    def feed(self, feeds: Sequence[Feed]) -> Tensor:
        """Feed some sequences; the logits (n, V) that were wanted, in order."""

    def close(self, sequence: int) -> None:
        """Forget a sequence."""

    def end(self) -> None:
        """Give up the model."""


class SequencesBackend(QueuedBackend[int]):
    """Continuous batching over `Sequences`: rows join and leave between two steps; who came first is fed first."""

    def __init__(self, model: Sequences) -> None:
        super().__init__()
        self._model = model

    @property
    def context_tokens(self) -> int:
        """What one sequence holds."""
        return self._model.context_tokens

    @property
    def vocab_size(self) -> int:
        """Ids that the model knows."""
        return self._model.vocab_size

    @torch.inference_mode()
    def step(self) -> list[Progress]:
        """Feed pending ids, first those of rows that write, then prompts; each row with none left chooses an id."""
        with self._lock:
            self._admit()
            turns = self._turns()
            if not turns:
                return []
            feeds = [
                (self._running[row], row.ids[row.num_cached : row.num_cached + count], count == row.num_pending)
                for row, count in turns
            ]
            logits = iter(self._model.feed(feeds))
            self._counts["steps"] += 1
            return [self._taken(row, next(logits)) for row, count in turns if self._read(row, count)]

    def close(self) -> None:
        """End what runs, and give up the model."""
        super().close()
        self._model.end()

    @property
    def _capacity_tokens(self) -> int:
        return self._model.max_sequences * self.context_tokens

    def _release(self, place: int) -> None:
        self._model.close(place)

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self._model.max_sequences:
            self._running[self._waiting.popleft()] = self._model.open()

    def _turns(self) -> list[tuple[Row, int]]:
        left, turns = self._model.max_fed_tokens, []
        for row in sorted(self._running, key=lambda each: each.num_pending > 1):
            if count := min(row.num_pending, left):
                turns.append((row, count))
                left -= count
        return turns

    def _taken(self, row: Row, logits: Tensor) -> Progress:
        """Let a row choose its next id."""
        ids = list[int]()
        with row.alone():
            ids = row.take(row.sampler.choose(logits))
        return self._progress(row, ids)

    def _read(self, row: Row, count: int) -> bool:
        """Note that ids were fed; whether the row now chooses."""
        if row.num_pending > 1:
            self._counts["prefill"] += count
        row.num_cached += count
        return row.num_pending == 0
