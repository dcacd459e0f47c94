"""A tensor is merged in blocks of a quarter or half of a million values, several at a time, each in a thread.

A thread reads its block of every model, merges it in float32, rounds once, and writes. What a merge needs in
memory is therefore a few blocks for each thread, whatever the size of the models or of their largest tensor (`ties`
keeps a sixteenth of the tensor's changes besides). Methods that need to know something of the whole tensor first (an
angle, the k-th largest change) look at it one block after another before; the second look finds the file in the
system's cache.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from leveret.merge.sources import Piece, Source
from leveret.merge.vocabulary import Alignment

BLOCK = 1 << 18
"""Values in a block. DARE's random numbers are drawn block by block, so another number drops other values."""

STREAMED = 1 << 19
"""Values in a block that is streamed: fewer, longer reads and writes."""

WORKERS_PER_CORE = 2
"""Threads for each core: while one waits for the disk, another computes."""

SAMPLE_PARTS, SAMPLE_LENGTH = 32, 2048
"""Parts and values of each in a sample of a tensor."""

R = TypeVar("R")


@dataclass(frozen=True, kw_only=True)
class Blocks:
    """The values of the models, block by block, in the order of the result."""

    sources: Sequence[Source]
    alignment: Alignment
    pool: ThreadPoolExecutor

    def each(self, piece: Piece, work: Callable[[int, int], R], *, streamed: bool = False) -> Iterator[R]:
        """`work(start, stop)` for every block of a tensor, in threads; results in order, each forgotten once taken.

        streamed: one pass over each value is all that is done with it, so blocks may be long.
        """
        total, row = _sizes(piece)
        block = STREAMED if streamed else BLOCK
        step = max(1, block // row) * row if piece.has_token_rows else block
        starts = range(0, total, step)
        return self.pool.map(lambda start: work(start, min(start + step, total)), starts)

    def every(self, piece: Piece, work: Callable[[int, int], None], *, streamed: bool = False) -> None:
        """`each`, and wait for the last."""
        for _ in self.each(piece, work, streamed=streamed):
            pass

    def sample(self, piece: Piece) -> list[tuple[int, int]]:
        """[start, stop) of a few short parts, spread evenly over a tensor of several blocks; [] for a smaller one."""
        total, row = _sizes(piece)
        if total < max(2 * BLOCK, 2 * SAMPLE_PARTS * SAMPLE_LENGTH):
            return []
        unit = row if piece.has_token_rows else 1
        length = -(-SAMPLE_LENGTH // unit) * unit
        starts = (part * (total - length) // (SAMPLE_PARTS - 1) // unit * unit for part in range(SAMPLE_PARTS))
        return [(start, start + length) for start in starts]

    def read(self, piece: Piece, start: int, stop: int) -> list[Tensor]:
        """Values [start, stop) of the piece in every source, in float32."""
        return [values.float() for values in self.stored_in_all(piece, start, stop)]

    def stored_in_all(self, piece: Piece, start: int, stop: int) -> list[Tensor]:
        """Values [start, stop) of the piece in every source, as stored."""
        return [self.stored(piece, number, name, start, stop) for number, name in piece.parts]

    def stored(self, piece: Piece, number: int, name: str, start: int, stop: int) -> Tensor:
        """Values [start, stop) in one source, as stored."""
        rows = self.alignment.rows[number] if piece.has_token_rows else None
        if rows is None:
            return self.sources[number].reader.read(name, start, stop)
        _, width = _sizes(piece)
        first, last = start // width, stop // width
        sources, places = rows.source[first:last], rows.row[first:last]
        parts = [
            self.sources[sources[begin]].reader.read(
                name, int(places[begin]) * width, (int(places[begin]) + end - begin) * width
            )
            for begin, end in _runs(sources, places)
        ]
        return torch.cat(parts)


@contextmanager
def threads(count: int) -> Iterator[ThreadPoolExecutor]:
    """Workers that each compute on one core: the blocks are what is parallel, not the sums in them."""
    with ThreadPoolExecutor(max_workers=count, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield pool


def uniform(count: int, *, seed: int, name: str, model: int, start: int) -> Tensor:
    """`count` random numbers in [0, 1) that depend on what they are for, not on when or where they are drawn."""
    key = hashlib.sha256(f"{seed}\n{name}\n{model}\n{start}".encode()).digest()
    generator = np.random.Generator(np.random.SFC64(int.from_bytes(key[:16], "little")))
    return torch.from_numpy(generator.random(count, dtype=np.float32))


def _sizes(piece: Piece) -> tuple[int, int]:
    """Values in the whole tensor and in one of its rows."""
    total = int(np.prod(piece.shape, dtype=np.int64))
    return total, total // piece.shape[0] if piece.shape and total else 1


def _runs(sources: np.ndarray, places: np.ndarray) -> Iterator[tuple[int, int]]:
    """[begin, end) of rows that follow one another in one file."""
    breaks = np.flatnonzero((np.diff(sources) != 0) | (np.diff(places) != 1)) + 1
    edges = [0, *breaks.tolist(), len(places)]
    yield from itertools.pairwise(edges)
