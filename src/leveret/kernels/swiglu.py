"""The gate of a feed-forward block, silu(gate) * up, with its gradient: one pass each way in the compiled kernel.

d up = dy * silu(g),   d gate = dy * up * (s + g s (1 - s))   with s = sigmoid(g)            (2002.05202)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from leveret.kernels.native.library import native_for, pointer, size


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """gate and up of one shape -> that shape."""
    if native_for(gate, up) is None:
        return plain_swiglu(gate, up)
    if torch.is_grad_enabled() and (gate.requires_grad or up.requires_grad):
        out: Tensor = _Swiglu.apply(gate, up)  # type: ignore[no-untyped-call]
        return out
    return _forward(gate, up)


def plain_swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """The same by PyTorch; in bfloat16 silu is rounded before it is multiplied."""
    return F.silu(gate) * up


def _forward(gate: Tensor, up: Tensor) -> Tensor:
    out = torch.empty_like(gate)
    library = native_for(gate, up)
    assert library is not None
    library.leveret_swiglu(pointer(gate), pointer(up), pointer(out), size(gate.numel()), torch.get_num_threads())
    return out


class _Swiglu(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return _forward(gate, up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        slope = grads[0].contiguous()
        dgate, dup = torch.empty_like(gate), torch.empty_like(up)
        library = native_for(gate, up)
        assert library is not None
        library.leveret_swiglu_backward(
            pointer(slope), pointer(gate), pointer(up), pointer(dgate), pointer(dup), size(gate.numel()),
            torch.get_num_threads(),
        )  # fmt: skip
        return dgate, dup
