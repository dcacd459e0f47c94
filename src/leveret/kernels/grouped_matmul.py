"""A mixture's experts over all their tokens: sorted by expert once, then a few large products, forward and backward.

    out_n = sum over the experts e that token n chose of  w_ne * down_e (silu(gate_e x_n) * up_e x_n)

Written as a loop over experts, each one searches its tokens, and autograd keeps a copy of every piece and of every sum
on the way. Here the (token, expert) pairs are sorted by expert once; the rows of an expert are then neighbors. One
expert after the other gathers its tokens, is multiplied while they are in the cache, and writes its answers beside the
others'; one pass brings all answers home, each token collecting its own.

Only the tokens, gate and up are kept. In backward the weight is moved to where the numbers are small: with
d = dout_n down_e, the gradient of w is sum(d * act) over the inner width, so the answers are not needed again, and
down_e's gradient is dout^T (w * act).

For bfloat16 on a CPU, oneDNN compiles a kernel for every number of rows, which takes as long as the product of a
thousand of them, and experts never have the same number twice. So their groups are filled up with rows of zeros, which
add nothing anywhere, to a multiple of a block, and there are few numbers to compile for.

bfloat16 on a CPU goes through the compiled kernels between the products, everything else through PyTorch.
`plain_experts` is the loop. Shape legend: N tokens, H hidden, I inner width, K experts a token chooses, P rows: the N K
pairs of tokens and experts, and the zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from leveret.kernels.dense import matmul
from leveret.kernels.native.library import native_for, pointer, size
from leveret.kernels.swiglu import swiglu

MOST_BLOCK_ROWS = 64
"""Rows that groups are filled up to, with many tokens; with fewer, a power of two that costs a few percent at most."""


def grouped_experts(
    tokens: Tensor, chosen: Tensor, weights: Tensor, gates: Sequence[Tensor], ups: Sequence[Tensor],
    downs: Sequence[Tensor],
) -> Tensor:  # fmt: skip
    """tokens (N, H), chosen (N, K) experts with weights (N, K) float32 -> (N, H) in the dtype of the tokens.

    gates, ups: one (I, H) for each expert; downs: one (H, I). The gradient can be taken once, not twice.
    """
    tokens, matrices = tokens.contiguous(), (*gates, *ups, *downs)
    groups = group_tokens(tokens, chosen, len(gates))
    if torch.is_grad_enabled() and any(each.requires_grad for each in (tokens, weights, *matrices)):
        out: Tensor = _GroupedExperts.apply(tokens, weights, groups, *matrices)  # type: ignore[no-untyped-call]
        return out
    return _answer(tokens, weights, groups, matrices, kept=None)


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

    tokens: Tensor
    """(P,) int64: the token of each row; -1 for zeros."""
    places: Tensor
    """(N K,) int64: the row of each pair."""
    slices: list[tuple[int, slice]]
    """Each expert that was chosen, and its rows."""


def sort_by_expert(chosen: Tensor, num_experts: int, block: int = 1) -> Groups:
    """chosen (N, K), the experts of each token -> their groups, each of a multiple of `block` rows.

    This is the one place that waits for an accelerator.
    """
    experts = chosen.reshape(-1)  # (N K,)
    order = experts.to(torch.uint8 if num_experts <= 256 else experts.dtype).argsort(stable=True)
    counts = torch.bincount(experts, minlength=num_experts)
    filled = (counts + block - 1) // block * block
    skipped = (filled - counts).cumsum(0) - (filled - counts)  # rows of zeros before each expert
    rows = torch.arange(len(experts), device=experts.device) + skipped[experts[order]]
    ends = filled.cumsum(0).tolist()
    tokens = torch.full((ends[-1],), -1, device=experts.device)
    tokens[rows] = order // chosen.shape[1]
    places = torch.empty_like(order)
    places[order] = rows
    slices = [(expert, slice(start, end)) for expert, (start, end) in enumerate(zip([0, *ends], ends, strict=False))]
    return Groups(tokens=tokens, places=places, slices=[each for each in slices if each[1].start < each[1].stop])


def group_tokens(tokens: Tensor, chosen: Tensor, num_experts: int, *, fills_up: bool = True) -> Groups:
    """The groups of tokens (N, H) and their experts (N, K), filled up where that pays, unless told not to."""
    block = block_rows(chosen.numel(), num_experts) if fills_up and _in_blocks(tokens) else 1
    return sort_by_expert(chosen, num_experts, block)


def block_rows(num_pairs: int, num_experts: int) -> int:
    """A power of two of at most a sixteenth of the rows that an expert has on average."""
    share = num_pairs // (16 * num_experts)
    return min(MOST_BLOCK_ROWS, 1 << share.bit_length() >> 1) if share else 1


class _GroupedExperts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weights: Tensor, groups: Groups, *matrices: Tensor) -> Tensor:
        inner = matrices[0].shape[0]
        kept = tokens.new_empty(len(groups.tokens), inner), tokens.new_empty(len(groups.tokens), inner)
        ctx.groups = groups
        ctx.save_for_backward(tokens, weights, *kept, *matrices)
        return _answer(tokens, weights, groups, matrices, kept=kept)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        tokens, weights, gate, up, *matrices = ctx.saved_tensors
        groups: Groups = ctx.groups
        gates, ups, downs = _in_three(matrices)
        dgates, dups, ddowns = (
            _stack_of(part, groups) if any(needed) else None
            for part, needed in zip((gates, ups, downs), _in_three(ctx.needs_input_grad[3:]), strict=True)
        )
        slopes = grads[0].contiguous()
        factors = weights.new_zeros(len(groups.tokens), dtype=torch.float32)  # (P,)
        factors[groups.places] = weights.float().reshape(-1)
        dfactors, dx = torch.empty_like(factors), tokens.new_empty(len(factors), tokens.shape[1])
        for expert, rows in groups.slices:
            x, slope = _gather(tokens, groups.tokens[rows]), _gather(slopes, groups.tokens[rows])  # (rows, H)
            dgate, dup, weighted = _weighted_swiglu_backward(
                matmul(slope, downs[expert]), gate[rows], up[rows], factors[rows], dfactors[rows]
            )  # (rows, I)
            for stack, left, right in ((dgates, dgate, x), (dups, dup, x), (ddowns, slope, weighted)):
                if stack is not None:
                    matmul(left.t(), right, out=stack[expert])
            matmul(dgate, gates[expert], out=dx[rows])
            matmul(dup, ups[expert], out=dx[rows], adds=True)
        dweights = dfactors.index_select(0, groups.places).view_as(weights).to(weights.dtype)
        dtokens = _combine(dx, groups.places, None, choices=weights.shape[1])
        stacks = [[None] * len(gates) if stack is None else stack for stack in (dgates, dups, ddowns)]
        return dtokens, dweights, None, *(each for stack in stacks for each in stack)


def _answer(
    tokens: Tensor, weights: Tensor, groups: Groups, matrices: Sequence[Tensor], *, kept: tuple[Tensor, Tensor] | None
) -> Tensor:
    """The forward pass. kept: gets x gate^T and x up^T, (P, I) each."""
    answers = tokens.new_empty(len(groups.tokens), tokens.shape[1])
    gates, ups, downs = _in_three(matrices)
    for expert, rows in groups.slices:
        x = _gather(tokens, groups.tokens[rows])  # (rows, H)
        gate, up = (None, None) if kept is None else (kept[0][rows], kept[1][rows])
        gate = matmul(x, gates[expert].t(), out=gate)
        up = matmul(x, ups[expert].t(), out=up)
        matmul(swiglu(gate, up), downs[expert].t(), out=answers[rows])
    return _combine(answers, groups.places, weights)


def _in_blocks(rows: Tensor) -> bool:
    """Whether oneDNN multiplies them."""
    return rows.dtype == torch.bfloat16 and rows.device.type == "cpu"


def _in_three(matrices: Sequence[Any]) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any]]:
    count = len(matrices) // 3
    return matrices[:count], matrices[count : 2 * count], matrices[2 * count :]


def _stack_of(matrices: Sequence[Tensor], groups: Groups) -> list[Tensor]:
    """Room for the gradient of each of them, pieces of one array; 0 for experts without rows."""
    stack = list(matrices[0].new_empty(len(matrices), *matrices[0].shape).unbind())
    for expert in {*range(len(matrices))} - {expert for expert, _ in groups.slices}:
        stack[expert].zero_()
    return stack


def _gather(rows: Tensor, wanted: Tensor) -> Tensor:
    """rows (N, H), wanted (R,) -> (R, H); -1 is a row of zeros."""
    if (library := native_for(rows)) is None:
        if not _in_blocks(rows):
            return rows.index_select(0, wanted)
        return rows.index_select(0, wanted.clamp(min=0)) * (wanted >= 0).unsqueeze(-1)
    out = rows.new_empty(len(wanted), rows.shape[1])
    library.leveret_gather(
        pointer(rows), pointer(wanted), pointer(out), size(len(wanted)), size(rows.shape[1]), torch.get_num_threads()
    )
    return out


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
    slope: Tensor, gate: Tensor, up: Tensor, factors: Tensor, dfactors: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """From slope, gate and up (R, I) and factors (R,): the gradients of gate and up, and factor * silu(gate) * up; the
    gradient of the factors goes into `dfactors`."""
    if (library := native_for(slope, gate, up)) is not None:
        dgate, dup, weighted = torch.empty_like(gate), torch.empty_like(gate), torch.empty_like(gate)
        library.leveret_weighted_swiglu_backward(
            pointer(slope), pointer(gate), pointer(up), pointer(factors), pointer(dgate), pointer(dup),
            pointer(weighted), pointer(dfactors), size(len(gate)), size(gate.shape[1]), torch.get_num_threads(),
        )  # fmt: skip
        return dgate, dup, weighted
    sigmoid = gate.sigmoid()
    passed = gate * sigmoid
    act, rounded = passed * up, factors.to(gate.dtype).unsqueeze(-1)
    torch.sum(slope.float() * act.float(), -1, out=dfactors)
    slope = slope * rounded
    return slope * up * (sigmoid + passed * (1 - sigmoid)), slope * passed, act * rounded
