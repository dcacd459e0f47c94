"""Experts: do two forms of a mixture compute alike in every expert, also in those that no text visits?

A router sends a token to two experts of eight, so texts may leave an expert alone, and no logit shows that it is lost
or another's. So each layer's experts are asked one by one, the same states in both forms:

    error = |f_b(x) - f_a(x)| / |f_a(x)|,    f = expert after the layer's norm,    x random

The norm belongs to it: AWQ moves factors between the two. An expert that is gone is at 1, another one in its place
at about 1.4. Compared where both forms are read by Leveret, as a GGUF file is that llama.cpp runs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from leveret.certify.findings import Check, verdict
from leveret.certify.form import Form
from leveret.model.decoder import Decoder, DecoderLayer
from leveret.model.moe import SparseMixture

PROBES = 4
"""States that every expert is asked with."""


@torch.no_grad()
def compare_experts(first: Form, second: Form, bound: float) -> tuple[Check, ...]:
    """The check; none of a model without experts."""
    ours, theirs = first.model, second.model
    moe = next((model.config.moe for model in (ours, theirs) if isinstance(model, Decoder)), None)
    if moe is None:
        return ()
    if not (isinstance(ours, Decoder) and isinstance(theirs, Decoder)):
        measured = "one form does not show its experts"
        return (Check(name="experts", measured=measured, bound="-", verdict="not compared"),)
    if len(ours.layers) != len(theirs.layers) or theirs.config.moe is None:
        measured = "one form has other layers, or no experts"
        return (Check(name="experts", measured=measured, bound="equal", verdict="different"),)
    if theirs.config.moe.num_experts != moe.num_experts:
        measured = f"{moe.num_experts} and {theirs.config.moe.num_experts} in a layer"
        return (Check(name="experts", measured=measured, bound="equal", verdict="different"),)
    errors = torch.stack([_errors(ours, theirs, layer) for layer in range(len(ours.layers))])  # (L, E)
    worst = int(errors.nan_to_num(nan=torch.inf).argmax())
    layer, expert = divmod(worst, moe.num_experts)
    beyond = int((~(errors <= bound)).sum())  # also true of NaN
    named = f", of layers.{layer}.mlp.experts.{expert}" if errors[layer, expert] else ""
    measured = f"largest relative difference {float(errors[layer, expert]):.2g}{named}, of {errors.numel():,} experts"
    measured += f"; {beyond:,} differ by more than {bound:g}" if beyond else ""
    return (Check(name="experts", measured=measured, bound=f"{bound:g}", verdict=verdict(not beyond)),)


def _errors(first: Decoder, second: Decoder, layer: int) -> Tensor:
    """The error of each expert of a layer, (E,)."""
    states = torch.randn(PROBES, first.config.hidden_size, generator=torch.Generator().manual_seed(layer))
    pairs = zip(_answers(first, layer, states), _answers(second, layer, states), strict=True)
    return torch.stack([(b - a).norm() / a.norm().clamp(min=torch.finfo().tiny) for a, b in pairs])


def _answers(model: Decoder, layer: int, states: Tensor) -> list[Tensor]:
    """What each expert of a layer makes of the states, in float32."""
    block = model.layers[layer]
    assert isinstance(block, DecoderLayer) and isinstance(block.mlp, SparseMixture)
    weight = block.post_attention_layernorm.weight
    read = block.post_attention_layernorm(states.to(weight.device, weight.dtype))
    return [expert(read).float().cpu() for expert in block.mlp.experts]
