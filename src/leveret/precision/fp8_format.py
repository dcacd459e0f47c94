"""The two 8-bit floating formats of training, and the cast into them by one scale a tensor (2209.05433).

    E4M3   4 bits of exponent, 3 of mantissa; +-448,   smallest 2^-9;  no infinity     weights and activations
    E5M2   5 bits of exponent, 2 of mantissa; +-57344, smallest 2^-16                  gradients, whose range is wider

Eight bits reach over 2^18 (or 2^32) between the smallest and the largest number, so a tensor is first moved to where
the format is: it is multiplied by a scale that puts its largest magnitude (*amax*) at the format's largest number,

    scale = (largest / amax) / 2^margin            stored = round(saturate(x * scale))            x ~ stored / scale

and products are divided by both scales afterwards. Saturation is ours to do: a cast alone turns what is too large into
an infinity or NaN, or not, depending on format and device. Rounding is to the nearest, ties to even. A NaN stays one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class Format:
    """One of the two formats."""

    dtype: torch.dtype
    largest: float


E4M3 = Format(dtype=torch.float8_e4m3fn, largest=448.0)
E5M2 = Format(dtype=torch.float8_e5m2, largest=57344.0)


@dataclass(frozen=True, kw_only=True)
class Fp8Tensor:
    """Numbers in 8 bits: `data * inverse_scale` is what they stand for."""

    data: Tensor
    inverse_scale: Tensor
    """A scalar, fp32."""

    def transposed(self) -> Fp8Tensor:
        """The same matrix with rows and columns exchanged; nothing is copied."""
        return Fp8Tensor(data=self.data.t(), inverse_scale=self.inverse_scale)

    def written_out(self) -> Tensor:
        """What it stands for, in fp32."""
        return self.data.float() * self.inverse_scale


def amax_of(tensor: Tensor) -> Tensor:
    """The largest magnitude, a scalar in fp32: 0 of nothing, NaN if there is one."""
    if not tensor.numel():
        return torch.zeros((), device=tensor.device)
    if tensor.is_cuda:
        return norm_amax(tensor)
    low, high = torch.aminmax(tensor)  # on a CPU twenty times as fast as the norm
    return torch.maximum(high, -low).float()


def norm_amax(tensor: Tensor) -> Tensor:
    """The same in one launch of a kernel."""
    largest: Tensor = torch.linalg.vector_norm(tensor, ord=torch.inf, dtype=torch.float32)
    return largest


def scale_of(amax: Tensor, largest: Tensor | float, *, margin: int, otherwise: Tensor | float) -> Tensor:
    """The scale for each amax (any shape, fp32), as Transformer Engine defines it.

    Where an amax says nothing, being 0 or not finite, `otherwise`. An amax so small that the scale would be infinite
    gets the largest number of fp32.
    """
    scale = (largest / amax) / 2.0**margin
    scale = torch.where((amax > 0) & amax.isfinite(), scale, otherwise)
    return torch.where(scale.isinf(), torch.finfo(torch.float32).max, scale)


def cast(tensor: Tensor, scale: Tensor, to: Format, *, inverse: Tensor | None = None) -> Fp8Tensor:
    """`tensor` in 8 bits by a given scale (a scalar, fp32), saturated. inverse: 1 / scale, if that is known already.

    On a GPU by one compiled pass: four passes of their own would take longer than FP8 saves.
    """
    rounded = compiled_round() if tensor.is_cuda else round_to
    data = rounded(tensor, scale, to.largest, to.dtype)
    return Fp8Tensor(data=data, inverse_scale=scale.reciprocal() if inverse is None else inverse)


def round_to(tensor: Tensor, scale: Tensor, largest: float, dtype: torch.dtype) -> Tensor:
    """The cast written out."""
    return (tensor.float() * scale).clamp(-largest, largest).to(dtype)


@functools.cache
def compiled_round() -> Callable[[Tensor, Tensor, float, torch.dtype], Tensor]:
    """`round_to` in one pass over memory."""
    return torch.compile(round_to)
