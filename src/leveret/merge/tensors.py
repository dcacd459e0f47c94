"""One tensor of the result: what its method must know of the whole of it, then its blocks, rounded once and written."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from leveret.errors import WeightsError
from leveret.kernels.merging import all_finite, gram_matrix, weighted_sum
from leveret.merge import magnitude, methods
from leveret.merge.blocks import Blocks, uniform
from leveret.merge.config import MergeConfig
from leveret.merge.settings import Settings, settings_for
from leveret.merge.sources import Piece
from leveret.weights.writer import WeightWriter

NOTHING = np.empty(0, dtype=np.float32)


class Merge(NamedTuple):
    """How one tensor is merged."""

    values: Callable[[int, int], Tensor]
    """(start, stop) -> these values of the merged tensor, rounded."""
    streamed: bool = False
    """Whether one pass over the models' values is all there is to do."""


Election = Callable[[Sequence[Tensor], int], Tensor]
"""Float32 blocks of all parts and the place they begin at -> the merged block."""


def write_piece(piece: Piece, blocks: Blocks, config: MergeConfig, num_layers: int, writer: WeightWriter) -> None:
    """Merge one tensor and write it."""
    if len(piece.parts) == 1:
        merge = Merge(partial(_copy, piece, blocks), streamed=True)
    else:
        merge = _method(piece, blocks, config, settings_for(config, piece.name, num_layers))

    def write(start: int, stop: int) -> None:
        writer.write(piece.name, start, merge.values(start, stop))

    blocks.every(piece, write, streamed=merge.streamed)


def _method(piece: Piece, blocks: Blocks, config: MergeConfig, settings: Settings) -> Merge:
    weights = settings.weights
    match config.method:
        case "linear":
            return _sum(piece, blocks, weights)
        case "slerp":
            return _sum(piece, blocks, methods.slerp_coefficients(_gram(piece, blocks, changes=False), settings.t))
        case "task-arithmetic":
            return _sum(piece, blocks, methods.task_coefficients(weights, settings.scale))
        case "model-stock":
            return _sum(piece, blocks, methods.stock_coefficients(_gram(piece, blocks, changes=True)))
        case "ties":
            thresholds = _thresholds(piece, blocks, settings.density)
            return _elected(piece, blocks, partial(_elect_trimmed, thresholds=thresholds, settings=settings))
        case "dare" | "dare-ties":
            if config.method == "dare" and settings.drop == 0:
                return _sum(piece, blocks, methods.task_coefficients(weights, settings.scale))
            return _elected(piece, blocks, partial(_drop, name=piece.name, config=config, settings=settings))
        case "passthrough":
            raise AssertionError("passthrough has one part for each tensor")


def _sum(piece: Piece, blocks: Blocks, coefficients: Sequence[float]) -> Merge:
    def merge(start: int, stop: int) -> Tensor:
        values = blocks.stored_in_all(piece, start, stop)
        return _finite(piece, weighted_sum(values, coefficients, piece.dtype), values)

    return Merge(merge, streamed=True)


def _elected(piece: Piece, blocks: Blocks, election: Election) -> Merge:
    def merge(start: int, stop: int) -> Tensor:
        values = blocks.read(piece, start, stop)
        return _finite(piece, election(values, start).to(piece.dtype), values)

    return Merge(merge)


def _elect_trimmed(values: Sequence[Tensor], start: int, *, thresholds: Sequence[float], settings: Settings) -> Tensor:
    base, *models = values
    chosen = [place for place, weight in enumerate(settings.weights) if weight]
    deltas = [methods.trim(models[place] - base, thresholds[place]) for place in chosen]
    return _elect(base, models, deltas, chosen, settings, whole=True)


def _drop(values: Sequence[Tensor], start: int, *, name: str, config: MergeConfig, settings: Settings) -> Tensor:
    base, *models = values
    chosen = [place for place, weight in enumerate(settings.weights) if weight]
    deltas = []
    for place in chosen:
        random = uniform(base.numel(), seed=config.seed, name=name, model=place, start=start)
        deltas.append(methods.dropped(models[place] - base, random, settings.drop))
    if config.method == "dare-ties":
        return _elect(base, models, deltas, chosen, settings, whole=settings.drop == 0)
    return methods.add_dropped(base, deltas, [settings.weights[place] for place in chosen], settings.scale)


