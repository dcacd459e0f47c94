"""Rotary position embedding: each pair of a head's numbers is turned by an angle proportional to the position.

    angle(p, i) = p * f_i,     f_i = theta^(-2i/D),     i = 0 .. D/2 - 1            (RoFormer, 2104.09864)

so that the product of a query and a key depends on their distance alone. The pair of number i is i + D/2 (the "half"
order of every Hugging Face checkpoint). Ways to reach further than the trained length L0 by a factor s:

    linear    f_i / s                                          position interpolation, 2306.15595
    dynamic   theta' = theta * (s L / L0 - (s - 1))^(D/(D-2))  for a sequence of length L > L0; else unchanged
    yarn      a ramp over i from f_i (fast pairs) to f_i / s (slow pairs), cos and sin times 0.1 ln s + 1; 2309.00071
    llama3    the same idea, the ramp runs over the wavelength 2 pi / f_i                     Llama 3.1's config

Angles are float32 whatever the model's dtype is: bfloat16 has 8 bits, so position 32,768 would be off by whole turns.
That is why the frequencies are a plain attribute and no buffer: `model.to(torch.bfloat16)` cannot reach them.

Dynamic NTK and a KV cache: keys turned with one base must not meet queries turned with another. Without a cache, the
base follows the length of the row (of each document in a packed row). With one, it follows `KVCache.planned_lengths`,
which is set once per request and does not change while it grows. A cached and an uncached run therefore agree exactly
when their lengths do, and a request's answer never depends on its neighbours in the batch.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from leveret.model.config import ModelConfig, RopeConfig


class RotaryEmbedding:
    """Positions -> (cos, sin), computed once per forward and used by all layers."""

    def __init__(self, config: ModelConfig) -> None:
        self.rope = config.rope
        self.head_dim = config.head_dim
        self.trained_length = config.rope.original_max_position_embeddings or config.max_position_embeddings
        self.frequencies, self.attention_factor = frequencies_of(config.rope, config.head_dim, self.trained_length)

    def __call__(self, positions: Tensor, lengths: Tensor | None, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Positions (B, T) -> cos and signed sin, each (B, 1, T, D) in `dtype`, ready for `rotate`.

        lengths: (B, T) or (B, 1), the length of the sequence that each position belongs to; read by dynamic NTK only.
        """
        if self.frequencies.device != positions.device:
            self.frequencies = self.frequencies.to(positions.device)
        frequencies = self.frequencies
        if self.rope.kind == "dynamic" and lengths is not None:
            frequencies = self._dynamic(lengths)  # (B, T or 1, D/2)
        angles = positions.unsqueeze(-1).float() * frequencies  # (B, T, D/2)
        cos, sin = angles.cos(), angles.sin()
        if self.attention_factor != 1.0:
            cos, sin = cos * self.attention_factor, sin * self.attention_factor
        cos = torch.cat((cos, cos), dim=-1).to(dtype).unsqueeze(1)
        signed_sin = torch.cat((-sin, sin), dim=-1).to(dtype).unsqueeze(1)
        return cos, signed_sin

    def _dynamic(self, lengths: Tensor) -> Tensor:
        factor, width = self.rope.factor, self.head_dim
        stretch = (factor * lengths.float() / self.trained_length - (factor - 1)).clamp(min=1.0)
        theta = self.rope.theta * stretch ** (width / (width - 2))  # (B, T or 1)
        exponents = torch.arange(0, width, 2, device=lengths.device, dtype=torch.float32) / width
        return 1.0 / theta.unsqueeze(-1) ** exponents


def rotate(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Turn the pairs of x (B, heads, T, D) by the angles: (a, b) -> (a cos - b sin, b cos + a sin)."""
    swapped = x.roll(x.shape[-1] // 2, dims=-1)  # (b, a); the minus of the first half is in signed_sin
    return torch.addcmul(x * cos, swapped, signed_sin)


def frequencies_of(rope: RopeConfig, head_dim: int, trained_length: int) -> tuple[Tensor, float]:
    """The D/2 frequencies in radians per position (float32, on the CPU) and the factor on cos and sin."""
    exponents = torch.arange(0, head_dim, 2, device="cpu", dtype=torch.float32) / head_dim
    plain = 1.0 / rope.theta**exponents
    if rope.kind == "linear":
        return plain / rope.factor, 1.0
    if rope.kind == "yarn":
        return _yarn(plain, rope, head_dim, trained_length), yarn_attention(rope)
    if rope.kind == "llama3":
        return _llama3(plain, rope, trained_length), 1.0
    return plain, 1.0


def yarn_attention(rope: RopeConfig) -> float:
    """What YaRN multiplies cos and sin by: as the config says it, or as transformers works it out."""
    if rope.attention_factor is not None:
        return rope.attention_factor
    if rope.mscale and rope.mscale_all_dim:
        return _yarn_stretch(rope.factor, rope.mscale) / _yarn_stretch(rope.factor, rope.mscale_all_dim)
    return _yarn_stretch(rope.factor)


def _yarn(plain: Tensor, rope: RopeConfig, head_dim: int, trained_length: int) -> Tensor:
    def pair_that_turns(times: float) -> float:
        """The (fractional) pair i that makes `times` turns within the trained length."""
        return head_dim * math.log(trained_length / (times * 2 * math.pi)) / (2 * math.log(rope.theta))

    low, high = pair_that_turns(rope.beta_fast), pair_that_turns(rope.beta_slow)
    if rope.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    span = high - low if high != low else 0.001
    slow = ((torch.arange(head_dim // 2, device="cpu", dtype=torch.float32) - low) / span).clamp(0, 1)
    return plain / rope.factor * slow + plain * (1 - slow)


def _yarn_stretch(factor: float, scale: float = 1.0) -> float:
    return 0.1 * scale * math.log(factor) + 1.0


def _llama3(plain: Tensor, rope: RopeConfig, trained_length: int) -> Tensor:
    turns = trained_length * plain / (2 * math.pi)  # turns within the trained length = length / wavelength
    fast = ((turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor)).clamp(0, 1)
    return plain / rope.factor * (1 - fast) + plain * fast
