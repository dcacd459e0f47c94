"""Numbers of four bits with a scale for each block, written out: the kernel under NF4.

A byte holds two numbers, the first in its upper half; a number is an index into 16 values, times the scale of its
block. The scales are float32, or in 8 bits themselves (double quantization): an index into 256 values, times the scale
of a group of 256, plus one offset for the whole tensor.

`write_out` uses a compiled kernel for bfloat16 on the CPU: all sixteen values of a block fit a register, so that it is
as fast as memory is written (PyTorch's gathers are 20 to 40 times slower). `plain_write_out` is its meaning; both agree
to the bit.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from leveret.kernels.native.library import compiled, pointer, size

SCALES_PER_GROUP = 256
"""Scales in 8 bits that share a scale of their own."""


@dataclass(frozen=True, kw_only=True)
class BlockScales:
    """The scale of each block of a tensor: `scales`, or `codes` with the rest."""

    scales: Tensor | None = None
    """(blocks,) float32."""
    codes: Tensor | None = None
    """(blocks,) uint8."""
    code_values: Tensor | None = None
    """(256,) float32."""
    group_scales: Tensor | None = None
    """One float32 for each begun group of 256 blocks."""
    offset: float = 0.0

    def in_float32(self) -> Tensor:
        """(blocks,) float32."""
        if self.scales is not None:
            return self.scales
        assert self.codes is not None and self.code_values is not None and self.group_scales is not None
        shares = torch.index_select(self.code_values, 0, self.codes.reshape(-1).int())
        return shares * self.group_scales.repeat_interleave(SCALES_PER_GROUP)[: shares.numel()] + self.offset


@dataclass(frozen=True, kw_only=True)
class FourBitNumbers:
    """A flat tensor of 4-bit numbers."""

    packed: Tensor
    """uint8, two numbers each."""
    values: Tensor
    """(16,) float32: what each index stands for."""
    scales: BlockScales
    block: int
    """Numbers that share a scale; even."""
    count: int
    """How many numbers there are."""


class FourBitTable(ctypes.Structure):
    """The pointers that kernels take; made by `table_of`."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("bytes", "values", "scales", "codes", "code_values", "group_scales")),
        ("offset", ctypes.c_double),
        ("block", ctypes.c_int64),
    ]


def table_of(numbers: FourBitNumbers) -> FourBitTable:
    """Where the numbers lie; they must stay there while the table is used."""
    scales = numbers.scales
    tensors = (
        numbers.packed, numbers.values, scales.scales, scales.codes, scales.code_values, scales.group_scales
    )  # fmt: skip
    places = [None if each is None else each.data_ptr() for each in tensors]
    return FourBitTable(*places, scales.offset, numbers.block)


def write_out(numbers: FourBitNumbers, out: Tensor, *, first: int = 0) -> Tensor:
    """Fill `out` with the numbers from `first` on, which begins a block; returns `out`."""
    library = compiled()
    on_cpu = out.device.type == "cpu" and numbers.packed.device.type == "cpu"
    if library is None or not on_cpu or out.dtype != torch.bfloat16 or not out.is_contiguous():
        return plain_write_out(numbers, out, first=first)
    table = table_of(numbers)
    library.leveret_nf4_write_out(
        ctypes.byref(table), size(first), size(out.numel()), pointer(out), torch.get_num_threads()
    )
    return out


def plain_write_out(numbers: FourBitNumbers, out: Tensor, *, first: int = 0) -> Tensor:
    """The same in PyTorch's operators, for any dtype and device."""
    block, last = numbers.block, min(first + out.numel(), numbers.count)
    assert first % block == 0
    first_block, last_block = first // block, -(-last // block)
    packed = numbers.packed.reshape(-1)[first // 2 : (last_block * block + 1) // 2]
    indices = torch.stack([packed >> 4, packed & 15], dim=1).view(-1)[: last - first]
    shares = torch.index_select(numbers.values, 0, indices.int())
    scales = numbers.scales.in_float32()[first_block:last_block]
    full = shares.numel() // block
    shares[: full * block].view(-1, block).mul_(scales[:full].unsqueeze(1))
    shares[full * block :].mul_(scales[-1])
    return out.copy_(shares.view(out.shape))
