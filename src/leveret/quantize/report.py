"""The report: what became of each Linear, a line of quantization.json each, and what is printed of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from leveret.console import Console
from leveret.errors import LeveretError

SHOWN_LAYERS = 8
"""Layers in the printed table; quantization.json has them all."""


@dataclass(frozen=True, kw_only=True)
class LayerReport:
    """What became of one Linear."""

    name: str
    """Its name in the model."""
    parameters: int
    """Weights in it."""
    bytes_before: int
    """Size of the weight as it was stored."""
    bytes_after: int
    """Size of the tensors that replace it."""
    relative_error: float
    """Root mean square of what was lost, over that of the weight."""
    method: str
    """How it was rounded, which need not be what was asked for."""
    reason: str | None = None
    """Why another method than the one asked for was taken."""
    tokens: int | None = None
    """Calibration tokens it saw."""
    output_error: float | None = None
    """The same error of its product with those tokens: what the rest of the model notices. None: it saw none."""


def mean_error(layers: list[LayerReport]) -> float:
    """Relative error over all quantized weights, each layer counted by its size."""
    parameters = sum(layer.parameters for layer in layers)
    return math.sqrt(sum(layer.parameters * layer.relative_error**2 for layer in layers) / parameters)


def show(report: Mapping[str, Any], layers: Sequence[LayerReport], console: Console) -> None:
    """Print the layers that lost most, and one line for the whole."""
    worst = sorted(layers, key=_lost, reverse=True)[:SHOWN_LAYERS]
    title = f"The {len(worst)} of {len(layers)} layers that lost most"
    columns = ["layer", "relative error", "bytes before", "bytes after"]
    rows: list[tuple[object, ...]] = [
        (layer.name, layer.relative_error, layer.bytes_before, layer.bytes_after) for layer in worst
    ]
    if any(layer.output_error is not None for layer in layers):
        columns += ["error of its product", "tokens", "method"]
        more = [(layer.output_error, layer.tokens, layer.method) for layer in worst]
        rows = [row + added for row, added in zip(rows, more, strict=True)]
    console.table(title, columns, rows)
    before, after = report["bytes_before"], report["bytes_after"]
    line = f"{before / 1e6:,.1f} MB -> {after / 1e6:,.1f} MB ({after / before:.0%}), "
    line += f"relative error {report['relative_error']:.4f}"
    if report["perplexity_before"] is not None:
        line += f", perplexity {report['perplexity_before']:.3f} -> {report['perplexity_after']:.3f}"
    console.print(line)


def _lost(layer: LayerReport) -> float:
    """What the rest of the model notices, where it is known; of a layer that saw no token, the weight's own error."""
    return layer.relative_error if layer.output_error is None else layer.output_error


@contextmanager
def naming(layer: str) -> Iterator[None]:
    """Say in an error which layer it is about."""
    try:
        yield
    except LeveretError as error:
        raise type(error)(f"{layer}: {error.message}", hint=error.hint) from error
