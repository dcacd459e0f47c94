"""Stochastic rounding to bf16: up or down by chance, so that the mean over many roundings is the number itself.

A bf16 number has 8 significant bits. To the nearest, w + d is w again for every |d| < |w| / 512, and a weight stops
moving when its updates are smaller than that, however many there are. Rounded by chance, with

    P(up) = (x - below) / (above - below)

E[round(x)] = x, and a thousand small updates arrive in the mean (Gupta et al. 2015, 1502.02551; for training without
fp32 masters: Zamirai et al. 2020, 2010.06192).

bf16 is the upper half of fp32's bits, so the rule is one addition: add a random 16-bit number to the bits, cut off the
lower half. The randomness is an argument, never the global generator: a step stays a function of its seed and number.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def round_to_bf16(numbers: Tensor, generator: torch.Generator) -> Tensor:
    """fp32 -> bf16 of the same shape, rounded by chance; what bf16 can represent stays as it is."""
    bits = numbers.contiguous().view(torch.int32)
    draws = torch.empty(-(-bits.numel() // 4), dtype=torch.int64, device=bits.device)
    draws.random_(-(2**63), None, generator=generator)  # 64 random bits: four numbers' worth
    chance = draws.view(torch.int16)[: bits.numel()].view(bits.shape).int() & 0xFFFF
    return ((bits + chance) & -0x10000).view(torch.float32).to(torch.bfloat16)


def generator_for(device: torch.device, *numbers: int) -> torch.Generator:
    """A generator whose stream depends on these numbers only (the seed, the step, the place)."""
    digest = hashlib.sha256(":".join(map(str, numbers)).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)
