"""One new token of each of several sequences, as tensors that stay where they are from one forward to the next.

A CUDA graph (engine/graphs.py) does again what was done once, on the same memory. So nothing of a step may be a Python
number: here all that differs between two steps lies in one tensor of integers, which `fill` writes to.

    of each row:   id   position   planned length   place of the first token read   W blocks
                                                    (0, but with a sliding window)

A forward of `StaticRows` reads these and nothing else; it waits for nothing and copies nothing from the CPU. Rows that
nobody needs are padding: token 0 at place 0 of a spare block, which no sequence has. As many of them as there may be
write the same numbers there.

Each row reads W blocks, those that it has no more being block 0, whose zeros a mask hides: what `PagedRows` does for
the longest of its sequences is done here for any up to W * C tokens. The sums are the same in another order.

Shape legend: R rows, W blocks read, C tokens of a block, K key-value heads.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from leveret.kernels.attention import additive_mask
from leveret.model.paged_cache import Feed, PagedCache, PagedRows, Piece

NUM_SINGLE = 4
"""Integers of a row before its blocks."""


def blocks_read(feed: Feed, cache: PagedCache) -> range:
    """Which blocks of its table the one new token of `feed` reads."""
    first = 0 if cache.window is None else max(0, feed.start - cache.window + 1) // cache.block_tokens
    return range(first, feed.start // cache.block_tokens + 1)


class StaticBuffers:
    """Memory for `num_rows` rows that read up to `num_blocks` blocks; all are padding at first."""

    def __init__(self, cache: PagedCache, *, num_rows: int, num_blocks: int, spare: int) -> None:
        """`spare`: a block of the cache that no sequence has."""
        self.cache = cache
        self.num_rows = num_rows
        self.num_blocks = num_blocks
        self._padding = [0, 0, 1, 0, spare, *[0] * (num_blocks - 1)]
        device = cache.keys[0].device
        self._numbers = torch.zeros(num_rows, NUM_SINGLE + num_blocks, dtype=torch.long, device=device)
        self.fill([])

    def fill(self, feeds: Sequence[Feed]) -> None:
        """The next forward is for these, one new token each, and for padding."""
        size, width = self.cache.block_tokens, self.num_blocks
        numbers = array("q")
        for feed in feeds:
            read = blocks_read(feed, self.cache)
            numbers.extend((feed.ids[0], feed.start, feed.planned_length, read.start * size))
            numbers.extend(feed.table[read.start : read.stop])
            numbers.extend([0] * (width - len(read)))
        numbers.extend(self._padding * (self.num_rows - len(feeds)))
        self._numbers.copy_(torch.frombuffer(numbers, dtype=torch.long).view_as(self._numbers))

    @property
    def ids(self) -> Tensor:
        """(1, R)"""
        return self._numbers[:, 0].unsqueeze(0)

    @property
    def positions(self) -> Tensor:
        """(1, R)"""
        return self._numbers[:, 1].unsqueeze(0)

    @property
    def planned_lengths(self) -> Tensor:
        """(1, R)"""
        return self._numbers[:, 2].unsqueeze(0)

    @property
    def first_read(self) -> Tensor:
        """The position of the first token in the first block of each row, (R, 1)."""
        return self._numbers[:, 3:NUM_SINGLE]

    @property
    def blocks(self) -> Tensor:
        """(R, W)"""
        return self._numbers[:, NUM_SINGLE:]


class StaticRows(PagedRows):
    """One forward over what the buffers hold when it is computed; made anew for each."""

    def __init__(self, buffers: StaticBuffers) -> None:
        # Not super's: it makes tensors of what the feeds say, and there are none.
        self.cache, self.feeds, self.counts = buffers.cache, (), [1] * buffers.num_rows
        self._buffers = buffers
        self.num_tokens = buffers.num_rows
        self.positions = buffers.positions

    @property
    def ids(self) -> Tensor:
        """The new tokens, (1, R)."""
        return self._buffers.ids

    @property
    def planned_lengths(self) -> Tensor:
        """Of the sequence of each new token, (1, R)."""
        return self._buffers.planned_lengths

    def pieces(self, dtype: torch.dtype) -> list[Piece]:
        """All rows attend together."""
        buffers, cache = self._buffers, self.cache
        device, heads = buffers.blocks.device, cache.keys[0].shape[1]
        numbers = buffers.blocks.unsqueeze(1) * heads + torch.arange(heads, device=device).unsqueeze(1)  # (R, K, W)
        read = buffers.first_read + torch.arange(buffers.num_blocks * cache.block_tokens, device=device)  # (R, W * C)
        return [
            Piece(
                first=0,
                rows=buffers.num_rows,
                tokens=1,
                blocks=numbers.flatten(),
                mask=additive_mask(buffers.positions.view(-1, 1), read, window=cache.window, dtype=dtype),
                is_causal=False,
            )
        ]

    @cached_property
    def _places(self) -> Tensor:
        """As in `PagedRows`, (R * K,)."""
        buffers, size = self._buffers, self.cache.block_tokens
        heads = self.cache.keys[0].shape[1]
        positions = buffers.positions.view(-1, 1)  # (R, 1)
        blocks = buffers.blocks.gather(1, (positions - buffers.first_read) // size)  # (R, 1)
        rows: Tensor = (blocks * heads + torch.arange(heads, device=blocks.device)) * size + positions % size  # (R, K)
        return rows.flatten()
