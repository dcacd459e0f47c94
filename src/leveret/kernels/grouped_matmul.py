"""A mixture's experts over all their tokens: sorted by expert once, then a few large products, forward and backward.

    out_n = sum over the experts e that token n chose of  w_ne * down_e (silu(gate_e x_n) * up_e x_n)

Written as a loop over experts, each one finds, copies, answers and adds up its tokens by itself, and autograd keeps a
copy of every piece. Here the (token, expert) pairs are sorted by expert; the rows of one expert are then neighbors, so
its products read and write slices of arrays that all experts share, and one pass brings the answers home:

    x = tokens in that order;   gate = x gate_e^T,  up = x up_e^T,  answers = (silu(gate) * up) down_e^T   per slice
    out_n = sum of w * answers, each token collecting its own rows

Only x's tokens, gate and up are kept. In backward the weight is moved to where the numbers are small: with
d = (dout in that order) down_e, the gradient of w is sum(d * act) over the inner width, so the answers are not needed
again, and down_e's gradient is dout^T (w * act). The gradients of all experts are pieces of three arrays.

bfloat16 on a CPU goes through the compiled kernels between the products, everything else through PyTorch.
`plain_experts` is the loop. Shape legend: N tokens, H hidden, I inner width, K experts a token chooses, P = N K pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from leveret.kernels.native.library import native_for, pointer, size
from leveret.kernels.swiglu import swiglu


def grouped_experts(
    tokens: Tensor, chosen: Tensor, weights: Tensor, gates: Sequence[Tensor], ups: Sequence[Tensor],
    downs: Sequence[Tensor],
) -> Tensor:  # fmt: skip
    """tokens (N, H), chosen (N, K) experts with weights (N, K) float32 -> (N, H) in the dtype of the tokens.

    gates, ups: one (I, H) for each expert; downs: one (H, I). The gradient can be taken once, not twice.
    """
    out: Tensor = _GroupedExperts.apply(  # type: ignore[no-untyped-call]  # torch types it so
        tokens, weights, sort_by_expert(chosen, len(gates)), *gates, *ups, *downs
    )
    return out


def plain_experts(
    tokens: Tensor, chosen: Tensor, weights: Tensor, gates: Sequence[Tensor], ups: Sequence[Tensor],
    downs: Sequence[Tensor],
) -> Tensor:  # fmt: skip
    """The same, one expert after the other."""
    out = torch.zeros_like(tokens)
    for number, (gate, up, down) in enumerate(zip(gates, ups, downs, strict=True)):
        rows, places = torch.where(chosen == number)
        if rows.numel():
            mine = tokens[rows]
            answer = F.linear(F.silu(F.linear(mine, gate)) * F.linear(mine, up), down)
            out = out.index_add(0, rows, (answer * weights[rows, places].unsqueeze(-1)).to(out.dtype))
    return out


@dataclass(frozen=True, kw_only=True)
class Groups:
    """The pairs of tokens and experts, sorted by expert; one expert's are in the order of the tokens."""

    pairs: Tensor
    """(P,) int64: which pair n K + k stands at each place."""
    tokens: Tensor
    """(P,) int64: the token of each place."""
    places: Tensor
    """(P,) int64: where each pair n K + k stands."""
    slices: list[tuple[int, slice]]
    """Each expert that was chosen, and its places."""


def sort_by_expert(chosen: Tensor, num_experts: int) -> Groups:
    """chosen (N, K), the experts of each token -> their groups. The one place that waits for an accelerator."""
    experts = chosen.reshape(-1)  # (P,)
    pairs = experts.to(torch.uint8 if num_experts <= 256 else experts.dtype).argsort(stable=True)
    places = torch.empty_like(pairs)
    places[pairs] = torch.arange(len(pairs), device=pairs.device)
    ends = torch.bincount(experts, minlength=num_experts).cumsum(0).tolist()
    slices = [(e, slice(start, end)) for e, (start, end) in enumerate(zip([0, *ends], ends, strict=False))]
    return Groups(
        pairs=pairs,
        tokens=pairs // chosen.shape[1],
        places=places,
        slices=[(expert, rows) for expert, rows in slices if rows.start < rows.stop],
    )


