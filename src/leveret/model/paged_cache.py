"""A KV cache in blocks, and one forward over it: tokens of several sequences in one row, without padding.

    pool      keys and values, for each layer (N blocks, K heads, C tokens, D)
    tables    which blocks hold which sequence: its token p is token p % C of block table[p // C]

A forward takes the new tokens of all sequences one behind the other, (1, T) in all, so that its Linears see no padding
and a long prompt can be read together with single tokens of others. Only attention looks at sequences: `pieces` are
sequences with equally many new tokens, which attend together; what the cache holds of them is gathered for that (the
compiled kernels follow the tables instead). Who gets which block is decided elsewhere (engine/blocks.py).

Shape legend: N blocks, C tokens of a block, K key-value heads, D head width, T new tokens, R sequences of a piece, W
blocks of the longest of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import torch
from torch import Tensor

from leveret.kernels.attention import additive_mask
from leveret.model.config import ModelConfig

MOST_TOGETHER_TOKENS = 16
"""Sequences with up to so many new tokens attend together; longer ones are alone, for their caches differ in length."""


@dataclass(frozen=True, kw_only=True)
class Feed:
    """New tokens of one sequence."""

    ids: Sequence[int]
    """At least one."""
    start: int
    """Tokens of the sequence that the cache holds already."""
    table: Sequence[int]
    """Its blocks, enough for the new tokens too."""
    planned_length: int
    """The length it is to reach; fixes the base of dynamic NTK (`rope.py`), which must not drift."""
    chosen_from: int = 0
    """The place of the first id that is no longer the prompt's; which it is matters to engine/invariant.py only."""
    model: int = 0
    """Which of several models that share a cache reads them (engine/runner.py)."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Sequences that attend together."""

    first: int
    """Their first place among the T new tokens."""
    rows: int
    """R"""
    tokens: int
    """New tokens of each."""
    blocks: Tensor | None
    """What they read, (R * K * W,): head k of block n is number n * K + k of a layer; None: their new tokens only."""
    mask: Tensor | None
    """Additive, (R, 1, tokens, W * C) or (1, 1, tokens, tokens); None: everything, or the causal square."""
    is_causal: bool
    """The plain causal square."""

    def cut(self, x: Tensor) -> Tensor:
        """(1, heads, T, D) -> (R, heads, tokens, D)."""
        own = x[0, :, self.first : self.first + self.rows * self.tokens]
        return own.reshape(len(own), self.rows, self.tokens, -1).transpose(0, 1)


