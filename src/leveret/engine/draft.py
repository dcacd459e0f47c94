"""A draft model: a small decoder with the same vocabulary that guesses what a large one will say.

It keeps a KV cache of its own and follows each row's ids: what it has read beyond them (its own wrong guesses) is
written over. All rows take their guesses together, one id a forward. A row that samples is guessed for with a copy of
its sampler, hence with the very numbers it is going to draw.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from leveret.engine.blocks import BlockPool
from leveret.engine.config import EngineConfig
from leveret.engine.row import Row
from leveret.engine.runner import Runner
from leveret.engine.sampler import RowSampler
from leveret.errors import ConfigError
from leveret.hub import resolve_model
from leveret.model.decoder import Decoder
from leveret.model.paged_cache import Feed
from leveret.weights.load import load_model

BLOCK_TOKENS = 32
CHUNK_TOKENS = 512
"""Most ids of a row that are fed in one forward."""


@dataclass(kw_only=True, eq=False)
class _Follower:
    """What the draft model knows of a row."""

    table: list[int] = field(default_factory=list)
    read: list[int] = field(default_factory=list)
    """The ids whose keys and values it holds."""


class DraftModel:
    """Guesses by a smaller model; a `Guesser`."""

    def __init__(self, model: Decoder, *, vocab_size: int, capacity_tokens: int) -> None:
        """`capacity_tokens`: of its KV cache, for all rows together. ConfigError when its vocabulary is another."""
        if model.config.vocab_size != vocab_size:
            raise ConfigError(
                f"draft_model has a vocabulary of {model.config.vocab_size} tokens and the model one of {vocab_size}",
                hint="a draft model must be of the same family, with the same tokenizer",
            )
        self._pool = BlockPool(max(1, capacity_tokens // BLOCK_TOKENS))
        self._model = model
        self._runner: Runner | None = None
        self._followers: dict[Row, _Follower] = {}

    def guess(self, most: dict[Row, int]) -> dict[Row, list[int]]:
        """For all rows that no constraint binds and that its cache and context have room for."""
        rows = {row: count for row, count in most.items() if row.request.constraint is None and self._room(row, count)}
        for row in rows:
            self._catch_up(row)
        samplers = {row: None if row.sampler.plain else row.sampler.fork() for row in rows}
        guesses: dict[Row, list[int]] = {row: [] for row in rows}
        for place in range(max(rows.values(), default=0)):
            going = [row for row, count in rows.items() if count > place]
            logits = self._fed([(row, [*row.ids, *guesses[row]][len(self._followers[row].read) :]) for row in going])
            for row, scores in zip(going, logits, strict=True):
                guesses[row].append(_chosen(scores, samplers[row]))
        return guesses

    def drop(self, row: Row) -> None:
        """The row has ended."""
        if (follower := self._followers.pop(row, None)) is not None:
            self._pool.release(follower.table)

    def _room(self, row: Row, count: int) -> bool:
        """Blocks for the row's ids and `count` guesses; a row that there is no room for is forgotten."""
        end = len(row.ids) + count
        follower = self._followers.setdefault(row, _Follower())
        blocks = self._pool.allocate(max(0, -(-end // BLOCK_TOKENS) - len(follower.table)))
        if blocks is None or end > self._model.config.max_position_embeddings:
            self._pool.release(blocks or [])
            self.drop(row)
            return False
        follower.table += blocks
        self._ready().cache.clear(blocks)
        return True

    def _catch_up(self, row: Row) -> None:
        """Forget wrong guesses, and read all ids of the row but the last piece."""
        read = self._followers[row].read
        same = min(len(read), len(row.ids) - 1)
        while read[:same] != row.ids[:same]:
            same -= 1
        del read[same:]
        while len(row.ids) - len(read) > CHUNK_TOKENS:
            self._fed([(row, row.ids[len(read) : len(read) + CHUNK_TOKENS])])

    def _fed(self, ids: Sequence[tuple[Row, list[int]]]) -> Tensor:
        """Feed each row these ids; the logits after the last of each, (rows, V)."""
        feeds = []
        for row, fresh in ids:
            follower = self._followers[row]
            start, table = len(follower.read), follower.table
            feeds.append(Feed(ids=fresh, start=start, table=table, planned_length=row.planned_length))
            follower.read += fresh
        return self._ready()(feeds, [1] * len(feeds))

    def _ready(self) -> Runner:
        if self._runner is None:
            self._runner = Runner({0: self._model}, num_blocks=self._pool.num_blocks, block_tokens=BLOCK_TOKENS)
        return self._runner


def draft_model(model: Decoder, config: EngineConfig) -> Decoder | None:
    """The model that the config wants to guess for `model`, in the same type and on the same device, if it wants one.

    Raises HubError or WeightsError when it cannot be read.
    """
    if config.draft_model is None or config.batch_invariant:
        return None
    weight = model.embed_tokens.weight
    return load_model(resolve_model(config.draft_model), dtype=weight.dtype, device=str(weight.device)).eval()


def _chosen(logits: Tensor, sampler: RowSampler | None) -> int:
    if sampler is None:
        return int(torch.argmax(logits))
    token_id = sampler.choose(logits)
    sampler.accept(token_id)
    return token_id
