"""What counts as the same: one table of bounds, by what kind of pair is compared.

    kind      pair                                        what must hold
    exact     both float32, neither quantized             same ids, logits to rounding, same greedy text
    16-bit    bfloat16 or float16 on a side               KL and perplexity within what rounding to 8 bits explains
    int8      an 8-bit quantized side                     a little more
    int4      a side of 4 to 6 bits                       what rounding to nearest at group size 128 may cost
    int3      a 3-bit quantized side                      what llama.cpp's Q3_K may cost
    int2      a side of 2 bits or fewer                   what its Q2_K may cost: that it is the same model, not that
                                                          it is as good

Token ids are always required to be equal: no number format changes a tokenizer. KL is judged by the *upper* end of
its 95 % interval, so that a short text does not pass by luck. Greedy text is judged only where it should be equal;
in the lossy kinds one near tie changes everything after it, so it is reported and not judged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PairKind = Literal["exact", "16-bit", "int8", "int4", "int3", "int2"]


@dataclass(frozen=True, kw_only=True)
class Numerics:
    """How a form computes."""

    dtype: str
    """`float32`, `bfloat16` or `float16`: that of activations and unquantized weights."""
    bits: int | None = None
    """Bits of quantized weights; None when none are."""
    saved_as: str | None = None
    """Of a checkpoint: the dtype that its run rounds to where it saves what it trained, if that is another."""

    def __str__(self) -> str:
        return self.dtype if self.bits is None else f"int{self.bits} + {self.dtype}"


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """The most two forms may differ."""

    logit_difference: float | None
    """Largest difference of a logit, as a share of the largest logit (at least 1). Where it is judged, greedy text
    must be the same too, ties apart; None: both are reported and not judged."""
    kl_nats: float
    """Mean Kullback-Leibler divergence a token, in nats: upper end of the 95 % interval."""
    perplexity_ratio: float
    """Perplexity of the second over that of the first: how much worse it predicts a text, at most."""
    row_error: float
    """How far a row of the embedding may be from the first form's, as a share of its length; a lost row is at 1."""
    expert_error: float
    """The same of an expert's answer to random states, which no calibration has seen; a lost expert is at 1."""


BOUNDS: dict[PairKind, Bounds] = {
    "exact": Bounds(logit_difference=1e-5, kl_nats=1e-6, perplexity_ratio=1.0001, row_error=1e-5, expert_error=1e-4),
    "16-bit": Bounds(logit_difference=None, kl_nats=0.002, perplexity_ratio=1.01, row_error=0.02, expert_error=0.05),
    "int8": Bounds(logit_difference=None, kl_nats=0.005, perplexity_ratio=1.02, row_error=0.05, expert_error=0.2),
    "int4": Bounds(logit_difference=None, kl_nats=0.1, perplexity_ratio=1.15, row_error=0.25, expert_error=0.8),
    "int3": Bounds(logit_difference=None, kl_nats=0.4, perplexity_ratio=1.5, row_error=0.5, expert_error=0.9),
    "int2": Bounds(logit_difference=None, kl_nats=1.0, perplexity_ratio=2.5, row_error=0.8, expert_error=0.95),
}
"""The one table. A release that needs other bounds changes them here, with a reason in docs/log.md."""


def numerics_for(kind: Literal["exact", "16-bit", "int8", "int4"]) -> Numerics:
    """How a side computes that is only known to be of this kind."""
    known = {"int8": Numerics(dtype="bfloat16", bits=8), "int4": Numerics(dtype="bfloat16", bits=4)}
    return known.get(kind, Numerics(dtype="float32" if kind == "exact" else "bfloat16"))


def kind_of(first: Numerics, second: Numerics) -> PairKind:
    """The kind of a pair: the coarser of the two sides decides."""
    bits = [side.bits for side in (first, second) if side.bits is not None]
    if bits:
        least = min(bits)
        return "int8" if least > 6 else "int4" if least > 3 else "int3" if least == 3 else "int2"
    return "exact" if all((side.saved_as or side.dtype) == "float32" for side in (first, second)) else "16-bit"