class PagedCache:
    """Memory of `num_blocks` blocks besides block 0, which is all zeros and pads tables."""

    def __init__(
        self,
        config: ModelConfig,
        num_blocks: int,
        block_tokens: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        shape = (config.num_hidden_layers, 2, num_blocks + 1, config.num_key_value_heads, block_tokens, config.head_dim)
        # The system gives out pages when they are first written, so a large pool costs what is used of it.
        self._pool = torch.empty(shape, dtype=dtype, device=device)
        self._pool[:, :, 0] = 0
        self.keys = [layer[0] for layer in self._pool]
        self.values = [layer[1] for layer in self._pool]
        self.block_tokens = block_tokens
        self.window = config.sliding_window
        self.num_bytes = self._pool.numel() * self._pool.element_size()

    def clear(self, blocks: Sequence[int]) -> None:
        """Make blocks all zeros. Attention multiplies what it must not see by 0, and 0 times rubbish may be NaN."""
        for first, last in _runs(sorted(blocks)):  # a list as an index goes element by element
            self._pool[:, :, first:last].zero_()

    @staticmethod
    def block_bytes(config: ModelConfig, block_tokens: int, dtype: torch.dtype) -> int:
        """Memory of one block."""
        numbers = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * block_tokens
        return numbers * dtype.itemsize


class PagedRows:
    """One forward: new tokens of several sequences, in order, as `cache` of `Decoder.hidden`."""

    def __init__(self, cache: PagedCache, feeds: Sequence[Feed]) -> None:
        self.cache = cache
        self.feeds = feeds
        device = cache.keys[0].device
        self.counts = [len(feed.ids) for feed in feeds]
        places = [feed.start + offset for feed in feeds for offset in range(len(feed.ids))]
        self.num_tokens = len(places)
        self.positions = torch.tensor([places], device=device)
        """(1, T)"""

    @property
    def ids(self) -> Tensor:
        """The new tokens, (1, T)."""
        return torch.tensor([[token_id for feed in self.feeds for token_id in feed.ids]], device=self.positions.device)

    @cached_property
    def models(self) -> list[int]:
        """Which model reads each new token."""
        return [feed.model for feed in self.feeds for _ in feed.ids]

    @property
    def planned_lengths(self) -> Tensor:
        """Of the sequence of each new token, (1, T)."""
        lengths = [feed.planned_length for feed in self.feeds for _ in feed.ids]
        return torch.tensor([lengths], device=self.positions.device)

    def tables(self) -> Tensor:
        """The table of the sequence of each new token, (T, W), padded with block 0."""
        width = max(len(feed.table) for feed in self.feeds)
        return torch.tensor([_padded(feed.table, width) for feed in self.feeds for _ in feed.ids])

    def pieces(self, dtype: torch.dtype) -> list[Piece]:
        """How attention goes about it."""
        pieces, at = [], 0
        alike = groupby(enumerate(self.feeds), key=lambda each: self._alike(*each))
        for _, group in alike:
            feeds = [feed for _, feed in group]
            pieces.append(self._piece(at, feeds, dtype))
            at += len(feeds) * len(feeds[0].ids)
        return pieces

    def write(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Keep one layer's new keys and values, (1, K, T, D) each."""
        # By rows of the flat pool: with block, all heads and offset as indices PyTorch goes element by element.
        for pool, new in ((self.cache.keys[layer], key), (self.cache.values[layer], value)):
            width = pool.shape[-1]
            pool.view(-1, width)[self._places] = new[0].detach().transpose(0, 1).reshape(-1, width)

    def read(self, layer: int, piece: Piece, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """What a piece sees, (R, K, S, D) each; key and value are the new ones, (1, K, T, D)."""
        if piece.blocks is None:
            return piece.cut(key), piece.cut(value)
        # Only in one piece is the pool gathered from in place: PyTorch would copy all of a transposed one first.
        keys, values = (
            each[layer].flatten(0, 1).index_select(0, piece.blocks) for each in (self.cache.keys, self.cache.values)
        )  # (R * K * W, C, D)
        shape = (piece.rows, key.shape[1], -1, key.shape[3])
        return keys.view(shape), values.view(shape)

    @cached_property
    def _places(self) -> Tensor:
        """Where each head of each new token is kept, (T * K,): the row of a layer's pool as (N * K * C, D)."""
        heads, size = self.cache.keys[0].shape[1:3]
        blocks = [feed.table[place // size] for feed in self.feeds for place in _range(feed)]
        device = self.positions.device
        head = torch.tensor(blocks, device=device).unsqueeze(1) * heads + torch.arange(heads, device=device)  # (T, K)
        rows: Tensor = head * size + self.positions[0].unsqueeze(1) % size
        return rows.flatten()

    def _alike(self, index: int, feed: Feed) -> tuple[int, int, int]:
        """Neighbors of the same key attend together."""
        alone = feed.start > 0 and len(feed.ids) > MOST_TOGETHER_TOKENS
        return (len(feed.ids), int(feed.start == 0), index if alone else -1)

    def _piece(self, at: int, feeds: Sequence[Feed], dtype: torch.dtype) -> Piece:
        tokens, window, device = len(feeds[0].ids), self.cache.window, self.positions.device
        if feeds[0].start == 0:
            along = torch.arange(tokens, device=device).unsqueeze(0)
            outside = window is not None and tokens > window
            mask = additive_mask(along, along, window=window, dtype=dtype) if outside else None
            is_causal = mask is None and tokens > 1
            return Piece(first=at, rows=len(feeds), tokens=tokens, blocks=None, mask=mask, is_causal=is_causal)
        size = self.cache.block_tokens
        first = 0 if window is None else max(0, min(feed.start for feed in feeds) - window + 1) // size
        last = max(_range(feed)[-1] for feed in feeds) // size + 1
        blocks = torch.tensor([_padded(feed.table, last)[first:last] for feed in feeds], device=device)  # (R, W)
        heads = self.cache.keys[0].shape[1]
        numbers = blocks.unsqueeze(1) * heads + torch.arange(heads, device=device).unsqueeze(1)  # (R, K, W)
        positions = torch.tensor([list(_range(feed)) for feed in feeds], device=device)  # (R, tokens)
        read = torch.arange(first * size, last * size, device=device).unsqueeze(0)
        return Piece(
            first=at,
            rows=len(feeds),
            tokens=tokens,
            blocks=numbers.flatten(),
            mask=additive_mask(positions, read, window=window, dtype=dtype),
            is_causal=False,
        )


def _runs(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """[first, last) of stretches of consecutive numbers; `numbers` in order."""
    for _, stretch in groupby(enumerate(numbers), key=lambda each: each[1] - each[0]):
        found = [number for _, number in stretch]
        yield found[0], found[-1] + 1


def _range(feed: Feed) -> range:
    return range(feed.start, feed.start + len(feed.ids))


def _padded(table: Sequence[int], width: int) -> list[int]:
    return [*table[:width], *[0] * (width - len(table))]
