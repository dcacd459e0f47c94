"""The feed-forward block: SwiGLU, y = W_down (silu(W_gate x) * W_up x) (2002.05202)."""

from __future__ import annotations

from torch import Tensor, nn

from leveret.kernels.swiglu import swiglu
from leveret.model.linear import Linear


class FeedForward(nn.Module):
    """x (..., hidden) -> (..., hidden) through `intermediate_size`; an expert of `moe.py` is one of these."""

    def __init__(self, hidden_size: int, intermediate_size: int) -> None:
        super().__init__()
        self.gate_proj = Linear(hidden_size, intermediate_size, bias=False)
        self.up_proj = Linear(hidden_size, intermediate_size, bias=False)
        self.down_proj = Linear(intermediate_size, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))
        return out
