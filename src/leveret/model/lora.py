"""LoRA: a trained low-rank change beside each frozen Linear, put on from outside (Hu et al. 2021, 2106.09685).

    y = W x + s * B (A dropout(x))       A (r, inputs) random, B (outputs, r) zero: at first nothing is changed
    s = alpha / r,  or  alpha / sqrt(r)  which keeps its effect as the rank grows (rsLoRA, 2312.03732)

W may be any Linear: a dense one, or a quantized one that can only be called, which makes it QLoRA (2305.14314). Only A
and B are trained; an optimizer state and a checkpoint therefore hold them alone, and no gradient of W is computed.

DoRA (2402.09353) also trains the length m of each output's row of weights, apart from its direction:

    y = m / |W + s B A| * (W + s B A) x       the length |.| is of each row, and counts as constant in backward

Where files keep q, k and v in one matrix, adapters for it have one A: the three LoraLinears then share that parameter.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from leveret.kernels.dense import linear
from leveret.kernels.low_rank import FrozenMatrix, draw_kept, low_rank_linear, masked
from leveret.model.linear import is_dense


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """What one low-rank change is like."""

    rank: int
    alpha: float
    dropout: float = 0.0
    rslora: bool = False
    dora: bool = False

    @property
    def scale(self) -> float:
        """The factor on B A."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


class LoraLinear(nn.Module):
    """A frozen Linear with a trained change: x (..., inputs) -> (..., outputs).

    shared_a: use this parameter as A, which other LoraLinears of the same input use too.
    """

    def __init__(self, base: nn.Module, settings: LoraSettings, *, shared_a: nn.Parameter | None = None) -> None:
        super().__init__()
        self.in_features, self.out_features = int(base.in_features), int(base.out_features)  # type: ignore[arg-type]
        self.settings = settings
        self.base = base.requires_grad_(False)
        device = next((tensor.device for tensor in (*base.parameters(), *base.buffers())), None)
        self.lora_A = shared_a if shared_a is not None else _zeros(settings.rank, self.in_features, device=device)
        self.lora_B = _zeros(self.out_features, settings.rank, device=device)
        self.magnitude = nn.Parameter(_row_lengths(self._dense(torch.float32))) if settings.dora else None

    @property
    def weight(self) -> Tensor:
        """The matrix that this layer multiplies by, written out in the dtype of the base; differentiable."""
        return self.merged_weight().to(self._dtype())

    def merged_weight(self) -> Tensor:
        """The same in float32."""
        merged = self._dense(torch.float32) + self.settings.scale * (self.lora_B.float() @ self.lora_A.float())
        return merged if self.magnitude is None else merged * self._row_factors(merged).unsqueeze(1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.lora_A.to(x.dtype), self.lora_B.to(x.dtype)
        kept, scale = None, self.settings.scale
        if self.training and self.settings.dropout > 0:
            kept = draw_kept(x, self.settings.dropout)
            scale = scale / (1 - self.settings.dropout)
        if (frozen := self._frozen()) is not None and self.magnitude is None:
            return low_rank_linear(x, frozen, a, b, scale=scale, kept=kept)
        seen = x if kept is None else masked(x, kept)
        change = linear(linear(seen, a), b) * scale
        if self.magnitude is None:
            y: Tensor = self.base(x)
            return y + change
        return self._with_magnitude(x, change, kept)

    def _frozen(self) -> Tensor | FrozenMatrix | None:
        """The matrix underneath, if multiplying by it is all that the base does."""
        if getattr(self.base, "bias", None) is not None:
            return None
        if is_dense(self.base):
            return self.base.weight
        return self.base if isinstance(self.base, FrozenMatrix) else None

    def _with_magnitude(self, x: Tensor, change: Tensor, kept: Tensor | None) -> Tensor:
        """DoRA; as in peft, dropout is on what the magnitude changes too, not on the frozen product."""
        factors = self.output_factors().to(x.dtype)
        bias = getattr(self.base, "bias", None)
        straight: Tensor = self.base(x)
        varied = straight if bias is None else straight - bias
        if kept is not None:
            dropped = masked(x, kept) / (1 - self.settings.dropout)
            varied = linear(dropped, self._dense(x.dtype))
        return straight + (factors - 1) * varied + factors * change

    def output_factors(self) -> Tensor:
        """DoRA: what the product with the change added is multiplied by, (outputs,) float32; gradients reach m only."""
        with torch.no_grad():
            merged = self._dense(torch.float32) + self.settings.scale * (self.lora_B.float() @ self.lora_A.float())
        return self._row_factors(merged)

    def _row_factors(self, merged: Tensor) -> Tensor:
        assert self.magnitude is not None
        return self.magnitude.float() / _row_lengths(merged.detach())

    def _dense(self, dtype: torch.dtype) -> Tensor:
        weight = getattr(self.base, "weight", None)
        if isinstance(weight, Tensor) and weight.shape == (self.out_features, self.in_features):
            return weight.detach().to(dtype)
        dense: Tensor = self.base.dequantize(dtype)  # type: ignore[operator]
        return dense.detach()

    def _dtype(self) -> torch.dtype:
        return self.base.weight.dtype if isinstance(self.base, nn.Linear) else self.lora_A.dtype

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"rank={self.settings.rank}, scale={self.settings.scale:g}, dropout={self.settings.dropout}"


def lora_modules(model: nn.Module) -> dict[str, LoraLinear]:
    """The LoraLinears of a model, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}


def wrap(model: nn.Module, names: tuple[str, ...], settings: LoraSettings) -> list[LoraLinear]:
    """Wrap the Linears of these names, in place. Several are one matrix in the files, and share A."""
    wrapped: list[LoraLinear] = []
    for name in names:
        shared = wrapped[0].lora_A if wrapped else None
        wrapped.append(LoraLinear(model.get_submodule(name), settings, shared_a=shared))
        model.set_submodule(name, wrapped[-1])
    return wrapped


@torch.no_grad()
def init_lora(name: str, wrapped: list[LoraLinear], *, seed: int) -> None:
    """A uniform in +-1 / sqrt(inputs), B zero; what is drawn depends on the seed and the name alone."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    drawn = torch.empty(wrapped[0].lora_A.shape)
    nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
    wrapped[0].lora_A.copy_(drawn)
    for module in wrapped:
        module.lora_B.zero_()


def _zeros(*shape: int, device: torch.device | None) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape, dtype=torch.float32, device=device))


def _row_lengths(weight: Tensor) -> Tensor:
    lengths: Tensor = torch.linalg.vector_norm(weight.float(), dim=1)
    return lengths
