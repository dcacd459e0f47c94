"""A sparse mixture of experts: each token visits its k best experts, weighted by a router (Mixtral, 2401.04088).

    p = softmax(W_router x)          over all E experts, in float32
    y = sum over the k largest of  p_e / (sum of those k) * expert_e(x)

It is exact for any batch: no expert has a capacity and no token is dropped. All experts are multiplied together
(`kernels/grouped_matmul.py`) as long as they are what this file made them; where a Linear was replaced or is being
watched (adapters, quantized weights, calibration), and for a single token, they are asked one after the other.

Left alone, a router sends everything to a few experts, and its logits grow until float32 rounds them. Two losses:

    balance = E * sum over e of  share_e * mean p_e     share: choices of e by a token, summing to k (2101.03961, eq. 4)
    z = mean of (log sum exp logits)^2                  (ST-MoE, 2202.08906, eq. 5)

Both over the tokens of all layers together. The first is smallest, k, when choices and probabilities are even.

Shape legend: N tokens, E experts, k experts per token, L layers.
"""

from __future__ import annotations

from collections import UserList
from collections.abc import MutableSequence, Sequence

import torch
from torch import Tensor, nn

from leveret.kernels.grouped_matmul import group_tokens, grouped_experts
from leveret.model.config import MoeConfig
from leveret.model.feed_forward import FeedForward
from leveret.model.linear import Linear, is_dense

FEWEST_TOKENS = 2
"""A single token is faster with its experts one by one: there is nothing to sort."""


class RouterLogits(UserList[Tensor]):
    """Collects the routers' logits, layer by layer.

    It is no list: FSDP copies the lists that it finds among a layer's arguments, and what is added to a copy is lost.
    """


class SparseMixture(nn.Module):
    """x (B, T, hidden) -> (B, T, hidden)."""

    def __init__(self, hidden_size: int, intermediate_size: int, moe: MoeConfig) -> None:
        super().__init__()
        self.experts_per_token = moe.experts_per_token
        self.gate = Linear(hidden_size, moe.num_experts, bias=False)
        self.experts = nn.ModuleList(FeedForward(hidden_size, intermediate_size) for _ in range(moe.num_experts))

    def forward(self, x: Tensor, router: MutableSequence[Tensor] | None = None) -> Tensor:
        """Mix the experts; the router's logits (N, E) are appended to `router`, if given, for the losses below."""
        tokens = x.reshape(-1, x.shape[-1])  # (N, hidden)
        logits = self.gate(tokens)  # (N, E)
        if router is not None:
            router.append(logits)
        weights, chosen = logits.float().softmax(dim=-1).topk(self.experts_per_token, dim=-1)  # (N, k)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        if len(tokens) >= FEWEST_TOKENS and (matrices := self._matrices(tokens.dtype)) is not None:
            return grouped_experts(tokens, chosen, weights, *matrices).view_as(x)
        return self._one_by_one(tokens, chosen, weights).view_as(x)

    def _one_by_one(self, tokens: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Each expert is called with its tokens; in training with rows of zeros too (kernels/grouped_matmul.py)."""
        groups = group_tokens(tokens, chosen, len(self.experts), fills_up=torch.is_grad_enabled())
        x = torch.cat([tokens, tokens.new_zeros(1, tokens.shape[1])])[groups.tokens]  # -1: the last row
        answers = torch.cat([self.experts[expert](x[rows]) for expert, rows in groups.slices])
        mine = answers[groups.places].view(*chosen.shape, -1)  # (N, k, hidden)
        return (mine * weights.unsqueeze(-1)).sum(1).to(tokens.dtype)

    def _matrices(self, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor], list[Tensor]] | None:
        """The weights of gate_proj, up_proj and down_proj, expert by expert; None if calling the experts does more."""
        gates: list[Tensor] = []
        ups: list[Tensor] = []
        downs: list[Tensor] = []
        for expert in self.experts:
            if type(expert) is not FeedForward or _is_watched(expert):
                return None
            linears = (expert.gate_proj, expert.up_proj, expert.down_proj)
            if not all(_is_plain(linear, dtype) for linear in linears):
                return None
            for matrices, linear in zip((gates, ups, downs), linears, strict=True):
                matrices.append(linear.weight)
        return gates, ups, downs


def _is_plain(linear: nn.Module, dtype: torch.dtype) -> bool:
    """Whether calling it multiplies by a weight of this dtype and does nothing else."""
    return (
        is_dense(linear)
        and linear.bias is None
        and type(linear.weight) is nn.Parameter  # and not a share of it on a mesh of devices
        and linear.weight.dtype == dtype
        and not _is_watched(linear)
    )


def _is_watched(module: nn.Module) -> bool:
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in vars(module)
    )


def expert_choices(router: Sequence[Tensor], moe: MoeConfig, counted: Tensor | None = None) -> Tensor:
    """(L, E) float32: how many tokens chose each expert. counted: (N,) bool, the tokens that count; None: all."""
    chosen = _counted(router, counted).topk(moe.experts_per_token, dim=-1).indices  # (L, N, k)
    layers = torch.arange(len(router), device=chosen.device).view(-1, 1, 1) * moe.num_experts
    counts = torch.bincount((chosen + layers).flatten(), minlength=len(router) * moe.num_experts)
    return counts.view(len(router), moe.num_experts).float()


def load_balancing_loss(
    router: Sequence[Tensor], moe: MoeConfig, counted: Tensor | None = None, *, share: Tensor | None = None
) -> Tensor:
    """E * sum over experts of (share of choices * mean probability), over all layers' logits (N, E); a scalar.

    counted: (N,) bool, the tokens that count (not padding); None: all. share: (E,), choices of each expert by a token;
    None: those of these tokens. Multiply by `moe.router_aux_loss_coef`.
    """
    probabilities = _counted(router, counted).softmax(dim=-1).flatten(0, 1)  # (L N, E)
    if share is None:
        share = expert_choices(router, moe, counted).sum(0) / len(probabilities)
    return moe.num_experts * (share * probabilities.mean(dim=0)).sum()


def router_z_loss(router: Sequence[Tensor], counted: Tensor | None = None) -> Tensor:
    """The mean of (log sum exp)^2 over all layers' logits (N, E); a scalar. counted: as above."""
    return _counted(router, counted).logsumexp(dim=-1).square().mean()


def _counted(router: Sequence[Tensor], counted: Tensor | None) -> Tensor:
    """(L, N, E) float32, padding left out."""
    return torch.stack([layer if counted is None else layer[counted] for layer in router]).float()