class _GroupedExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weights: Tensor, groups: Groups, *matrices: Tensor) -> Tensor:
        gates, ups, downs = _in_three(matrices)
        x = tokens.index_select(0, groups.tokens)  # (P, H)
        gate, up = (x.new_empty(len(x), len(gates[0])) for _ in range(2))  # (P, I)
        for expert, rows in groups.slices:
            torch.mm(x[rows], gates[expert].t(), out=gate[rows])
            torch.mm(x[rows], ups[expert].t(), out=up[rows])
        act = swiglu(gate, up)
        answers = x  # its numbers are no longer needed
        for expert, rows in groups.slices:
            torch.mm(act[rows], downs[expert].t(), out=answers[rows])
        ctx.groups = groups
        ctx.save_for_backward(tokens, weights, gate, up, *matrices)
        return _combine(answers, groups.places, weights)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tokens, weights, gate, up, *matrices = ctx.saved_tensors
        groups: Groups = ctx.groups
        gates, ups, downs = _in_three(matrices)
        slopes = grads[0].index_select(0, groups.tokens)  # (P, H)
        inner = torch.empty_like(gate)  # (P, I)
        for expert, rows in groups.slices:
            torch.mm(slopes[rows], downs[expert], out=inner[rows])
        ordered = weights.float().reshape(-1).index_select(0, groups.pairs)  # (P,)
        dgate, dup, weighted, dweights = _weighted_swiglu_backward(inner, gate, up, ordered)
        needs = _in_three(ctx.needs_input_grad[3:])
        ddowns = _matrix_gradients(slopes, weighted, downs, groups) if any(needs[2]) else [None] * len(downs)
        dx = slopes  # its numbers are no longer needed
        x = tokens.index_select(0, groups.tokens)
        dgates = _matrix_gradients(dgate, x, gates, groups) if any(needs[0]) else [None] * len(gates)
        dups = _matrix_gradients(dup, x, ups, groups) if any(needs[1]) else [None] * len(ups)
        for expert, rows in groups.slices:
            torch.mm(dgate[rows], gates[expert], out=dx[rows])
            dx[rows].addmm_(dup[rows], ups[expert])
        dtokens = _combine(dx, groups.places, None, choices=weights.shape[1])
        back = dweights.index_select(0, groups.places).view_as(weights).to(weights.dtype)
        return dtokens, back, None, *dgates, *dups, *ddowns


def _in_three(matrices: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
    count = len(matrices) // 3
    return matrices[:count], matrices[count : 2 * count], matrices[2 * count :]


def _matrix_gradients(left: Tensor, right: Tensor, matrices: Sequence[Tensor], groups: Groups) -> list[Tensor]:
    """left^T right over each expert's rows, all in one array; 0 for an expert without rows."""
    stack = matrices[0].new_empty(len(matrices), *matrices[0].shape)
    reached = {expert for expert, _ in groups.slices}
    for expert in range(len(matrices)):
        if expert not in reached:
            stack[expert].zero_()
    for expert, rows in groups.slices:
        torch.mm(left[rows].t(), right[rows], out=stack[expert])
    return list(stack.unbind())


def _combine(rows: Tensor, places: Tensor, weights: Tensor | None, *, choices: int = 0) -> Tensor:
    """rows (P, H) in sorted order -> (N, H): each token's own, times their weights (N, K) float32, added up."""
    choices = choices if weights is None else weights.shape[1]
    num_tokens = len(places) // choices
    factors = None if weights is None else weights.float().contiguous()
    if (library := native_for(rows)) is not None:
        out = rows.new_empty(num_tokens, rows.shape[1])
        library.leveret_combine(
            pointer(rows), pointer(places), pointer(factors), pointer(out), size(num_tokens), size(choices),
            size(rows.shape[1]), torch.get_num_threads(),
        )  # fmt: skip
        return out
    each = rows.index_select(0, places).view(num_tokens, choices, -1)  # (N, K, H)
    summed = each.sum(1, dtype=torch.float32) if factors is None else (each * factors.unsqueeze(-1)).sum(1)
    return summed.to(rows.dtype)


def _weighted_swiglu_backward(
    slope: Tensor, gate: Tensor, up: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """From slope, gate and up (P, I) and weights (P,): the gradients of gate and up, weight * silu(gate) * up, and the
    gradient of the weights in float32."""
    if (library := native_for(slope, gate, up)) is not None:
        dgate, dup, weighted = torch.empty_like(gate), torch.empty_like(gate), torch.empty_like(gate)
        dweights = torch.empty_like(weights)
        library.leveret_weighted_swiglu_backward(
            pointer(slope), pointer(gate), pointer(up), pointer(weights), pointer(dgate), pointer(dup),
            pointer(weighted), pointer(dweights), size(len(gate)), size(gate.shape[1]), torch.get_num_threads(),
        )  # fmt: skip
        return dgate, dup, weighted, dweights
    sigmoid = gate.sigmoid()
    passed = gate * sigmoid
    act, factors = passed * up, weights.to(gate.dtype).unsqueeze(-1)
    dweights = (slope.float() * act.float()).sum(-1)
    slope = slope * factors
    return slope * up * (sigmoid + passed * (1 - sigmoid)), slope * passed, act * factors, dweights
