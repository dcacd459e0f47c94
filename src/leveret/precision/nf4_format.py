"""NF4: four bits a weight, on sixteen values that suit a normal distribution (Dettmers et al. 2023, 2305.14314).

Weights of a trained matrix are nearly normal. Divided by the largest magnitude of their block of 64, they are rounded
to the nearest of sixteen values that lie closer together where more weights are; 0, 1 and -1 are among them:

    weight = value[index] * scale        one scale for each block of 64 along the rows, matrix after matrix row

A float32 scale a block would be half a bit a weight. *Double quantization* stores the scales in eight bits too: less
their mean (the offset), in groups of 256, on the dynamic code of precision/dynamic8.py. That is 4.127 bits a weight.

Bytes, scales and values written out are those of bitsandbytes on a CPU, to the bit. (Which of two neighbouring codes a
scale gets, it looks up on a grid of 65,536 steps; on a GPU it takes the nearest. Either can be read.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from leveret.kernels.normal_float import SCALES_PER_GROUP, BlockScales, FourBitNumbers, write_out
from leveret.precision.dynamic8 import dynamic_values

BLOCK = 64
"""Weights that share a scale."""

VALUES = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The sixteen values, as published with QLoRA: quantiles of a normal distribution, seven below 0 and eight above."""


_GRID = 2**16


@dataclass(frozen=True, kw_only=True)
class Nf4Tensor:
    """A quantized tensor, in the pieces that are stored."""

    packed: Tensor
    """uint8 (half the numbers, rounded up): two a byte, the first in the upper half."""
    absmax: Tensor
    """The scale of each block: float32, or uint8 with double quantization."""
    nested_absmax: Tensor | None
    """The scale of each group of 256 scales; None without double quantization."""
    offset: float
    """What is added to each scale; 0 without double quantization."""
    shape: torch.Size

    def numbers(self) -> FourBitNumbers:
        """What the kernel reads."""
        device = self.packed.device
        scales = BlockScales(scales=self.absmax)
        if self.nested_absmax is not None:
            code_values = dynamic_code(device)
            scales = BlockScales(
                codes=self.absmax, code_values=code_values, group_scales=self.nested_absmax, offset=self.offset
            )
        return FourBitNumbers(
            packed=self.packed, values=nf4_values(device), scales=scales, block=BLOCK, count=self.shape.numel()
        )

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The tensor written out; computed in float32 and rounded once."""
        return write_out(self.numbers(), torch.empty(self.shape, dtype=dtype, device=self.packed.device))


def nf4_values(device: torch.device | str = "cpu") -> Tensor:
    """The sixteen values, float32."""
    return torch.tensor(VALUES, dtype=torch.float32, device=device)


def dynamic_code(device: torch.device | str = "cpu") -> Tensor:
    """The 256 values of scales in eight bits, float32."""
    return torch.tensor(dynamic_values(signed=True), dtype=torch.float32, device=device)


@torch.no_grad()
def quantize_nf4(weight: Tensor, *, double_quantization: bool = True) -> Nf4Tensor:
    """Round a tensor to NF4."""
    flat = weight.detach().reshape(-1).float()
    blocks = F.pad(flat, (0, -flat.numel() % BLOCK)).view(-1, BLOCK)
    scales = blocks.abs().amax(dim=1)
    shares = (blocks * (1.0 / scales.clamp(min=1e-38)).unsqueeze(1)).clamp_(-1, 1)
    values = nf4_values(weight.device)
    indices = torch.bucketize(shares.view(-1), (values[1:] + values[:-1]) / 2, out_int32=True).to(torch.uint8)
    indices = indices[: flat.numel() + flat.numel() % 2]
    packed = (indices[::2] << 4) | indices[1::2]
    if not double_quantization:
        return Nf4Tensor(packed=packed, absmax=scales, nested_absmax=None, offset=0.0, shape=weight.shape)
    offset = scales.mean()
    codes, nested = _scales_in_8_bits(scales - offset)
    return Nf4Tensor(packed=packed, absmax=codes, nested_absmax=nested, offset=offset.item(), shape=weight.shape)


def _scales_in_8_bits(centred: Tensor) -> tuple[Tensor, Tensor]:
    """(blocks,) float32 -> codes, and the scale of each begun group."""
    groups = F.pad(centred, (0, -centred.numel() % SCALES_PER_GROUP)).view(-1, SCALES_PER_GROUP)
    nested = groups.abs().amax(dim=1)
    shares = (groups * (1.0 / nested.clamp(min=1e-38)).unsqueeze(1)).clamp_(-1, 1)
    code = dynamic_code(centred.device)
    grid = torch.arange(_GRID, dtype=torch.float32, device=centred.device) * 2 / (_GRID - 1) - 1
    nearest = torch.bucketize(grid, (code[1:] + code[:-1]) / 2).to(torch.uint8)
    codes = nearest[((shares + 1) * 0.5 * (_GRID - 1) + 0.5).int()]
    codes[nested == 0] = 0
    return codes.view(-1)[: centred.numel()], nested
