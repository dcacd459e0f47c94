"""`leveret merge`: several model directories in, one out, with a record of what it was made of.

Compare the configs, match the token rows, list every tensor of the result with those it is made of, then merge one
after another. Nothing is written before all of that is known to fit; the output appears whole or not at all.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from leveret.allocator import keep_freed_memory
from leveret.commands import StageResult
from leveret.console import Console
from leveret.errors import ConfigError
from leveret.merge.blocks import WORKERS_PER_CORE, Blocks, threads
from leveret.merge.config import MergeConfig
from leveret.merge.provenance import carry_over, record, write_config, write_record
from leveret.merge.settings import settings_for, unmatched
from leveret.merge.sources import (
    Piece,
    Source,
    differences,
    has_routers,
    merged_pieces,
    open_sources,
    stacked_pieces,
)
from leveret.merge.tensors import write_piece
from leveret.merge.vocabulary import Alignment, align
from leveret.paths import atomic_directory, require_outside
from leveret.weights.load import as_dtype
from leveret.weights.writer import WeightWriter


def run(config: MergeConfig, console: Console) -> StageResult:
    """Merge and write; returns the method, the sizes and the time it took."""
    began = time.monotonic()
    sources = open_sources(config)
    require_outside(config.output, *(source.folder for source in sources))
    first = sources[1 if config.base is not None else 0]
    stacked = config.method == "passthrough"
    differing = [note for source in sources for note in differences(first, source, any_depth=stacked)]
    alignment = align(sources, sources.index(first), config.vocabulary)
    layers = _layers(config, sources)
    pieces = _pieces(config, sources, first, alignment, layers)
    notes = [*differing, *_notes(config, first, pieces), *alignment.notes]
    for note in notes:
        console.warn(note)
    with contextlib.ExitStack() as stack:
        for source in sources:
            stack.enter_context(source.reader)
        draft = stack.enter_context(atomic_directory(config.output))
        total = _write(config, sources, pieces, alignment, draft, console)
        kind = config.dtype
        write_config(first, draft, dtype=kind, token_rows=alignment.size, layers=layers)
        carry_over(first, draft, alignment.added)
        write_record(
            draft, record(config, sources[0] if config.base is not None else None, _models(config, sources), notes)
        )
    seconds = time.monotonic() - began
    console.print(f"{len(pieces):,} tensors, {total / 1e6:,.1f} MB, {seconds:.1f} s: {config.output}")
    summary: dict[str, Any] = {"method": config.method, "models": len(config.models), "tensors": len(pieces)}
    return StageResult(output=config.output, summary=summary | {"bytes": total, "seconds": round(seconds, 3)})


def _models(config: MergeConfig, sources: Sequence[Source]) -> Sequence[Source]:
    return sources[1:] if config.base is not None else sources


def _layers(config: MergeConfig, sources: Sequence[Source]) -> list[tuple[Source, int, int]]:
    """What passthrough stacks; [] for other methods."""
    if config.method != "passthrough":
        return []
    ranges = config.layers or [[0, sources[0].config.num_hidden_layers]]
    return [(source, start, stop) for source, (start, stop) in zip(sources, ranges, strict=True)]


def _pieces(
    config: MergeConfig,
    sources: Sequence[Source],
    first: Source,
    alignment: Alignment,
    layers: Sequence[tuple[Source, int, int]],
) -> list[Piece]:
    dtype = as_dtype(config.dtype)
    if not layers:
        return merged_pieces(sources, first, alignment.size, dtype)
    if any(rows is not None for rows in alignment.rows):
        raise ConfigError("passthrough copies embedding and head, but the models number their tokens differently")
    return stacked_pieces(sources, [(start, stop) for _, start, stop in layers], dtype)


def _notes(config: MergeConfig, first: Source, pieces: Sequence[Piece]) -> list[str]:
    """What fits, but should be known."""
    names = [piece.name for piece in pieces]
    notes = [f"rules: no tensor has {pattern!r} in its name" for pattern in unmatched(config, names)]
    if len(config.models) > 1 and config.method != "passthrough" and has_routers(pieces):
        notes.append("experts are merged number by number: right only for models that descend from one mixture")
    if config.method == "linear":
        sums = {
            round(math.fsum(settings_for(config, piece.name, first.config.num_hidden_layers).weights), 6)
            for piece in pieces
        }
        if off := sorted(total for total in sums if total != 1):
            notes.append(f"weights sum to {', '.join(f'{total:g}' for total in off[:3])}, not 1, and count as they are "
                         "(normalize=true divides by the sum)")  # fmt: skip
    return notes


def _write(
    config: MergeConfig,
    sources: Sequence[Source],
    pieces: Sequence[Piece],
    alignment: Alignment,
    draft: Path,
    console: Console,
) -> int:
    """Merge tensor by tensor into `draft`; returns the bytes of all tensors."""
    depth = sources[-1].config.num_hidden_layers
    layout = {piece.name: (piece.dtype, piece.shape) for piece in pieces}
    with (
        WeightWriter(draft, layout, direct=True) as writer,
        threads(WORKERS_PER_CORE * torch.get_num_threads()) as pool,
        keep_freed_memory(Console(quiet=True)),
        console.progress(f"merge {len(config.models)} models ({config.method})", len(pieces), "tensor") as progress,
    ):
        blocks = Blocks(sources=sources, alignment=alignment, pool=pool)
        for number, piece in enumerate(pieces, start=1):
            write_piece(piece, blocks, config, depth, writer)
            progress.update(number)
        return writer.total_bytes
