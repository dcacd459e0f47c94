"""Products with 4- and 8-bit weights by the compiled kernels, which read the integers as they are stored.

One stream of tokens reads every weight once a token, and is as fast as memory is; many streams, and prompts, are as
fast as the processor multiplies. No way ever writes a whole weight out. What it multiplies with is a choice:

    exact   the activations as they are. Few rows: in float32. Many: small parts of the weight are written out in
            bfloat16 and multiplied like any matrix. Its meaning is `int_matmul.matmul_plain`.
    int8    the activations are rounded to eight bits first, in blocks of up to 128 inputs with a scale each, and whole
            numbers are multiplied: two to five times faster, half a percent of error, and a row's result is the same
            bits whatever rows are beside it. Its meaning is `int_matmul.matmul_plain` of `rounded_activations`.

Shape legend: M rows of activations, O outputs, I inputs, G groups.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from leveret.kernels.int_matmul import GroupedIntegers
from leveret.kernels.native.library import compiled, missing, pointer, size

TILE = 64
"""Outputs that lie side by side; others are added with scale 0."""

STEP = 32
"""What the inputs and the groups are multiples of."""

FEW_ROWS = 8
"""Up to so many rows exact products take the integers themselves; more pay for parts that are written out."""

LONGEST_BLOCK = 128
"""Inputs that are rounded to eight bits with one scale, at most."""

Activations = Literal["exact", "int8"]
"""What a product does to the activations first; see above."""


@dataclass(frozen=True, kw_only=True)
class CompiledWeight:
    """A weight in the layout of the compiled kernels."""

    words: Tensor
    """(tiles, I * bits / 32, TILE) int32: the levels of consecutive inputs, the first in the lowest bits."""
    scales: Tensor
    """(tiles, G, TILE) float16."""
    zeros: Tensor | None
    """(tiles, G, TILE) uint8; None: half of the levels, everywhere."""
    order: Tensor | None
    """(I,) which input comes where, if groups are not in order."""
    bits: int
    in_features: int
    out_features: int
    activations: Activations


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


def pack_compiled(weight: GroupedIntegers, activations: Activations = "exact") -> CompiledWeight | None:
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
        scales=_in_tiles(weight.scales_GO.to(torch.float16)),
        zeros=None if bool((weight.zeros_GO == middle).all()) else _in_tiles(weight.zeros_GO.to(torch.uint8)),
        order=None if in_order else order,
        bits=weight.bits,
        in_features=inputs,
        out_features=outputs,
        activations=activations,
    )


def pack_words(
    words: Tensor, scales: Tensor, zeros: Tensor, *, bits: int, activations: Activations = "exact"
) -> CompiledWeight:
    """A weight from its words in tiles (`words_in_tiles`), if its groups are in order.

    scales, zeros: (G, O), as in `GroupedIntegers`.
    """
    return CompiledWeight(
        words=words,
        scales=_in_tiles(scales.to(torch.float16)),
        zeros=None if bool((zeros == 2 ** (bits - 1)).all()) else _in_tiles(zeros.to(torch.uint8)),
        order=None,
        bits=bits,
        in_features=words.shape[1] * 32 // bits,
        out_features=scales.shape[1],
        activations=activations,
    )


def words_in_tiles(words: Tensor) -> Tensor:
    """Words whose levels lie along the inputs (I * bits / 32, O) -> the words of CompiledWeight.

    A tile is a strip of columns, and nothing is unpacked. `stored_words` is the inverse.
    """
    rows, outputs = words.shape
    tiles = torch.empty((-(-outputs // TILE), rows, TILE), dtype=torch.int32)
    whole = outputs // TILE
    tiles[:whole] = words[:, : whole * TILE].view(rows, whole, TILE).transpose(0, 1)
    if outputs % TILE:
        tiles[whole] = 0
        tiles[whole, :, : outputs % TILE] = words[:, whole * TILE :]
    return tiles


def stored_words(tiles: Tensor, outputs: int) -> Tensor:
    """The words of CompiledWeight -> those of the first `outputs` outputs, (I * bits / 32, O)."""
    return tiles.transpose(0, 1).flatten(1)[:, :outputs].contiguous()


def round_compiled(weight: Tensor, *, group_size: int = LONGEST_BLOCK) -> CompiledWeight:
    """A matrix (O, I) of bfloat16 in eight bits, for products with rounded activations; `round_plain` is its twin.

    As fast as memory, for a matrix that is kept whole in the file and read once a token.
    """
    outputs, inputs = weight.shape
    assert weight.dtype == torch.bfloat16 and weight.is_contiguous() and inputs % group_size == 0 == group_size % STEP
    tiles = -(-outputs // TILE)
    words = torch.empty((tiles, inputs // 4, TILE), dtype=torch.int32)
    scales = torch.empty((tiles, inputs // group_size, TILE), dtype=torch.float16)
    library = compiled()
    assert library is not None
    library.leveret_round_weight(
        pointer(weight), size(outputs), size(inputs), size(group_size), pointer(words), pointer(scales),
        torch.get_num_threads(),
    )  # fmt: skip
    return CompiledWeight(
        words=words, scales=scales, zeros=None, order=None, bits=8, in_features=inputs, out_features=outputs,
        activations="int8",
    )  # fmt: skip


def round_plain(weight: Tensor, *, group_size: int = LONGEST_BLOCK) -> GroupedIntegers:
    """Each group's largest number becomes 127 or -127, around level 128."""
    groups = weight.float().view(len(weight), -1, group_size)  # (O, G, I / G)
    scales = (groups.abs().amax(-1) / 127).to(torch.float16)
    factors = torch.where(scales == 0, 0.0, 1 / scales.float())
    levels = (groups * factors.unsqueeze(-1)).round().clamp(-128, 127) + 128
    inputs = weight.shape[1]
    return GroupedIntegers(
        levels_OI=levels.flatten(1).to(torch.uint8),
        scales_GO=scales.T,
        zeros_GO=torch.full_like(scales.T, 128, dtype=torch.int32),
        group_of_input=torch.arange(inputs, dtype=torch.int32) // group_size,
        bits=8,
    )


