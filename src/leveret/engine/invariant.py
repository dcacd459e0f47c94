"""The batch-invariant runner: a request is computed in the same way, to the last bit, alone and in any company.

Sums of floating-point numbers depend on their order, and fast products choose an order by the shape of all that is
computed together. So a neighbor can turn the last bit of a logit, and once in a while a token, bfloat16 sooner than
float32. Here every number is computed in a shape that follows from the request alone:

* a prompt is read a block at a time, each block in a forward of its own; so requests share whole blocks only, and a
  block holds the same bits whichever request read it;
* an answer is fed one id at a time: by the compiled step, padded so that it always multiplies as for many rows, where
  no row's sums depend on another; without a compiled step each row in a forward of its own;
* what was answered is never reused as somebody's prompt, and after a preemption it is fed again as the first time.

The price: long prompts are read in small products, a single stream pays for padding, speculation is off, and models
without a compiled step (float32, a GPU) gain nothing from company.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby

import torch
from torch import Tensor

from leveret.engine.runner import Runner
from leveret.model.decoder import Decoder
from leveret.model.paged_cache import Feed, PagedCache

ROWS = 16
"""Rows of a compiled step, at least: beyond the few for which kernels multiply in another order."""


class InvariantRunner:
    """Takes the place of a `Runner`."""

    def __init__(self, models: Mapping[int, Decoder], *, num_blocks: int, block_tokens: int) -> None:
        self._runner = Runner(models, num_blocks=num_blocks, block_tokens=block_tokens)
        self._size = block_tokens
        self.serve = self._runner.serve

    @property
    def cache(self) -> PagedCache:
        """The memory of the KV cache."""
        return self._runner.cache

    def __call__(self, feeds: Sequence[Feed], wanted: Sequence[int]) -> Tensor:
        """Feed all; the logits after the last id of each feed that wants them, one behind the other, (wanted, V)."""
        assert all(count <= 1 for count in wanted), "nothing is guessed in this mode"
        last: list[Tensor | None] = [None] * len(feeds)
        answers: list[list[Feed]] = []
        for index, feed in enumerate(feeds):
            pieces = list(_pieces(feed, self._size))
            for piece in pieces:
                if piece.start < feed.chosen_from:
                    last[index] = self._runner.by_modules([piece], [1])
            answers.append([piece for piece in pieces if piece.start >= feed.chosen_from])
        for place in range(max(map(len, answers))):
            going = [index for index, ids in enumerate(answers) if place < len(ids)]
            logits = self._chosen_ids([answers[index][place] for index in going])
            for index, scores in zip(going, torch.split(logits, 1), strict=True):
                last[index] = scores
        found = [scores for scores, count in zip(last, wanted, strict=True) if count and scores is not None]
        return torch.cat(found) if found else torch.empty(0, 0)

    def _chosen_ids(self, feeds: list[Feed]) -> Tensor:
        """Feed one id each; the logits after them."""
        found: list[Tensor] = []
        for step, group in groupby(feeds, key=lambda feed: self._runner.step_of(feed.model)):
            alike = list(group)
            if step is None:
                found += [self._runner.by_modules([feed], [1]) for feed in alike]
                continue
            padded = [*alike, *[alike[-1]] * (ROWS - len(alike))]  # the same numbers, written to the same place
            found.append(self._runner.by_compiled_step(padded, [1] * len(padded))[: len(alike)])
        return torch.cat(found)


def _pieces(feed: Feed, size: int) -> Iterator[Feed]:
    """The ids of a prompt block by block, those of an answer one by one."""
    at, end = feed.start, feed.start + len(feed.ids)
    while at < end:
        stop = min(end, feed.chosen_from, (at // size + 1) * size) if at < feed.chosen_from else at + 1
        yield replace(feed, ids=feed.ids[at - feed.start : stop - feed.start], start=at)
        at = stop
