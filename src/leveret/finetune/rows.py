"""One source of a fine-tuning run: its samples read, left out where asked, packed into rows, and reported."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from leveret.console import Console
from leveret.data.excluding import Exclusions
from leveret.data.files import ReadReport
from leveret.data.leaks import refuse_leaks
from leveret.data.mixture import rows_per_epoch
from leveret.data.packing import Sample
from leveret.data.sample_rows import PackingReport, SampleRows, pack_samples
from leveret.data.unread_keys import unread_line
from leveret.finetune.config import FinetuneConfig
from leveret.finetune.samples import Writing, read_samples
from leveret.garbage import without_collecting
from leveret.tokenizer.dropout import BpeDropout
from leveret.trainer.config import DataSource

_MOST_FORMS = 8
"""Passes over the data that BPE dropout draws anew for; all of them are in memory."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """What one file or folder gives."""

    rows: SampleRows
    samples: Sequence[Sample]
    """Those of the rows, in the tokens of the saved tokenizer: without BPE dropout."""

    @cached_property
    def content(self) -> str:
        """A hash of what the samples train."""
        digest = hashlib.sha256()
        for sample in self.rows.samples:
            labels = sample.labels or ()
            digest.update(np.array([len(sample.ids), *sample.ids, *sample.mask, *labels], dtype=np.int64).tobytes())
        return digest.hexdigest()


def trained_sources(
    config: FinetuneConfig, writing: Writing, console: Console, dropout: BpeDropout | None
) -> list[Source]:
    """What `data` names, without what `exclude_rows` names. DataError for a key there that is not in the data."""
    excluded = Exclusions.of(config.exclude_rows)
    sources = [_source(data, config, writing, console, excluded, dropout) for data in config.data]
    excluded.refuse_unknown()
    return sources


def held_out_sources(config: FinetuneConfig, writing: Writing, console: Console) -> list[Source]:
    """What `validation` names; never in other tokens than the saved tokenizer's."""
    none = Exclusions([])
    return [_source(DataSource(path=path), config, writing, console, none, None) for path in config.validation]


def refuse_trained(held_out: Sequence[Source], trained: Sequence[Source]) -> None:
    """DataError when a held-out sample is also one of those that are trained, token by token."""
    refuse_leaks("samples", held_out=_contents(held_out), trained=_contents(trained))


def _contents(sources: Sequence[Source]) -> Iterator[tuple[str, bytes]]:
    for source in sources:
        for sample in source.samples:
            yield sample.key, np.array(sample.ids, dtype=np.int32).tobytes()


@without_collecting()
def _source(
    data: DataSource, config: FinetuneConfig, writing: Writing, console: Console, excluded: Exclusions,
    dropout: BpeDropout | None,
) -> Source:  # fmt: skip
    path, reading = data.path, ReadReport()
    groups = excluded.without(read_samples(path, reading, writing), lambda parts: parts[0][1].key, reading)
    written = [part for parts in groups for part in parts]
    for line in reading.lines():
        console.info(f"{path}: {line}")
    if (unread := unread_line(reading)) is not None:
        console.warn(f"{path}: {unread}")
    plain = [sample for _, sample in written]
    pack = partial(
        pack_samples, plain, config.training.sequence_length,
        on_long=config.on_long, on_untrained=config.on_untrained, source=path,
    )  # fmt: skip
    rows = pack()
    samples = rows.samples
    if dropout is not None:
        passes = _passes(config, data.weight, len(rows))
        rows = pack(passes=writing.forms(written, dropout, passes=passes, seed=config.seed))
    _report(path, rows.report, config.training.sequence_length, console)
    return Source(rows=rows, samples=samples)


def _passes(config: FinetuneConfig, weight: float, num_rows: int) -> int:
    """The passes over a source that BPE dropout draws anew for. With several sources, as many as there may be."""
    if len(config.data) > 1:
        return _MOST_FORMS
    seen = config.training.total_rows(rows_per_epoch(num_rows, weight))
    return min(-(-seen // num_rows), _MOST_FORMS)


def _report(path: Path, report: PackingReport, sequence_length: int, console: Console) -> None:
    console.info(f"{path}: {report.num_tokens:,} tokens packed into {report.num_rows:,} rows")
    for number, what in (
        (report.num_dropped_long, f"dropped: longer than {sequence_length} tokens"),
        (report.num_truncated, f"cut at {sequence_length} tokens"),
        (report.num_dropped_untrained, "dropped: nothing in them is trained"),
    ):
        if number:
            console.warn(f"{path}: {number:,} samples {what}")