def multiply_compiled(x: Tensor, weight: CompiledWeight) -> Tensor:
    """`x @ weight.T` for x (..., I) in bfloat16 or float32; returns (..., O) in the dtype of x. No gradient."""
    rows = x.reshape(-1, x.shape[-1])  # (M, I)
    rounds = weight.activations == "int8"
    rows = (rows if weight.order is None or rounds else rows[:, weight.order]).contiguous()
    bfloat16 = x.dtype == torch.bfloat16
    way = 2 if rounds else int(bfloat16 and rows.shape[0] > FEW_ROWS)
    assert bfloat16 or x.dtype == torch.float32
    out = torch.empty((rows.shape[0], weight.out_features), dtype=x.dtype)
    library = compiled()
    assert library is not None
    library.leveret_integer_product(
        pointer(rows), size(rows.shape[0]), int(bfloat16), way, weight.bits,
        pointer(weight.words), pointer(weight.scales), pointer(weight.zeros), ctypes.c_float(2 ** (weight.bits - 1)),
        size(weight.in_features), size(weight.scales.shape[0] * TILE),
        size(weight.in_features // weight.scales.shape[1]), pointer(weight.order), pointer(out),
        size(weight.out_features), torch.get_num_threads(),
    )  # fmt: skip
    return out.reshape(*x.shape[:-1], weight.out_features)


def rounded_activations(x: Tensor, weight: CompiledWeight) -> Tensor:
    """x (..., I) as an "int8" product sees it, in float32: the twin of what the kernels do to it."""
    order = torch.arange(weight.in_features) if weight.order is None else weight.order
    size = activation_block(weight.in_features // weight.scales.shape[1])
    blocks = x.float()[..., order].view(*x.shape[:-1], -1, size)
    highest = blocks.abs().amax(-1, keepdim=True)
    numbers = (blocks * (127 / highest)).nan_to_num(0).round()
    rounded = torch.empty_like(x, dtype=torch.float32)
    rounded[..., order] = (numbers * (highest / 127)).flatten(-2)
    return rounded


def activation_block(group_size: int) -> int:
    """The longest block, at most LONGEST_BLOCK, of which a group of the weight holds a whole number."""
    return max(size for size in range(STEP, LONGEST_BLOCK + 1, STEP) if group_size % size == 0)


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


def _in_tiles(values: Tensor) -> Tensor:
    """(G, O) -> (tiles, G, TILE), with zeros: a tile finds all of its own in one place."""
    padded = torch.nn.functional.pad(values, (0, -values.shape[1] % TILE))
    return padded.view(len(values), -1, TILE).transpose(0, 1).contiguous()
