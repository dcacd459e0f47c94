"""Round to nearest, group by group, with a small search for the scale that loses least.

For each group of weights w we look for a scale s and a zero point z such that

    level = clamp(round(w / s) + z, 0, 2**bits - 1)        and        s * (level - z)  is close to  w.

*Symmetric* means z is the middle level (8 of 0..15). There is one level more below the middle than above it, so the
sign of s is chosen to put the group's largest magnitude on the longer side. *Asymmetric* lets z move.

The scale that just reaches the largest weight is rarely the best: giving up a little on one outlier makes every
other weight finer. So a few smaller scales are tried and the one with the least squared error is kept, then
replaced by the least-squares scale for the levels found (s = <w, l - z> / <l - z, l - z>) when that helps. No
calibration data is read; methods that use it (GPTQ, AWQ) write the same result type.

Scales are rounded to float16 *before* errors are measured, because float16 is what will be stored. Zero points are
never 0: the GPTQ layout stores z - 1, and readers disagree about what -1 is.

Shape legend: O outputs, I inputs, G groups, S columns a group.
"""

from __future__ import annotations

import math

import torch

from leveret.errors import ConfigError, WeightsError
from leveret.kernels.int_matmul import GroupedIntegers, dequantize

SEARCH_RATIOS = tuple(1.0 - 0.025 * step for step in range(14))
"""Fractions of the full-range scale that the search tries."""

SMALLEST_SCALE = 2.0**-24
"""The smallest positive float16."""

CHUNK_WEIGHTS = 1 << 21
"""Weights rounded at once: bounds the memory of the search, changes no result."""


