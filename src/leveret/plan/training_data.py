"""How many tokens a training stage sees: by its steps, by shards that are there, or by the size of its files."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leveret.data.excluding import Exclusions
from leveret.data.files import ReadReport, data_files, look_of
from leveret.data.unpacking import COMPRESSED_SUFFIXES
from leveret.errors import LeveretError
from leveret.recipe import Stage
from leveret.trainer.config import TrainingConfig

_ROW = re.compile(r"train-(\d+), row \d+")
"""The key of a row of a pretraining run: its source, by number."""


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """What a training stage reads."""

    steps: int | None
    """Optimizer steps; None when nothing says how many."""
    tokens: int | None
    """Tokens that pass through the model in all."""
    tokens_in_files: int | None
    """Tokens of one pass over the data, when that is known or estimated."""
    notes: tuple[str, ...] = ()
    """Where the numbers come from, and what is missing."""


def data_of(stage: Stage, *, tokens: int | None, bytes_per_token: float) -> TrainingData:
    """The steps and tokens of a training stage; what is not known stays None, with a note."""
    config: Any = stage.config
    training: TrainingConfig = config.training
    sources = config.documents if hasattr(config, "documents") else config.data
    known, notes = tokens, [] if tokens is None else [f"{tokens:,} tokens of data, as given"]
    if tokens is None:
        known, notes = _tokens_of_files(stage, sources, bytes_per_token)
        if known is not None:
            known, without = _without_named(known, config.exclude_rows, sources, training.sequence_length)
            notes += without
    rows = None if known is None else max(1, known // training.sequence_length)
    if rows is None and (training.max_steps is None or training.num_epochs is not None):
        notes.append("how long it trains is not known: give --tokens, or training.max_steps without num_epochs")
        return TrainingData(steps=training.max_steps, tokens=None, tokens_in_files=None, notes=tuple(notes))
    steps = training.total_steps(rows or 0)
    seen = training.total_rows(rows or 0) * training.sequence_length
    return TrainingData(steps=steps, tokens=seen, tokens_in_files=known, notes=tuple(notes))


def _tokens_of_files(stage: Stage, sources: Sequence[Any], bytes_per_token: float) -> tuple[int | None, list[str]]:
    """Tokens of one epoch, weights counted; None when a source is not there."""
    total, exact, notes = 0.0, True, list[str]()
    for number, source in enumerate(sources):
        shards = None if stage.output is None else stage.output / "shards" / f"train-{number}"
        counted: float | None = None if shards is None else _tokens_of_shards(shards, source.path)
        if counted is None:
            exact = False
            size = _bytes_of(source.path)
            if size is None:
                return None, [f"{source.path} is not there yet, or is compressed"]
            counted = size / bytes_per_token
        total += source.weight * counted
    notes.append("tokens as tokenized" if exact else f"tokens estimated: {bytes_per_token:g} bytes of a file for each")
    return round(total), notes


def _without_named(
    tokens: int, chosen: Sequence[str] | Path, sources: Sequence[Any], row: int
) -> tuple[int, list[str]]:
    """`tokens` without the rows of `row` tokens that `exclude_rows` names, and what is to be said of it."""
    keys = Exclusions.of(chosen).keys
    named = [int(found[1]) for key in sorted(keys) if (found := _ROW.fullmatch(key)) is not None]
    out = round(sum(row * sources[number].weight for number in named if number < len(sources)))
    notes = [f"{len(named):,} rows named in exclude_rows are not counted"] if named else []
    if records := len(keys) - len(named):
        notes.append(f"{records:,} records named in exclude_rows may be counted still: how long they are is not known")
    return max(0, tokens - out), notes


def _tokens_of_shards(folder: Path, source: Path) -> int | None:
    """The tokens of shards that a run before has built of the files as they are; None when there are none."""
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        if index["source_look"] != look_of(source):
            return None
        records = [json.loads((folder / f"{name}.json").read_text(encoding="utf-8")) for name in index["shards"]]
        return sum(int(record["num_tokens"]) for record in records)
    except (OSError, ValueError, KeyError, TypeError, LeveretError):
        return None


def _bytes_of(path: Path) -> int | None:
    try:
        files = [file for file, _ in data_files(path, ReadReport())]
    except LeveretError:
        return None
    compressed = any(file.suffix.lower() in COMPRESSED_SUFFIXES for file in files)
    return None if compressed else sum(file.stat().st_size for file in files)