def _elect(
    base: Tensor,
    models: Sequence[Tensor],
    deltas: Sequence[Tensor],
    chosen: Sequence[int],
    settings: Settings,
    *,
    whole: bool,
) -> Tensor:
    """The election among the models whose weight is not 0."""
    if not chosen:
        return base
    values, weights = [models[place] for place in chosen], [settings.weights[place] for place in chosen]
    return methods.elect(base, values, deltas, weights, settings.scale, whole=whole and settings.scale == 1)


def _gram(piece: Piece, blocks: Blocks, *, changes: bool) -> Tensor:
    """Inner products of the models' tensors, or of their changes from the base, over the whole tensor."""

    def work(start: int, stop: int) -> Tensor:
        values = blocks.stored_in_all(piece, start, stop)
        return gram_matrix(values[1:], values[0]) if changes else gram_matrix(values)

    count = len(piece.parts) - 1 if changes else len(piece.parts)
    return sum(blocks.each(piece, work, streamed=True), start=torch.zeros(count, count, dtype=torch.float64))


def _thresholds(piece: Piece, blocks: Blocks, density: float) -> list[float]:
    """The smallest magnitude that is kept of each model's changes; equal magnitudes are all kept."""
    total, models = math.prod(piece.shape), range(len(piece.parts) - 1)
    rank = int(density * total)
    if rank in (0, total):
        return [0.0 if rank else math.inf for _ in models]

    def magnitudes(start: int, stop: int) -> list[magnitude.Magnitudes]:
        base, *values = blocks.read(piece, start, stop)
        return [value.sub_(base).abs_().numpy() for value in values]

    samples = [magnitudes(start, stop) for start, stop in blocks.sample(piece)]
    bounds = [
        magnitude.bounds(np.concatenate([sample[model] for sample in samples]) if samples else NOTHING, density)
        for model in models
    ]

    def look(start: int, stop: int) -> list[tuple[int, magnitude.Magnitudes]]:
        return [magnitude.look(values, *pair) for values, pair in zip(magnitudes(start, stop), bounds, strict=True)]

    looks = list(blocks.each(piece, look))
    found = [
        magnitude.pick(sum(look[model][0] for look in looks), np.concatenate([look[model][1] for look in looks]), rank)
        for model in models
    ]
    return [
        _counted(piece, blocks, model + 1, rank) if threshold is None else threshold
        for model, threshold in enumerate(found)
    ]


def _counted(piece: Piece, blocks: Blocks, number: int, rank: int) -> float:
    """The `rank`-th largest magnitude of one model's changes, by counting."""

    def counts(count: Callable[..., magnitude.Counts], start: int, stop: int) -> magnitude.Counts:
        base, value = (blocks.stored(piece, *piece.parts[part], start, stop).float() for part in (0, number))
        return count(value.sub_(base).numpy())

    none = magnitude.no_counts()
    upper, rank = magnitude.find_bin(sum(blocks.each(piece, partial(counts, magnitude.upper_counts)), start=none), rank)
    inside = partial(magnitude.lower_counts, upper=upper)
    lower, _ = magnitude.find_bin(sum(blocks.each(piece, partial(counts, inside)), start=none), rank)
    return magnitude.magnitude(upper, lower)


def _copy(piece: Piece, blocks: Blocks, start: int, stop: int) -> Tensor:
    """Values as they are, converted only if another dtype was asked for."""
    values = blocks.stored_in_all(piece, start, stop)
    return _finite(piece, values[0].to(piece.dtype), values)


def _finite(piece: Piece, merged: Tensor, values: Sequence[Tensor]) -> Tensor:
    """`merged`, whose numbers are all finite. WeightsError says why not: the models' `values` are not, or overflow."""
    if all_finite(merged):
        return merged
    if all(bool(torch.isfinite(value).all()) for value in values):
        raise WeightsError(f"{piece.name} overflows {str(piece.dtype)[6:]}", hint="merge into bfloat16 or float32")
    raise WeightsError(
        f"{piece.name} holds values that are no finite numbers, in one of the models",
        hint="`leveret convert MODEL output=...` refuses that model: a file is damaged, or the training had failed",
    )
