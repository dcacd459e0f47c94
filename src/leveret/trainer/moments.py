"""Adam's two averages in memory: 4 bytes a number, 2 with stochastic rounding, or 1 in blocks.

An optimizer reads a piece as fp32, updates it, and writes it back; what the format loses in between is its business:

    full     fp32                                     the piece is a view, writing it back is nothing
    bf16     stochastic rounding (precision/stochastic.py): unbiased, also where an average moves by less than a bit
    8bit     dynamic code in blocks of 256 (precision/dynamic8.py): a relative error of some per cent for one entry,
             none for the direction of a whole tensor. As published, tensors below 4,096 numbers stay in fp32

Pieces begin on a multiple of 256, so that blocks never share parameters.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from leveret.precision.dynamic8 import BLOCK, DynamicCode
from leveret.precision.stochastic import round_to_bf16

MomentFormat = Literal["fp32", "bf16", "8bit"]


class Moments:
    """One average of `size` numbers, of which the first `compressed` are stored in `stored_as`, the rest in fp32."""

    def __init__(
        self, name: str, size: int, *, compressed: int, stored_as: MomentFormat, signed: bool, device: torch.device
    ) -> None:
        compressed = 0 if stored_as == "fp32" else compressed
        assert compressed % BLOCK == 0, "blocks begin with parameters"
        self.name = name
        self.compressed = compressed
        self.stored_as = stored_as
        self.full = torch.zeros(size - compressed, dtype=torch.float32, device=device)
        self.codes = torch.zeros(0, device=device)
        self.scales = torch.zeros(0, device=device)
        self._code = DynamicCode(signed=signed, device=device)
        if compressed and stored_as == "bf16":
            self.codes = torch.zeros(compressed, dtype=torch.bfloat16, device=device)
        elif compressed:
            self.codes, self.scales = self._code.quantize(torch.zeros(compressed, device=device))

    def read(self, start: int, stop: int) -> Tensor:
        """The numbers [start, stop) in fp32; change them in place, then `write`."""
        if start >= self.compressed:
            return self.full[start - self.compressed : stop - self.compressed]
        if self.stored_as == "bf16":
            return self.codes[start:stop].float()
        return self._code.dequantize(self.codes[start:stop], self.scales[start // BLOCK : -(-stop // BLOCK)])

    def write(self, start: int, numbers: Tensor, generator: torch.Generator) -> None:
        """Store what `read` returned, after its change."""
        stop = start + numbers.numel()
        if start >= self.compressed:
            return  # it was a view
        if self.stored_as == "bf16":
            self.codes[start:stop] = round_to_bf16(numbers, generator)
        else:
            self.codes[start:stop], self.scales[start // BLOCK : -(-stop // BLOCK)] = self._code.quantize(numbers)

    def state(self) -> dict[str, Tensor]:
        """The tensors a checkpoint holds."""
        parts = {self.name: self.full, f"{self.name}_codes": self.codes, f"{self.name}_scales": self.scales}
        return {name: tensor for name, tensor in parts.items() if tensor.numel()}
