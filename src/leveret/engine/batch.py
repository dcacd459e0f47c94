"""A batch of requests in flight: every step feeds each row the ids it has not seen and chooses one more.

The whole state of a row is one list: `pending`, the ids that are not in the KV cache yet. At first that is the
prompt, later the one id just chosen, or several where a constraint left no choice and ids were appended without
asking the model. So prefill, chunked prefill, decoding and skipping forced ids are one operation:

    pending ids of all rows, padded on the right  ->  model  ->  the logits after each row's last pending id

Slot t of the cache is position t of the row. Right padding writes rubbish beyond a row's length; the step then sets
`cache.lengths` to the true lengths, so the rubbish is never attended to and is overwritten by what comes next.
Padding costs time, so a step is as wide as is worth it (`_best_width`); what does not fit in it stays pending.
A row that is finished leaves the batch before the next step. A batch can absorb another one.

Shapes: B rows, T ids a step, H hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from leveret.engine.compiled_step import CompiledStep
from leveret.engine.request import Completion, FinishReason, Request
from leveret.engine.sampler import RowSampler
from leveret.model.cache import KVCache
from leveret.model.decoder import Decoder

ANSWER_ROOM_TOKENS = 64
"""Room for the answer in a fresh cache; it doubles when it is full, as most answers are far shorter than max_tokens."""

FIXED_COST_TOKENS = 64
"""What a step costs whatever its size, in tokens of work: launching the layers, choosing ids."""


class Row:
    """One request in flight: what it has generated, what the model has still to see, and why it ended."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.generated: list[int] = []
        self.pending: list[int] = list(request.prompt_ids)
        self.num_cached = 0
        self.finish_reason: FinishReason | None = None
        self.stop_id: int | None = None
        self.sampler = RowSampler(request.params, request.prompt_ids, request.constraint, request.record)
        self._stop_ids = frozenset(request.params.stop_ids)

    def take(self, token_id: int) -> list[int]:
        """Append a chosen id and those that the constraint then forces; returns what was appended."""
        first = len(self.generated)
        following: int | None = token_id
        while following is not None:
            self._append(following)
            following = None if self.finish_reason else self.sampler.forced()
        return self.generated[first:]

    def _append(self, token_id: int) -> None:
        if token_id in self._stop_ids:
            self.stop_id, self.finish_reason = token_id, "stop"
            return
        self.generated.append(token_id)
        self.pending.append(token_id)
        watch = self.request.watch
        ended = self.sampler.accept(token_id)
        if (watch is not None and watch(token_id)) or ended:
            self.finish_reason = "stop"
        elif len(self.generated) == self.request.params.max_tokens:
            self.finish_reason = "length"

    def completion(self) -> Completion:
        """The result; only for a finished row."""
        assert self.finish_reason is not None, "the row is not finished"
        return Completion(
            ids=tuple(self.generated),
            finish_reason=self.finish_reason,
            stop_id=self.stop_id,
            num_prompt_tokens=len(self.request.prompt_ids),
        )


@dataclass(frozen=True, kw_only=True)
class Progress:
    """What one step did to one row."""

    row: Row
    """The row, as returned by `Engine.start`."""
    ids: list[int]
    """Ids appended in this step, in order; empty when only a stop id came."""
    completion: Completion | None
    """The result, if the row ended in this step."""


