"""A sparse mixture of experts: each token visits its k best experts, weighted by a router (Mixtral, 2401.04088).

    p = softmax(W_router x)          over all E experts, in float32
    y = sum over the k largest of  p_e / (sum of those k) * expert_e(x)

The loop gathers the tokens of one expert, runs them as one batch, and adds the results back. It is exact for any batch:
no expert has a capacity and no token is dropped.

Left alone, a router sends everything to a few experts. The load-balancing loss (Switch Transformer, 2101.03961, eq. 4)
is smallest when both the choices and the probabilities are spread evenly, where it equals k.

Shape legend: N tokens, E experts, k experts per token.
"""

from __future__ import annotations

from collections import UserList
from collections.abc import MutableSequence, Sequence

import torch
from torch import Tensor, nn

from leveret.model.config import MoeConfig
from leveret.model.feed_forward import FeedForward


class RouterLogits(UserList[Tensor]):
    """Collects the routers' logits, layer by layer.

    It is no list: FSDP copies the lists that it finds among a layer's arguments, and what is added to a copy is lost.
    """


class SparseMixture(nn.Module):
    """x (B, T, hidden) -> (B, T, hidden)."""

    def __init__(self, hidden_size: int, intermediate_size: int, moe: MoeConfig) -> None:
        super().__init__()
        self.experts_per_token = moe.experts_per_token
        self.gate = nn.Linear(hidden_size, moe.num_experts, bias=False)
        self.experts = nn.ModuleList(FeedForward(hidden_size, intermediate_size) for _ in range(moe.num_experts))

    def forward(self, x: Tensor, router: MutableSequence[Tensor] | None = None) -> Tensor:
        """Mix the experts; the router's logits (N, E) are appended to `router`, if given, for the loss below."""
        tokens = x.reshape(-1, x.shape[-1])  # (N, hidden)
        logits = self.gate(tokens)  # (N, E)
        if router is not None:
            router.append(logits)
        weights, chosen = logits.float().softmax(dim=-1).topk(self.experts_per_token, dim=-1)  # (N, k)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        out = torch.zeros_like(tokens)
        for number, expert in enumerate(self.experts):
            rows, places = torch.where(chosen == number)
            if rows.numel():
                answer = expert(tokens[rows]) * weights[rows, places].unsqueeze(-1)
                out = out.index_add(0, rows, answer.to(out.dtype))
        return out.view_as(x)


def load_balancing_loss(router: Sequence[Tensor], moe: MoeConfig, counted: Tensor | None = None) -> Tensor:
    """E * sum over experts of (share of choices * mean probability), over all layers' logits (N, E); a scalar.

    counted: (N,) bool, the tokens that count (not padding); None: all. Multiply by `moe.router_aux_loss_coef`.
    """
    logits = torch.cat([layer if counted is None else layer[counted] for layer in router]).float()
    probabilities = logits.softmax(dim=-1)
    chosen = probabilities.topk(moe.experts_per_token, dim=-1).indices
    share = torch.bincount(chosen.flatten(), minlength=moe.num_experts) / logits.shape[0]  # sums to k
    return moe.num_experts * (share * probabilities.mean(dim=0)).sum()
