"""Packing: documents side by side in rows of one length, each still alone.

Training on rows of T tokens wastes nothing when short documents share a row, and goes silently wrong in three ways if
they are not kept apart. Each row therefore carries, beside its ids,

    document_ids  which document a token belongs to (attention never crosses; -1 is padding)
    positions     counted from 0 in each document, so that RoPE sees it as if it stood alone
    targets       the id to predict AT each position, already shifted; -100 where nothing is trained: the last token of
                  a document never predicts the first of the next

so that the loss of a row is the sum of the losses of its documents. Two ways to fill rows:

* `stream_rows`: pretraining. Documents lie end to end and are cut every T tokens. A document that goes over a cut goes
  on in the next row as if it began there; the token at the cut is still predicted by the one before it, so that every
  next-token pair of every document is trained exactly once.
* `pack_samples` (sample_rows.py): fine-tuning. Samples are kept whole and placed side by side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from leveret.data.shards import TokenShards
from leveret.errors import DataError

Ids = NDArray[np.int32]
IGNORED = -100
"""The target of a position that is not trained."""
PADDING_DOCUMENT = -1


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of T tokens; all arrays are (T,) int32."""

    input_ids: Ids
    targets: Ids
    positions: Ids
    document_ids: Ids
    weights: NDArray[np.float32] | None = None
    """(T,) how much each target counts in the loss. None: 1 each."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One example: its ids, which of them are trained, and a name a person can find it by."""

    ids: Sequence[int]
    mask: Sequence[int]
    """True (or 1) where the token is trained."""
    key: str
    labels: Sequence[int] | None = None
    """What each place teaches where that differs from what stands there (see masks.py). None: the ids themselves."""
    weights: Sequence[float] | None = None
    """How much each token counts in the loss where it is trained. None: 1 each."""

    @property
    def num_trained(self) -> int:
        """Tokens that training predicts; the first token has nothing before it and never counts."""
        return sum(self.mask[1:])

    def compact(self) -> Sample:
        """The same in 5 bytes a token, where lists of Python's numbers take about 50."""
        labels = None if self.labels is None else array("i", self.labels)
        return replace(self, ids=array("i", self.ids), mask=array("b", self.mask), labels=labels)


@dataclass(frozen=True, kw_only=True)
class Piece:
    """What one document gives to a row; all arrays are of its length."""

    ids: Ids
    targets: Ids
    weights: NDArray[np.float32] | None = None
    """None: 1 each."""


class PackedRows(ABC):
    """Rows of one length, made when asked for."""

    def __init__(self, sequence_length: int) -> None:
        if sequence_length < 2:
            raise DataError(f"a row of {sequence_length} tokens cannot train anything; 2 is the least")
        self.sequence_length = sequence_length

    @abstractmethod
    def __len__(self) -> int:
        """The number of rows."""

    @abstractmethod
    def pieces(self, index: int, turn: int) -> list[Piece]:
        """The documents of a row in order, as they are seen in pass number `turn` over the rows."""

    @abstractmethod
    def key(self, index: int) -> str:
        """A name a person can find this row by."""

    def row(self, index: int, *, turn: int = 0) -> Row:
        """Row `index` in pass number `turn`, filled up with padding (id 0) at its end."""
        size, pieces = self.sequence_length, self.pieces(index, turn)
        weighted = any(piece.weights is not None for piece in pieces)
        row = Row(
            input_ids=np.zeros(size, np.int32),
            targets=np.full(size, IGNORED, np.int32),
            positions=np.zeros(size, np.int32),
            document_ids=np.full(size, PADDING_DOCUMENT, np.int32),
            weights=np.ones(size, np.float32) if weighted else None,
        )
        start = 0
        for document, piece in enumerate(pieces):
            place = slice(start, start + len(piece.ids))
            row.input_ids[place] = piece.ids
            row.targets[place] = piece.targets
            row.positions[place] = np.arange(len(piece.ids), dtype=np.int32)
            row.document_ids[place] = document
            if row.weights is not None and piece.weights is not None:
                row.weights[place] = piece.weights
            start = place.stop
        return row


class StreamRows(PackedRows):
    """Rows cut from documents that lie end to end."""

    def __init__(self, shards: TokenShards, sequence_length: int) -> None:
        super().__init__(sequence_length)
        self._shards = shards

    def __len__(self) -> int:
        return -(-max(0, self._shards.num_tokens - 1) // self.sequence_length)  # the last token predicts nothing

    def pieces(self, index: int, turn: int) -> list[Piece]:
        start = index * self.sequence_length
        stop = min(start + self.sequence_length, self._shards.num_tokens)
        stream = self._shards.tokens(start, min(stop + 1, self._shards.num_tokens)).astype(np.int32)
        offsets = self._shards.document_offsets
        first = int(np.searchsorted(offsets, start, side="right")) - 1
        pieces = []
        while first < len(offsets) - 1 and offsets[first] < stop:
            begin, document_end = max(int(offsets[first]), start), int(offsets[first + 1])
            end = min(document_end, stop)
            ids = stream[begin - start : end - start]
            targets = np.full(len(ids), IGNORED, np.int32)
            following = stream[begin + 1 - start : min(end + 1, document_end) - start]
            targets[: len(following)] = following
            pieces.append(Piece(ids=ids, targets=targets))
            first += 1
        return pieces

    def key(self, index: int) -> str:
        return f"{self._shards.directory.name}, row {index}"

    def index_of(self, key: str) -> int | None:
        """The index of the row with this key; None when it is not one of these rows."""
        name, _, number = key.rpartition(", row ")
        return int(number) if name == self._shards.directory.name and number.isdecimal() else None

    def documents(self, index: int) -> range:
        """The numbers of the documents that a row has parts of, counted from 0 in their shards."""
        start = index * self.sequence_length
        stop = min(start + self.sequence_length, self._shards.num_tokens)
        first, last = np.searchsorted(self._shards.document_offsets, [start, stop - 1], side="right") - 1
        return range(int(first), int(last) + 1)


def stream_rows(shards: TokenShards, sequence_length: int) -> StreamRows:
    """The rows of a pretraining run: every token of the shards that predicts one, in order, the last row padded."""
    return StreamRows(shards, sequence_length)