def round_to_nearest(
    weight: torch.Tensor,
    *,
    bits: int,
    group_size: int | None,
    symmetric: bool,
    search: bool = True,
    importance: torch.Tensor | None = None,
) -> GroupedIntegers:
    """Quantize a weight (O, I) in groups of `group_size` input columns (None: one group an output).

    importance: (I,), what a squared error in each column counts when scales are searched; None: the same.
    Raises ConfigError when `group_size` does not divide I, WeightsError when a weight is not finite or too large for a
    float16 scale.
    """
    outputs, inputs = weight.shape
    size = check_group_size(inputs, group_size)
    if not bool(torch.isfinite(weight).all()):
        bad = int((~torch.isfinite(weight)).sum())
        raise WeightsError(f"{bad} of {weight.numel()} weights are not finite: they cannot be quantized")
    rows_at_once = max(1, CHUNK_WEIGHTS // inputs)
    counts = None if importance is None else importance.float().reshape(1, -1, size)
    parts = [
        _round_rows(
            rows.float().reshape(len(rows), -1, size), bits=bits, symmetric=symmetric, search=search, importance=counts
        )
        for rows in torch.split(weight.detach(), rows_at_once)
    ]
    levels = torch.cat([levels for levels, _, _ in parts]).reshape(outputs, inputs)
    scales, zeros = (torch.cat([part[index].squeeze(-1) for part in parts]).T for index in (1, 2))
    return GroupedIntegers(
        levels_OI=levels.to(torch.uint8),
        scales_GO=scales.to(torch.float16).contiguous(),
        zeros_GO=zeros.to(torch.int32).contiguous(),
        group_of_input=torch.arange(inputs, device=weight.device, dtype=torch.int32) // size,
        bits=bits,
    )


def choose_grid(
    groups: torch.Tensor, *, bits: int, symmetric: bool, search: bool, importance: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and zero points, (O, G, 1) each, for groups of weights (O, G, S), all float32.

    importance: what a squared error in each column counts, of a shape that broadcasts to the groups'; None: the same.
    """
    full_scale, low = _full_range(groups, bits=bits, symmetric=symmetric)
    if float(full_scale.abs().max()) > 65504:
        raise WeightsError("a weight is too large for a float16 scale: it cannot be stored in the GPTQ layout")
    best_scale, best_zero = torch.ones_like(full_scale), torch.ones_like(full_scale)
    best_error = torch.full_like(full_scale, math.inf)
    for ratio in SEARCH_RATIOS if search else (1.0,):
        scale = _storable(full_scale * ratio)
        zero = _zero_point(low * ratio, scale, bits=bits, symmetric=symmetric)
        error = _squared_error(groups, scale, zero, bits, importance)
        better = error < best_error
        best_scale, best_zero = torch.where(better, scale, best_scale), torch.where(better, zero, best_zero)
        best_error = torch.minimum(error, best_error)
    if search:
        offsets = _levels(groups, best_scale, best_zero, bits) - best_zero
        weighted = offsets if importance is None else offsets * importance
        square = (offsets * weighted).sum(-1, keepdim=True)
        fitted = (groups * weighted).sum(-1, keepdim=True) / torch.where(square > 0, square, torch.ones_like(square))
        fitted = _storable(torch.where(fitted == 0, best_scale, fitted))
        better = _squared_error(groups, fitted, best_zero, bits, importance) < best_error
        best_scale = torch.where(better, fitted, best_scale)
    return best_scale, best_zero


def relative_error(weight: torch.Tensor, quantized: GroupedIntegers) -> float:
    """Root mean square of what was lost over root mean square of the weight: 0.1 means ten percent."""
    reference = weight.detach().float()
    size = float(reference.norm())
    return float((dequantize(quantized, torch.float32) - reference).norm()) / size if size else 0.0


def check_group_size(in_features: int, group_size: int | None) -> int:
    """The number of columns a group will have; ConfigError naming sizes that work when `group_size` does not divide."""
    size = in_features if group_size is None else group_size
    if size > 0 and in_features % size == 0:
        return size
    working = [str(candidate) for candidate in (256, 128, 64, 32, 16, 8) if in_features % candidate == 0]
    raise ConfigError(
        f"group_size {size} does not divide {in_features} input features",
        hint=f"use group_size {' or '.join([*working, 'null'])} (null: one group an output), or skip this layer",
    )


def _round_rows(
    groups: torch.Tensor, *, bits: int, symmetric: bool, search: bool, importance: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Levels (O, G, S), scales (O, G, 1) and zero points (O, G, 1) of groups (O, G, S), all float32."""
    scale, zero = choose_grid(groups, bits=bits, symmetric=symmetric, search=search, importance=importance)
    return _levels(groups, scale, zero, bits), scale, zero


def _full_range(groups: torch.Tensor, *, bits: int, symmetric: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The scale that reaches every weight, and the lowest value it must reach, each (O, G, 1)."""
    low, high = groups.amin(-1, keepdim=True).clamp(max=0), groups.amax(-1, keepdim=True).clamp(min=0)
    if symmetric:
        extreme = torch.where(high > -low, high, low)
        return -extreme / 2 ** (bits - 1), low
    top = 2**bits - 1
    low = torch.minimum(low, -high / (top - 1))  # leaves room for a zero point of at least 1
    return (high - low) / top, low


def _zero_point(low: torch.Tensor, scale: torch.Tensor, *, bits: int, symmetric: bool) -> torch.Tensor:
    if symmetric:
        return torch.full_like(scale, 2 ** (bits - 1))
    return (-low / scale).round().clamp(1, 2**bits - 1)


def _storable(scale: torch.Tensor) -> torch.Tensor:
    """Round to float16 and back, keeping the scale away from zero (a group of zeros gets the smallest scale)."""
    rounded = scale.to(torch.float16).float()
    return torch.where(rounded == 0, torch.full_like(rounded, SMALLEST_SCALE), rounded)


def _levels(groups: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int) -> torch.Tensor:
    return ((groups / scale).round() + zero).clamp(0, 2**bits - 1)


def _squared_error(
    groups: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bits: int, importance: torch.Tensor | None
) -> torch.Tensor:
    """(O, G, 1): the sum of squares lost in each group."""
    kept = (_levels(groups, scale, zero, bits) - zero) * scale
    lost = (kept - groups).square()
    return (lost if importance is None else lost * importance).sum(-1, keepdim=True)
