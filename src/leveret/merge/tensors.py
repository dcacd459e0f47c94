"""One tensor of the result: what its method must know of the whole of it, then its blocks, rounded once and written."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from leveret.errors import ConfigError, WeightsError
from leveret.merge import magnitude, methods
from leveret.merge.blocks import Blocks, uniform
from leveret.merge.config import MergeConfig
from leveret.merge.settings import Settings, settings_for
from leveret.merge.sources import Piece
from leveret.weights.writer import WeightWriter

Merge = Callable[[Sequence[Tensor], int], Tensor]
"""Float32 blocks of all parts and the place they begin at -> the merged block."""


def write_piece(piece: Piece, blocks: Blocks, config: MergeConfig, num_layers: int, writer: WeightWriter) -> None:
    """Merge one tensor and write it."""
    if len(piece.parts) == 1 or not piece.dtype.is_floating_point:
        blocks.every(piece, partial(_copy, piece, blocks, writer))
        return
    merge = _method(piece, blocks, config, settings_for(config, piece.name, num_layers))

    def work(start: int, stop: int) -> None:
        values = blocks.read(piece, start, stop)
        merged = merge(values, start).to(piece.dtype)
        _finite(piece, merged, values)
        writer.write(piece.name, start, merged)

    blocks.every(piece, work)


def _method(piece: Piece, blocks: Blocks, config: MergeConfig, settings: Settings) -> Merge:
    weights = settings.weights
    match config.method:
        case "linear":
            return _sum(weights)
        case "slerp":
            return _sum(methods.slerp_coefficients(_gram(piece, blocks, changes=False), settings.t))
        case "task-arithmetic":
            return _sum(methods.task_coefficients(weights, settings.scale))
        case "model-stock":
            return _sum(methods.stock_coefficients(_gram(piece, blocks, changes=True)))
        case "ties":
            thresholds = [
                _threshold(piece, blocks, number, settings.density) if weight else math.inf
                for number, weight in enumerate(weights, start=1)
            ]
            return partial(_elect_trimmed, thresholds=thresholds, settings=settings)
        case "dare" | "dare-ties":
            if config.method == "dare" and settings.drop == 0:
                return _sum(methods.task_coefficients(weights, settings.scale))
            return partial(_drop, name=piece.name, config=config, settings=settings)
        case "passthrough":
            raise AssertionError("passthrough has one part for each tensor")


def _sum(coefficients: Sequence[float]) -> Merge:
    return lambda values, start: methods.weighted_sum(values, coefficients)


def _elect_trimmed(values: Sequence[Tensor], start: int, *, thresholds: Sequence[float], settings: Settings) -> Tensor:
    base, *models = values
    deltas = [methods.trim(value - base, threshold) for value, threshold in zip(models, thresholds, strict=True)]
    return methods.elect(base, models, deltas, settings.weights, settings.scale)


def _drop(values: Sequence[Tensor], start: int, *, name: str, config: MergeConfig, settings: Settings) -> Tensor:
    base, *models = values
    deltas = []
    for number, value in enumerate(models):
        random = uniform(value.numel(), seed=config.seed, name=name, model=number, start=start)
        deltas.append(methods.dropped(value - base, random, settings.drop))
    if config.method == "dare-ties":
        return methods.elect(base, models, deltas, settings.weights, settings.scale)
    return methods.add_dropped(base, deltas, settings.weights, settings.scale)


def _gram(piece: Piece, blocks: Blocks, *, changes: bool) -> Tensor:
    """Inner products of the models' tensors, or of their changes from the base, over the whole tensor."""

    def work(start: int, stop: int) -> Tensor:
        values = blocks.read(piece, start, stop)
        return methods.gram_matrix([value - values[0] for value in values[1:]] if changes else values)

    count = len(piece.parts) - 1 if changes else len(piece.parts)
    return sum(blocks.each(piece, work), start=torch.zeros(count, count, dtype=torch.float64))


def _threshold(piece: Piece, blocks: Blocks, number: int, density: float) -> float:
    """The smallest magnitude that is kept of one model's changes; equal magnitudes are all kept."""
    total = math.prod(piece.shape)
    rank = int(density * total)
    if rank in (0, total):
        return 0.0 if rank else math.inf

    def counts(count: Callable[..., magnitude.Counts], start: int, stop: int) -> magnitude.Counts:
        base, value = (blocks.stored(piece, *piece.parts[part], start, stop).float() for part in (0, number))
        return count(value.sub_(base).numpy())

    none = magnitude.no_counts()
    upper, rank = magnitude.find_bin(sum(blocks.each(piece, partial(counts, magnitude.upper_counts)), start=none), rank)
    inside = partial(magnitude.lower_counts, upper=upper)
    lower, _ = magnitude.find_bin(sum(blocks.each(piece, partial(counts, inside)), start=none), rank)
    return magnitude.magnitude(upper, lower)


def _copy(piece: Piece, blocks: Blocks, writer: WeightWriter, start: int, stop: int) -> None:
    """Values as they are, converted only if another dtype was asked for; whole numbers must be equal in all models."""
    first, *others = (blocks.stored(piece, number, name, start, stop) for number, name in piece.parts)
    if any(not torch.equal(first, other) for other in others):
        raise ConfigError(f"{piece.name} holds whole numbers that differ between the models; these have no mean")
    writer.write(piece.name, start, first.to(piece.dtype))


def _finite(piece: Piece, merged: Tensor, values: Sequence[Tensor]) -> None:
    if bool(torch.isfinite(merged).all()):
        return
    if all(bool(torch.isfinite(value).all()) for value in values):
        raise WeightsError(f"{piece.name} overflows {str(piece.dtype)[6:]}", hint="merge into bfloat16 or float32")
    raise WeightsError(
        f"{piece.name} holds values that are no finite numbers, in one of the models",
        hint="`leveret inspect` on each model shows which",
    )