class Batch:
    """Rows that step together over one KV cache; made by `Engine.start`."""

    def __init__(
        self,
        model: Decoder,
        requests: Sequence[Request],
        *,
        prefill_chunk_tokens: int,
        compiled_step: CompiledStep | None = None,
    ) -> None:
        self.rows = [Row(request) for request in requests]
        self._model = model
        self._compiled_step = compiled_step
        self._chunk = prefill_chunk_tokens
        self._device = model.embed_tokens.weight.device
        planned = torch.tensor([len(request.prompt_ids) + request.params.max_tokens for request in requests])
        longest_prompt = max(len(request.prompt_ids) for request in requests)
        capacity = min(longest_prompt + ANSWER_ROOM_TOKENS, int(planned.max()))
        self._cache = KVCache(model.config, len(self.rows), capacity, model.embed_tokens.weight.dtype, self._device)
        self._cache.planned_lengths = planned

    @property
    def finished(self) -> bool:
        """True when every row has ended."""
        return all(row.finish_reason for row in self.rows)

    def cancel(self, row: Row) -> None:
        """End a row now; it leaves before the next step and reports nothing more."""
        row.finish_reason = row.finish_reason or "cancelled"

    @torch.inference_mode()
    def absorb(self, other: Batch) -> None:
        """Take over the rows of another batch of the same model; `other` is empty afterwards."""
        self._drop_finished()
        other._drop_finished()
        num_mine = len(self.rows)
        self.rows, theirs, other.rows = self.rows + other.rows, other._cache, []
        if len(self.rows) == num_mine:
            return
        self._cache = self._resized(num_mine, len(self.rows), max(self._cache.capacity, theirs.capacity))
        _copy_rows(theirs, self._cache, slice(num_mine, None))

    @torch.inference_mode()
    def step(self) -> list[Progress]:
        """Feed every unfinished row of its pending ids, and choose the next id of each row that has none left."""
        self._drop_finished()
        if not self.rows:
            return []
        fed = self._next_ids()
        ready = [index for index, row in enumerate(self.rows) if len(row.pending) == len(fed[index])]
        logits = self._logits(fed, ready)
        for row, ids in zip(self.rows, fed, strict=True):
            row.num_cached += len(ids)
            del row.pending[: len(ids)]
        return [] if logits is None else self._choose([self.rows[index] for index in ready], logits)

    def _next_ids(self) -> list[list[int]]:
        """What each row is fed in this step, at least one id. Never wider than the fullest row of the cache allows."""
        room = self._cache.capacity - max(row.num_cached for row in self.rows)
        if room == 0:
            capacity = min(2 * self._cache.capacity, int(self._cache.planned_lengths.max()))
            self._cache = self._resized(len(self.rows), len(self.rows), capacity)
            room = self._cache.capacity - max(row.num_cached for row in self.rows)
        width = _best_width([len(row.pending) for row in self.rows], min(self._chunk, room))
        return [row.pending[:width] for row in self.rows]

    def _logits(self, fed: list[list[int]], ready: list[int]) -> Tensor | None:
        """Feed every row; the logits (ready, V) after the last pending id of those that have no more; None for none."""
        if self._compiled_step is not None and len(ready) == len(fed) and max(map(len, fed)) == 1:
            return self._compiled_step(torch.tensor([ids[0] for ids in fed]), self._cache)
        hidden = self._forward(fed)
        if not ready:
            return None
        logits: Tensor = self._model.lm_head(hidden[ready] if len(ready) < len(self.rows) else hidden)
        return logits

    def _forward(self, fed: list[list[int]]) -> Tensor:
        """Final hidden state (B, H) after each row's last fed id; the cache then holds what was fed."""
        counts = [len(ids) for ids in fed]
        width = max(counts)
        padded = torch.tensor([ids + [0] * (width - len(ids)) for ids in fed], device=self._device)  # (B, T)
        hidden: Tensor = self._model.hidden(padded, cache=self._cache)  # (B, T, H)
        if min(counts) == width:
            return hidden[:, -1]
        lengths = [row.num_cached + count for row, count in zip(self.rows, counts, strict=True)]
        self._cache.lengths = torch.tensor(lengths)
        return hidden[range(len(fed)), [count - 1 for count in counts]]

    def _choose(self, rows: list[Row], logits: Tensor) -> list[Progress]:
        if all(row.sampler.plain for row in rows):
            chosen = logits.argmax(dim=-1).tolist()
        else:
            chosen = [row.sampler.choose(logits[index]) for index, row in enumerate(rows)]
        progress = []
        for row, token_id in zip(rows, chosen, strict=True):
            ids = row.take(token_id)
            progress.append(Progress(row=row, ids=ids, completion=row.completion() if row.finish_reason else None))
        return progress

    def _drop_finished(self) -> None:
        alive = [index for index, row in enumerate(self.rows) if row.finish_reason is None]
        if alive and len(alive) < len(self.rows):
            self._cache.select_rows(alive)
        self.rows = [self.rows[index] for index in alive]

    def _resized(self, num_kept: int, num_rows: int, capacity: int) -> KVCache:
        """A cache of another size that holds the first `num_kept` rows of the present one."""
        old = self._cache
        resized = KVCache(self._model.config, num_rows, capacity, old.keys[0].dtype, self._device)
        _copy_rows(old, resized, slice(0, num_kept))
        return resized


def _copy_rows(source: KVCache, target: KVCache, rows: slice) -> None:
    """Copy the first rows of `source` to these rows of `target`, which has room for them."""
    count = len(range(*rows.indices(len(target.lengths))))
    target.lengths[rows] = source.lengths[:count]
    target.planned_lengths[rows] = source.planned_lengths[:count]
    for old, new in zip(source.keys + source.values, target.keys + target.values, strict=True):
        new[rows, :, : source.capacity] = old[:count]


def _best_width(counts: list[int], limit: int) -> int:
    """The width of a step, at most `limit`, that does most useful work per cost; `counts`: pending ids per row.

    A step of width w feeds sum(min(count, w)) ids and costs about as much as FIXED_COST + rows * w.
    """
    widths = {min(count, limit) for count in counts}
    if len(widths) == 1:
        return widths.pop()
    return max(widths, key=lambda w: sum(min(count, w) for count in counts) / (FIXED_COST_TOKENS + len(counts) * w))
