"""AWQ: make the inputs that matter most finer before rounding, by moving factors to where they cost nothing.

Few inputs of a Linear are much larger than the others, and errors of their columns are the ones the product shows.
Multiply column i of the weight by s_i and divide the input by s_i: the product is the same, but rounding, whose step
is that of the whole group, now loses 1 / s_i as much of column i (2306.00978). The division is folded into whatever
makes the input: the weight of the norm before it, or the rows of `v_proj` or `up_proj`.

    s_i = a_i^alpha / sqrt(max a^alpha * min a^alpha)        a_i = root mean square of input i

Some alpha between 0 (nothing moves) and 1 loses least; each is tried, on rounded weights:

    loss = |(round(W diag s) diag(1/s) - W) X|^2 = sum over outputs of d H d^T        d: the error of a row

with the H of `hessian.py`, so no activations are kept. Many outputs are sampled, for s is the same for all of them.
Rounding itself is to nearest, with zero points, and scales of the least error weighted by how large each input is.

A norm's new weight is rounded to its dtype first and s taken from what became of it, so that nothing is lost there. A
router that reads the same norm takes its part of s too; there s is a power of two, and its logits stay bit for bit.

Shape legend: O outputs, I inputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from leveret.kernels.int_matmul import GroupedIntegers, dequantize
from leveret.model.norm import RMSNorm
from leveret.precision.rounding import round_to_nearest
from leveret.quantize.hessian import Hessian
from leveret.quantize.walk import Share

ALPHAS = tuple(step / 20 for step in range(20))
"""Exponents that are tried."""

SAMPLED_OUTPUTS = 1024
"""Outputs on which an exponent is judged, evenly spread."""


class Awq:
    """AWQ's way of rounding, for `calibrated.py`."""

    name = "awq"

    def __init__(self, *, group_size: int | None, search: bool) -> None:
        self.group_size, self.search = group_size, search

    def balance(self, share: Share) -> None:
        """Move the factors that lose least from what makes a share's inputs into its weights."""
        if share.source is None:
            return
        linears = [*share.linears.values(), *([share.router] if share.router is not None else [])]
        hessian = Hessian(linears[0].in_features)
        for x in share.inputs():
            hessian.add(x)
        if hessian.tokens == 0:
            return
        weights = [linear.weight for linear in share.linears.values()]
        factors = best_factors(
            weights, hessian.mean(), group_size=self.group_size, powers_of_two=share.router is not None
        )
        source = share.source.weight
        rows = factors if isinstance(share.source, RMSNorm) else factors.unsqueeze(1)
        divided = (source.float() / rows).to(source.dtype)
        if isinstance(share.source, RMSNorm):
            # What the norm's weight was divided by, after rounding; where it is 0, nothing comes through anyway.
            factors = torch.where(divided == 0, factors, source.float() / divided.float())
        source.copy_(divided)
        for linear in linears:
            linear.weight.copy_(linear.weight.float() * factors)

    def round(self, weights: Sequence[Tensor], hessian: Tensor) -> list[GroupedIntegers]:
        """Round to nearest, with the scales that lose least on these inputs."""
        importance = hessian.diagonal()
        return [
            round_to_nearest(
                weight, bits=4, group_size=self.group_size, symmetric=False, search=self.search, importance=importance
            )
            for weight in weights
        ]


def best_factors(
    weights: Sequence[Tensor], hessian: Tensor, *, group_size: int | None, powers_of_two: bool = False
) -> Tensor:
    """The factors (I,) of the exponent that loses least over all `weights` (O, I)."""
    outputs = sum(len(weight) for weight in weights)
    step = -(-outputs // SAMPLED_OUTPUTS)
    sample = torch.cat([weight.detach()[::step].float() for weight in weights])
    size = hessian.diagonal().sqrt()
    size = size.clamp(min=float(size.max()) * 1e-4 + 1e-30)
    best, least = torch.ones_like(size), torch.inf
    for alpha in ALPHAS:
        factors = size**alpha
        factors = factors / (factors.max() * factors.min()).sqrt()
        if powers_of_two:
            factors = factors.log2().round().exp2()
        scaled = sample * factors
        rounded = round_to_nearest(scaled, bits=4, group_size=group_size, symmetric=False, search=False)
        lost = (dequantize(rounded, torch.float32) - scaled) / factors
        loss = float(((lost @ hessian) * lost).sum())
        if loss < least:
            best, least = factors, loss
    return best
