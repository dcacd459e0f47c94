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
* `pack_samples`: fine-tuning. Samples are kept whole and placed by best fit, longest first: each goes where it leaves
  the least room (Ding et al. 2024, arXiv 2404.10830).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from leveret.data.shards import TokenShards
from leveret.errors import DataError, NothingToTrain

Ids = NDArray[np.int32]
IGNORED = -100
"""The target of a position that is not trained."""
PADDING_DOCUMENT = -1

OnLong = Literal["error", "drop", "truncate"]
OnUntrained = Literal["error", "drop"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of T tokens; all four arrays are (T,) int32."""

    input_ids: Ids
    targets: Ids
    positions: Ids
    document_ids: Ids


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One example: its ids, which of them are trained, and a name a person can find it by."""

    ids: Sequence[int]
    mask: Sequence[bool]
    key: str

    @property
    def num_trained(self) -> int:
        """Tokens that training predicts; the first token has nothing before it and never counts."""
        return sum(self.mask[1:])


@dataclass(frozen=True, kw_only=True)
class PackingReport:
    """What became of the samples."""

    num_samples: int
    num_rows: int
    num_tokens: int
    num_trained_tokens: int
    num_dropped_long: int = 0
    """Longer than a row, left out."""
    num_truncated: int = 0
    """Longer than a row, cut at its end."""
    num_dropped_untrained: int = 0
    """Without a trained token (perhaps after the cut), left out."""


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
    def pieces(self, index: int) -> list[tuple[Ids, Ids]]:
        """The documents of a row in order, each as its ids and its targets."""

    @abstractmethod
    def key(self, index: int) -> str:
        """A name a person can find this row by."""

    def row(self, index: int) -> Row:
        """Row `index`, filled up with padding (id 0) at its end."""
        size = self.sequence_length
        row = Row(
            input_ids=np.zeros(size, np.int32),
            targets=np.full(size, IGNORED, np.int32),
            positions=np.zeros(size, np.int32),
            document_ids=np.full(size, PADDING_DOCUMENT, np.int32),
        )
        start = 0
        for document, (ids, targets) in enumerate(self.pieces(index)):
            place = slice(start, start + len(ids))
            row.input_ids[place] = ids
            row.targets[place] = targets
            row.positions[place] = np.arange(len(ids), dtype=np.int32)
            row.document_ids[place] = document
            start += len(ids)
        return row


class StreamRows(PackedRows):
    """Rows cut from documents that lie end to end."""

    def __init__(self, shards: TokenShards, sequence_length: int) -> None:
        super().__init__(sequence_length)
        self._shards = shards

    def __len__(self) -> int:
        return -(-self._shards.num_tokens // self.sequence_length)

    def pieces(self, index: int) -> list[tuple[Ids, Ids]]:
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
            pieces.append((ids, targets))
            first += 1
        return pieces

    def key(self, index: int) -> str:
        return f"{self._shards.directory}, row {index}"


class SampleRows(PackedRows):
    """Rows of whole samples."""

    def __init__(
        self, samples: Sequence[Sample], rows: Sequence[Sequence[int]], sequence_length: int, report: PackingReport
    ) -> None:
        super().__init__(sequence_length)
        self.samples = list(samples)
        """The samples as they are trained, after cuts and without the dropped ones."""
        self._keys = [sample.key for sample in samples]
        self._ids = [np.asarray(sample.ids, np.int32) for sample in samples]
        self._masks = [np.asarray(sample.mask, np.bool_) for sample in samples]
        self._rows = rows
        self.report = report

    def __len__(self) -> int:
        return len(self._rows)

    def pieces(self, index: int) -> list[tuple[Ids, Ids]]:
        return [self._piece(sample) for sample in self._rows[index]]

    def key(self, index: int) -> str:
        return " + ".join(self._keys[sample] for sample in self._rows[index])

    def _piece(self, sample: int) -> tuple[Ids, Ids]:
        ids = self._ids[sample]
        targets = np.full(len(ids), IGNORED, np.int32)
        targets[:-1] = np.where(self._masks[sample][1:], ids[1:], IGNORED)
        return ids, targets


def stream_rows(shards: TokenShards, sequence_length: int) -> StreamRows:
    """The rows of a pretraining run: every token of the shards, in their order, the last row padded."""
    return StreamRows(shards, sequence_length)


def pack_samples(
    samples: Sequence[Sample],
    sequence_length: int,
    *,
    on_long: OnLong = "error",
    on_untrained: OnUntrained = "error",
) -> SampleRows:
    """Place whole samples into rows; what does not fit or trains nothing is an error or counted in `.report`.

    NothingToTrain if a sample trains nothing (with `on_untrained="error"`) or no sample is left.
    """
    kept: list[Sample] = []
    num_long = num_truncated = num_untrained = 0
    for sample in samples:
        if len(sample.ids) > sequence_length:
            if on_long == "drop":
                num_long += 1
                continue
            sample = _shortened(sample, sequence_length, on_long)
            num_truncated += 1
        if sample.num_trained == 0:
            _refuse_untrained(sample, on_untrained)
            num_untrained += 1
            continue
        kept.append(sample)
    if not kept:
        raise NothingToTrain(
            f"none of {len(samples)} samples is left to train on: {num_long} are longer than {sequence_length} tokens, "
            f"{num_untrained} have no trained token"
        )
    rows = _best_fit([len(sample.ids) for sample in kept], sequence_length)
    report = PackingReport(
        num_samples=len(kept),
        num_rows=len(rows),
        num_tokens=sum(len(sample.ids) for sample in kept),
        num_trained_tokens=sum(sample.num_trained for sample in kept),
        num_dropped_long=num_long,
        num_truncated=num_truncated,
        num_dropped_untrained=num_untrained,
    )
    return SampleRows(kept, rows, sequence_length, report)


def _best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Which items go into which row: longest first, each into the fullest row that still has room."""
    rows: list[list[int]] = []
    rooms: list[int] = []  # the amounts of room that some row has, sorted
    rows_with_room: dict[int, list[int]] = {}
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        place = bisect_left(rooms, lengths[item])
        if place == len(rooms):
            room, row = capacity, len(rows)
            rows.append([])
        else:
            room = rooms[place]
            row = rows_with_room[room].pop()
            if not rows_with_room[room]:
                del rows_with_room[room], rooms[place]
        rows[row].append(item)
        left = room - lengths[item]
        if left not in rows_with_room:
            rows_with_room[left] = []
            insort(rooms, left)
        rows_with_room[left].append(row)
    return rows


def _shortened(sample: Sample, size: int, on_long: OnLong) -> Sample:
    if on_long == "error":
        raise DataError(
            f"{sample.key}: {len(sample.ids)} tokens do not fit into a row of {size}",
            hint="raise the sequence length, or choose to drop or truncate long samples",
        )
    return Sample(ids=sample.ids[:size], mask=sample.mask[:size], key=sample.key)


def _refuse_untrained(sample: Sample, on_untrained: OnUntrained) -> None:
    if on_untrained == "error":
        raise NothingToTrain(
            f"{sample.key}: none of its {len(sample.ids)} tokens is trained",
            hint="it has no assistant message with text, or it was cut before one; drop such samples or fix the data",
        )
