"""Eight bits for a number that may be tiny: dynamic block-wise quantization, for the averages of an optimizer.

Entries of Adam's averages differ by factors of a million within one tensor. An 8-bit integer with one scale would send
most of them to zero; a *dynamic* code (Dettmers et al. 2021, 2110.02861, section 1.3) spends its bits differently. The
number of leading zeros says the power of ten, the bits that are left divide that decade evenly:

    decade i of 0 .. 6 covers (0.1, 1] * 10^(i - 6) and holds 2^i values, signed (2^(i+1), unsigned)
    each value is the middle of one of as many equal parts of its decade; 0 and 1 are added to the 254 (signed: with
    their negatives)

so that large entries keep 7 bits and those a million times smaller keep one. Numbers are scaled by the largest
magnitude of their *block* of 256: an outlier costs only its neighbours. 8 bits and a 32-bit scale a block are 1.016
bytes a number.

The code and the rounding are those of bitsandbytes (tests compare both); tensors stay flat, block after block.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 256
"""Numbers that share a scale."""
_DECADES = 7


@functools.cache
def dynamic_values(*, signed: bool) -> tuple[float, ...]:
    """The 256 numbers in [-1, 1] (or [0, 1]) that codes 0 .. 255 stand for, in rising order."""
    values = [0.0, 1.0]
    for decade in range(_DECADES):
        parts = 2**decade if signed else 2 ** (decade + 1)
        edges = torch.linspace(0.1, 1, parts + 1, dtype=torch.float32, device="cpu")  # float32, for the same last bits
        middles: list[float] = (10.0 ** (decade - _DECADES + 1) * ((edges[:-1] + edges[1:]) / 2)).tolist()
        values += middles
        values += [-middle for middle in middles] if signed else []
    return tuple(sorted(values))


class DynamicCode:
    """The code on one device: numbers to bytes and back."""

    def __init__(self, *, signed: bool, device: torch.device) -> None:
        self.values = torch.tensor(dynamic_values(signed=signed), dtype=torch.float32, device=device)  # (256,)
        self._borders = (self.values[1:] + self.values[:-1]) / 2
        self._first_codes = self._codes_of_lower_edges()

    def quantize(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """(N,) fp32 -> codes (N,) uint8 and one scale for each begun block of 256, fp32."""
        size = numbers.numel()
        blocks = F.pad(numbers, (0, -size % BLOCK)).view(-1, BLOCK)
        scales = blocks.abs().amax(dim=1)
        shares = (blocks * (1.0 / scales.clamp(min=1e-38)).unsqueeze(1)).clamp_(-1, 1)
        return self._nearest(shares.view(-1)[:size]).to(torch.uint8), scales

    def dequantize(self, codes: Tensor, scales: Tensor) -> Tensor:
        """The fp32 numbers that `codes` and `scales` stand for."""
        shares = torch.index_select(self.values, 0, codes.int())
        full = codes.numel() // BLOCK * BLOCK
        shares[:full].view(-1, BLOCK).mul_(scales[: full // BLOCK].unsqueeze(1))
        shares[full:].mul_(scales[-1])
        return shares

    def _nearest(self, shares: Tensor) -> Tensor:
        """The code of the value nearest to each share: how many borders lie below it.

        The upper half of a number's bits says it but for one border, which is then compared: fifteen times as fast as
        the binary search of `torch.bucketize`, which a test compares it with.
        """
        upper_half = (shares.view(torch.int32) >> 16) & 0xFFFF
        codes = torch.index_select(self._first_codes, 0, upper_half)
        return codes.add_(torch.index_select(self._borders, 0, codes) < shares)

    def _codes_of_lower_edges(self) -> Tensor:
        """For every upper half (65,536 of them): the borders below the least number with these bits, at most 254."""
        halves = torch.arange(2**16, dtype=torch.int32, device=self.values.device)
        negative = halves >= 2**15  # there the least number has all lower bits set
        bits = (halves << 16) | torch.where(negative, 0xFFFF, 0).int()
        least = bits.view(torch.float32).nan_to_num(0.0)
        return torch.bucketize(least, self._borders, out_int32=True).clamp_(max=len(self._borders) - 1)
