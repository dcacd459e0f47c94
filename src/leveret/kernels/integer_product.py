"""Products with 4- and 8-bit weights by the compiled kernels, which read the integers as they are stored.

One stream of tokens reads every weight once a token, and is as fast as memory is; so the kernel for few rows does its
arithmetic in float32 and never writes a weight out. For many rows it writes small parts of the weight out in bfloat16
and multiplies them like any matrix, so no working copy is needed. The meaning of both is `int_matmul.matmul_plain`.

Shape legend: M rows of activations, O outputs, I inputs, G groups.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from leveret.kernels.int_matmul import GroupedIntegers
from leveret.kernels.native.library import compiled, missing, pointer, size

TILE = 64
"""Outputs that lie side by side; others are added with scale 0."""

STEP = 32
"""What the inputs and the groups are multiples of."""

FEW_ROWS = 8
"""Up to so many rows the integers are multiplied themselves; more pay for parts that are written out."""


@dataclass(frozen=True, kw_only=True)
class CompiledWeight:
    """A weight in the layout of the compiled kernels."""

    words: Tensor
    """(tiles, I * bits / 32, TILE) int32: the levels of consecutive inputs, the first in the lowest bits."""
    scales: Tensor
    """(G, tiles * TILE) float16."""
    zeros: Tensor | None
    """(G, tiles * TILE) uint8; None: half of the levels, everywhere."""
    order: Tensor | None
    """(I,) which input comes where, if groups are not in order."""
    bits: int
    in_features: int
    out_features: int


def compiled_refusal(*, in_features: int, group_size: int | None, device: torch.device) -> str | None:
    """Why the compiled kernels cannot multiply such a weight; None when they can."""
    if device.type != "cpu":
        return f"the compiled kernels are for the CPU and the weight is on {device.type}"
    if (reason := missing()) is not None:
        return reason
    if group_size is None or in_features % group_size:
        return "its groups are unequal"
    if in_features % STEP or group_size % STEP:
        return f"the compiled kernels take inputs and groups in multiples of {STEP}, not {in_features} and {group_size}"
    return None


def pack_compiled(weight: GroupedIntegers) -> CompiledWeight | None:
    """Rearrange a weight; ask `compiled_refusal` first. None when its groups turn out to be unequal."""
    outputs, inputs = weight.levels_OI.shape
    groups = weight.scales_GO.shape[0]
    order = torch.argsort(weight.group_of_input, stable=True)
    if not torch.equal(weight.group_of_input[order].long(), torch.arange(inputs) // (inputs // groups)):
        return None
    in_order = torch.equal(order, torch.arange(inputs))
    levels = weight.levels_OI if in_order else weight.levels_OI[:, order]
    middle = 2 ** (weight.bits - 1)
    return CompiledWeight(
        words=_words(levels, weight.bits),
        scales=_padded(weight.scales_GO.to(torch.float16)),
        zeros=None if bool((weight.zeros_GO == middle).all()) else _padded(weight.zeros_GO.to(torch.uint8)),
        order=None if in_order else order,
        bits=weight.bits,
        in_features=inputs,
        out_features=outputs,
    )


def multiply_compiled(x: Tensor, weight: CompiledWeight) -> Tensor:
    """`x @ weight.T` for x (..., I) in bfloat16 or float32; returns (..., O) in the dtype of x. No gradient."""
    rows = x.reshape(-1, x.shape[-1])  # (M, I)
    rows = (rows if weight.order is None else rows[:, weight.order]).contiguous()
    bfloat16 = x.dtype == torch.bfloat16
    assert bfloat16 or x.dtype == torch.float32
    out = torch.empty((rows.shape[0], weight.out_features), dtype=x.dtype)
    library = compiled()
    assert library is not None
    library.leveret_integer_product(
        pointer(rows), size(rows.shape[0]), int(bfloat16), int(bfloat16 and rows.shape[0] > FEW_ROWS), weight.bits,
        pointer(weight.words), pointer(weight.scales), pointer(weight.zeros), ctypes.c_float(2 ** (weight.bits - 1)),
        size(weight.in_features), size(weight.scales.shape[1]),
        size(weight.in_features // weight.scales.shape[0]), pointer(out), size(weight.out_features),
        torch.get_num_threads(),
    )  # fmt: skip
    return out.reshape(*x.shape[:-1], weight.out_features)


def _words(levels: Tensor, bits: int) -> Tensor:
    """(O, I) -> the words of CompiledWeight."""
    outputs, inputs = levels.shape
    fields = 32 // bits
    tiles = -(-outputs // TILE)
    words = torch.zeros((tiles, inputs // fields, TILE), dtype=torch.int32)
    for tile in range(tiles):
        part = levels[tile * TILE : (tile + 1) * TILE].T.to(torch.int32).reshape(inputs // fields, fields, -1)
        for field in range(fields):
            words[tile, :, : part.shape[2]] |= part[:, field] << bits * field
    return words


def _padded(values: Tensor) -> Tensor:
    """(G, O) -> (G, tiles * TILE), with zeros."""
    return torch.nn.functional.pad(values, (0, -values.shape[1] % TILE)).contiguous()
