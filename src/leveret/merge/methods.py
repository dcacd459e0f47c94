"""The arithmetic of merging, on blocks of values: every method is a weighted sum or an election.

A *weighted sum* (kernels/merging.py) has one coefficient for each model in a whole tensor:

    linear            w_i                                       "model soups", arXiv 2203.05482
    slerp             sin((1-t)θ)/sinθ, sin(tθ)/sinθ            Shoemake 1985; θ: angle between the two tensors
    task-arithmetic   base: 1 - λΣw_i,  models: λw_i            arXiv 2212.04089
    model-stock       base: 1 - t,  models: t/N                 arXiv 2403.19522
                      t = N cosθ / (1 + (N-1) cosθ),  cosθ: mean over pairs of the changes' cosines

An *election* looks at each value's changes d_i = x_i - base:

    ties              trim to the largest, elect a sign, mean of those that have it      arXiv 2306.01708
    dare              drop at random with probability p, the others times 1/(1-p)        arXiv 2311.03099
    dare-ties         drop first, then elect as ties does

All of it is in float32, and arranged so that nothing happens where nothing should: what all models agree on comes out
to the bit, and so does a model whose weight is 1 beside weights of 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

PARALLEL = 0.9995
"""slerp: above this cosine the arc is a line to float precision, and sin θ too small to divide by."""

OWN = 2.0**-21
"""A merged change this close (relative) to a model's own is that model's own: four roundings apart at most."""


def task_coefficients(weights: Sequence[float], scale: float) -> list[float]:
    """Of the base, then of the models: base + λ Σ w_i (x_i - base) as one weighted sum."""
    scaled = [scale * weight for weight in weights]
    return [1 - math.fsum(scaled), *scaled]


def slerp_coefficients(gram: Tensor, t: float) -> list[float]:
    """Of two tensors with the inner products `gram` (2, 2). Lengths are not normalized: they are interpolated too."""
    lengths = math.sqrt(gram[0, 0].item()) * math.sqrt(gram[1, 1].item())
    cosine = gram[0, 1].item() / lengths if lengths else 1.0
    if t in (0, 1) or abs(cosine) > PARALLEL:
        return [1 - t, t]
    angle = math.acos(cosine)
    return [math.sin((1 - t) * angle) / math.sin(angle), math.sin(t * angle) / math.sin(angle)]


def stock_coefficients(gram: Tensor) -> list[float]:
    """Of the base, then of N models whose changes have the inner products `gram` (N, N).

    A change of length 0 has no direction; its cosines count as 0. The ratio is held between 0 and 1: models whose
    changes point apart say nothing in common, and then the base stays.
    """
    count = len(gram)
    lengths = gram.diagonal().sqrt()
    products = torch.outer(lengths, lengths)
    cosines = torch.where(products > 0, gram / products.clamp_min(1e-300), 0.0)
    mean = (cosines.sum() - cosines.diagonal().sum()).item() / (count * (count - 1))
    ratio = min(max(count * mean / (1 + (count - 1) * mean), 0.0), 1.0) if mean > -1 / (count - 1) else 0.0
    if ratio > 1 - 1e-9:  # cosines of equal changes are 1 but for the last digits
        ratio = 1.0
    return [1 - ratio, *[ratio / count] * count]


def elect(
    base: Tensor,
    values: Sequence[Tensor],
    deltas: Sequence[Tensor],
    weights: Sequence[float],
    scale: float,
    *,
    whole: bool = True,
) -> Tensor:
    """base + λ × the mean of those changes whose sign has the greater weight, each value by itself.

    deltas: the changes of `values` that were left (0 where trimmed or dropped); consumed.
    whole: those that were left are changes as they were, not rescaled ones.
    Where the weights of both signs are equal, the base stays. Where the mean is one model's whole change, that
    model's value is taken as it is, not base + (value - base), which rounds.
    """
    mass = _sum_of(deltas, weights)
    up, down = mass > 0, mass < 0
    agreeing = [(up & (delta > 0)) | (down & (delta < 0)) for delta in deltas]
    kept = [delta.mul_(agree) for delta, agree in zip(deltas, agreeing, strict=True)]
    count = _sum_of([agree.float() for agree in agreeing], weights)
    change = _sum_of(kept, weights).div_(count.add_(count == 0)).mul_(scale)
    result = base + change
    if not whole:
        return result
    for value, delta, agree in zip(values, kept, agreeing, strict=True):
        near = (change - delta).abs_() <= delta.abs_().mul_(OWN)
        take(result, value, agree & near)
    return result


def take(target: Tensor, values: Tensor, mask: Tensor) -> None:
    """Put `values` (float32) into `target` where `mask` is set, in place: by bits, as a masked copy mispredicts."""
    bits = target.view(torch.int32)
    bits.bitwise_xor_((bits ^ values.view(torch.int32)).bitwise_and_(mask.int().neg_()))


def add_dropped(base: Tensor, deltas: Sequence[Tensor], weights: Sequence[float], scale: float) -> Tensor:
    """base + λ Σ w_i d_i of what random dropping left (dare without an election)."""
    result = base.clone()
    for weight, delta in zip(weights, deltas, strict=True):
        result.add_(delta, alpha=scale * weight)
    return result


def trim(delta: Tensor, threshold: float) -> Tensor:
    """Set changes smaller than `threshold` to 0, in place."""
    return delta.mul_(delta.abs() >= threshold)


def dropped(delta: Tensor, random: Tensor, drop: float) -> Tensor:
    """Set the changes to 0 where `random` (even in [0, 1)) is below `drop`, and multiply the others by 1 / (1 - drop).

    Each value's mean over the draws is what it was.
    """
    return delta.mul_(random >= drop).mul_(1 / (1 - drop))


def _sum_of(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    total = values[0] * weights[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        total.add_(value, alpha=weight)
    return total
