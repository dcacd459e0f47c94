"""A Linear that multiplies in 8 bits while it is trained, put on a model from outside and taken off again.

Weights stay what they are: the optimizer's parameter in bf16 or fp32, cast when it is used. Only the three products
change, y = x W^T and the two of backward (precision/fp8_product.py), and what is kept for backward is the input in 8
bits. Outside training (`eval()`), the layer is an ordinary Linear: what is validated and saved is the bf16 model.

Which Linears are swapped is a rule over their names. Always in 16 bits stay

* the head (the loss multiplies by its matrix itself, in pieces) and the embedding, whose errors reach every logit;
* the router of a mixture, where one flipped choice sends a token elsewhere, and its experts, multiplied as a group;
* Linears whose sizes are no multiple of 16, which tensor cores cannot multiply in 8 bits;

and, if asked, the first and last layers or any others.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leveret.errors import ConfigError
from leveret.precision.fp8_format import Fp8Tensor
from leveret.precision.fp8_product import MULTIPLE, Product
from leveret.precision.fp8_scaling import GRADIENT, WEIGHT, Recipe, Scaling

_ALWAYS = {"lm_head": "the head", "gate": "routers", "router": "routers"}


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Which Linears stay in 16 bits, besides those that always do."""

    names: Sequence[str] = ()
    """Patterns (`*` and `?`) of module names: `*.down_proj`, `layers.0.*`."""
    first_layers: int = 0
    last_layers: int = 0


class Fp8Linear(nn.Module):
    """x (..., inputs) -> (..., outputs), with the parameters of the Linear that it stands for."""

    def __init__(self, linear: nn.Linear, scaling: Scaling, number: int, multiply: Product) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.scaling, self.number, self.multiply = scaling, number, multiply
        self.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """In 8 bits in training mode, also where no gradient is taken; otherwise in the dtype of the weight."""
        if not self.training:
            return F.linear(x, self.weight, self.bias)
        y: Tensor = _Products.apply(x, self.weight, self.scaling.cast_input(x, self.number), self)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"in_features={self.in_features}, out_features={self.out_features}"


class _Products(torch.autograd.Function):
    """The product of a Linear and the two of its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, x8: Fp8Tensor, layer: Fp8Linear) -> Tensor:
        w8 = layer.scaling.cast(weight, layer.number, WEIGHT)
        ctx.layer, ctx.shape, ctx.dtypes = layer, x.shape, (x.dtype, weight.dtype)
        of_x, of_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(
            *(x8.data, x8.inverse_scale) if of_weight else (None, None),
            *(w8.data, w8.inverse_scale) if of_x else (None, None),
        )
        y = layer.multiply(x8, w8, dtype=x.dtype, fast=True)
        return y.view(*x.shape[:-1], layer.out_features)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        layer, (x_dtype, weight_dtype) = ctx.layer, ctx.dtypes
        x_data, x_inverse, w_data, w_inverse = ctx.saved_tensors
        rows = gradients[0].reshape(-1, layer.out_features)
        g8 = layer.scaling.cast(rows, layer.number, GRADIENT)
        of_x, of_weight = None, None
        if ctx.needs_input_grad[0]:
            w8 = Fp8Tensor(data=w_data, inverse_scale=w_inverse)
            of_x = layer.multiply(g8, w8.transposed(), dtype=x_dtype, fast=False).view(ctx.shape)
        if ctx.needs_input_grad[1]:
            x8 = Fp8Tensor(data=x_data, inverse_scale=x_inverse)
            of_weight = layer.multiply(g8.transposed(), x8.transposed(), dtype=weight_dtype, fast=False)
        return of_x, of_weight, None, None


def choose(model: nn.Module, rule: Rule) -> tuple[list[str], dict[str, list[str]]]:
    """The names of the Linears to swap, and those that stay, by reason.

    Raises ConfigError when a pattern matches no Linear, or when no Linear is left to swap.
    """
    linears = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    for pattern in rule.names:
        if not any(_matches(name, pattern) for name in linears):
            raise ConfigError(
                f"fp8.keep_bf16: '{pattern}' matches no Linear of the model",
                hint=f"names are like {', '.join(list(linears)[:3])}; a pattern is like *.down_proj or layers.0.*",
            )
    num_layers = 1 + max((_layer_of(name) for name in linears), default=-1)
    chosen: list[str] = []
    kept: dict[str, list[str]] = {}
    for name, linear in linears.items():
        reason = _reason_to_keep(name, linear, rule, num_layers)
        if reason is None:
            chosen.append(name)
        else:
            kept.setdefault(reason, []).append(name)
    if not chosen:
        why = "; ".join(f"{reason}: {len(names)}" for reason, names in kept.items()) or "it has none of 16 or 32 bits"
        raise ConfigError(
            f"no Linear of the model can be multiplied in FP8 ({why})",
            hint="leave out training.fp8: quantized bases and models of odd sizes are trained in bf16",
        )
    return chosen, kept


@contextlib.contextmanager
def fp8_linears(
    model: nn.Module, names: Sequence[str], recipe: Recipe, multiply: Product, device: torch.device | str = "cpu"
) -> Iterator[Scaling]:
    """Within the block, the Linears of these names multiply in 8 bits; afterwards they are what they were.

    Their parameters keep their names and their identity, and those that they have at the end stay.
    """
    scaling = Scaling(recipe, num_linears=len(names), device=device)
    before: dict[str, nn.Linear] = {}
    for number, name in enumerate(names):
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        before[name] = linear
        model.set_submodule(name, Fp8Linear(linear, scaling, number, multiply))
    try:
        yield scaling
    finally:
        for name, linear in before.items():
            swapped = model.get_submodule(name)
            linear.weight, linear.bias = swapped.weight, swapped.bias  # type: ignore[assignment]
            linear.train(swapped.training)
            model.set_submodule(name, linear)


def _reason_to_keep(name: str, linear: nn.Linear, rule: Rule, num_layers: int) -> str | None:
    parts = name.split(".")
    always = next((_ALWAYS[part] for part in parts if part in _ALWAYS), None)
    if always is not None:
        return always
    if "experts" in parts:
        return "experts"
    layer = _layer_of(name)
    if layer >= 0 and (layer < rule.first_layers or layer >= num_layers - rule.last_layers):
        return "first and last layers"
    if any(_matches(name, pattern) for pattern in rule.names):
        return "asked for"
    if linear.in_features % MULTIPLE or linear.out_features % MULTIPLE:
        return f"sizes that are no multiple of {MULTIPLE}"
    return None


def _matches(name: str, pattern: str) -> bool:
    return fnmatchcase(name.removesuffix(".base"), pattern)  # an adapter calls the Linear it wraps its base


def _layer_of(name: str) -> int:
    """3 of `layers.3.mlp.up_proj`; -1 outside the layers."""
    found = re.search(r"(?:^|\.)layers\.(\d+)\.", name)
    return -1 if found is None else int(found.group(1))
