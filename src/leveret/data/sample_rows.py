"""Rows of whole samples: which go side by side, and what becomes of those that are too long or train nothing.

Samples are placed by best fit, longest first: each goes into the row where it leaves the least room (Ding et al. 2024,
arXiv 2404.10830). Nothing of a sample is cut, except where the caller chose to truncate; all that is lost is counted,
in samples and in tokens.

With BPE dropout every pass over the data reads the same samples in other tokens. Rows are then packed once, for the
longest form of each sample that any pass has, so that the rows and their order are the same in each.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from leveret.data.packing import IGNORED, PackedRows, Piece, Sample
from leveret.errors import DataError, NothingToTrain

OnLong = Literal["error", "drop", "truncate", "split"]
"""What becomes of a sample longer than a row; 'split' (splitting.py) comes before, and what it leaves is dropped."""
OnUntrained = Literal["error", "drop"]


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
    num_tokens_lost: int = 0
    """Tokens that were left out or cut off because a sample was longer than a row."""
    num_dropped_untrained: int = 0
    """Without a trained token (perhaps after the cut), left out."""


class SampleRows(PackedRows):
    """Rows of whole samples."""

    def __init__(
        self,
        passes: Sequence[Sequence[Sample]],
        rows: Sequence[Sequence[int]],
        sequence_length: int,
        report: PackingReport,
    ) -> None:
        super().__init__(sequence_length)
        self.passes = [list(samples) for samples in passes]
        """The samples of each pass over the rows, as they are trained; after the last the first comes again."""
        self._pieces = [[_piece(sample) for sample in samples] for samples in passes]
        self._rows = rows
        self.report = report

    @property
    def samples(self) -> list[Sample]:
        """The samples of the first pass, after cuts and without the dropped ones."""
        return self.passes[0]

    def __len__(self) -> int:
        return len(self._rows)

    def pieces(self, index: int, turn: int) -> list[Piece]:
        pieces = self._pieces[turn % len(self._pieces)]
        return [pieces[sample] for sample in self._rows[index]]

    def key(self, index: int) -> str:
        return " + ".join(self.samples[sample].key for sample in self._rows[index])


def pack_samples(
    samples: Sequence[Sample],
    sequence_length: int,
    *,
    on_long: OnLong = "error",
    on_untrained: OnUntrained = "error",
    passes: Sequence[Sequence[Sample]] = (),
    source: Path | None = None,
) -> SampleRows:
    """Place whole samples into rows; what does not fit or trains nothing is an error or counted in `.report`.

    passes: the same samples in other tokens, one list for each pass over them. Where such a form does not fit into a
    row though the sample itself does, the sample itself stands in for it.
    source: where they come from, for the error when none is left.

    DataError if there is no sample; NothingToTrain if one trains nothing (with `on_untrained="error"`) or none is left.
    """
    kept: dict[int, Sample] = {}
    num_long = num_truncated = num_untrained = num_lost = 0
    for place, sample in enumerate(samples):
        surplus = len(sample.ids) - sequence_length
        if surplus > 0 and on_long in ("drop", "split"):
            num_long, num_lost = num_long + 1, num_lost + len(sample.ids)
            continue
        if surplus > 0:
            _refuse_long(sample, sequence_length, on_long)
            sample = _first(sample, sequence_length)
            num_truncated, num_lost = num_truncated + 1, num_lost + surplus
        if sample.num_trained == 0:
            _refuse_untrained(sample, on_untrained)
            num_untrained += 1
            continue
        kept[place] = sample
    if not kept:
        raise _nothing_left(source, len(samples), num_long, num_untrained, sequence_length)
    used = [
        [_form(forms[i], whole, sequence_length, cut=whole is not samples[i]) for i, whole in kept.items()]
        for forms in passes
    ]
    used = used or [list(kept.values())]
    rows = _best_fit([max(len(form.ids) for form in forms) for forms in zip(*used, strict=True)], sequence_length)
    report = PackingReport(
        num_samples=len(kept),
        num_rows=len(rows),
        num_tokens=sum(len(sample.ids) for sample in used[0]),
        num_trained_tokens=sum(sample.num_trained for sample in used[0]),
        num_dropped_long=num_long,
        num_truncated=num_truncated,
        num_tokens_lost=num_lost,
        num_dropped_untrained=num_untrained,
    )
    return SampleRows(used, rows, sequence_length, report)


def _piece(sample: Sample) -> Piece:
    """A sample as a row holds it: targets and their weights stand where they are predicted, one place to the left."""
    ids = np.asarray(sample.ids, np.int32)
    labels = ids if sample.labels is None else np.asarray(sample.labels, np.int32)
    targets = np.full(len(ids), IGNORED, np.int32)
    targets[:-1] = np.where(np.asarray(sample.mask, np.bool_)[1:], labels[1:], IGNORED)
    weights: NDArray[np.float32] | None = None
    if sample.weights is not None:
        weights = np.ones(len(ids), np.float32)
        weights[:-1] = np.asarray(sample.weights, np.float32)[1:]
    return Piece(ids=ids, targets=targets, weights=weights)


def _form(form: Sample, whole: Sample, size: int, *, cut: bool) -> Sample:
    """The form of a pass, cut if the sample itself was cut; or the sample itself where the form does not do."""
    if len(form.ids) > size and not cut:
        return whole
    form = _first(form, size)
    return form if form.num_trained else whole


def _first(sample: Sample, size: int) -> Sample:
    """The first `size` tokens."""
    if len(sample.ids) <= size:
        return sample
    labels = None if sample.labels is None else sample.labels[:size]
    weights = None if sample.weights is None else sample.weights[:size]
    return replace(sample, ids=sample.ids[:size], mask=sample.mask[:size], labels=labels, weights=weights)


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


def _refuse_long(sample: Sample, size: int, on_long: OnLong) -> None:
    if on_long == "error":
        raise DataError(
            f"{sample.key}: {len(sample.ids)} tokens do not fit into a row of {size}",
            hint="raise the sequence length, or choose to drop, truncate or split long samples",
        )


def _nothing_left(
    source: Path | None, num_samples: int, num_long: int, num_untrained: int, size: int
) -> DataError | NothingToTrain:
    if not num_samples:
        return DataError(
            "there is no sample", path=source, hint="is it the right file? take out of the config what is empty"
        )
    place = "" if source is None else f"{source}: "
    return NothingToTrain(
        f"{place}none of {num_samples} samples is left: {num_long} are longer than {size} tokens, "
        f"{num_untrained} have no trained token"
    )


def _refuse_untrained(sample: Sample, on_untrained: OnUntrained) -> None:
    if on_untrained == "error":
        raise NothingToTrain(
            f"{sample.key}: none of its {len(sample.ids)} tokens is trained",
            hint="it has no assistant message that is trained, or it was cut before one; on_untrained=drop leaves such "
            "samples out, or fix the data",
        )
