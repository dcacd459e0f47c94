"""A LoRA in peft's layout -> a GGUF file that llama.cpp puts on any file of the model underneath (`--lora`).

    general.type "adapter", adapter.type "lora", adapter.lora.alpha
    blk.0.attn_q.weight.lora_a (rank, inputs)      blk.0.attn_q.weight.lora_b (outputs, rank)

llama.cpp multiplies B A by alpha / rank, with one alpha for the file. Where modules differ in alpha or rank, the
difference is put into B. The rows of B for q and k are turned as those of the matrices are (gguf_layout.py), and the
changes of a layer's experts are stacked as the experts are; one that has none is given zeros.

What the format cannot say is refused: DoRA's lengths, modules trained whole, rows of new tokens, a prefix.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from leveret.errors import ShapeMismatch, UnexpectedWeights, WeightsError
from leveret.model.config import ModelConfig
from leveret.model.families import family_for
from leveret.weights.adapter import A, B
from leveret.weights.adapter_layout import AdapterConfig
from leveret.weights.adapter_load import tensors_by_module
from leveret.weights.gguf_file import gguf_package
from leveret.weights.gguf_layout import ARCHITECTURE, Array, Place, interleave, places
from leveret.weights.model_tensors import shapes_of
from leveret.weights.prefix import is_prefix
from leveret.weights.rewrite import refuse_infinite


@dataclass(frozen=True, kw_only=True)
class _Change:
    """The low-rank change of one of our matrices."""

    a: Tensor
    b: Tensor
    scale: float


def unsayable(adapter: Path) -> str | None:
    """What of an adapter the format has no place for, in words; None: all of it can be written."""
    if is_prefix(adapter):
        return "a trained prefix"
    config = AdapterConfig.read(adapter)
    said = {
        "DoRA's lengths of rows": config.lora.dora,
        "modules that were trained whole": bool(config.modules_to_save),
        "rows of single tokens": bool(config.token_ids),
    }
    if found := next((what for what, there in said.items() if there), None):
        return found
    others = {suffix for held in tensors_by_module(adapter).values() for suffix in held} - {A, B}
    return f"tensors of the kind {sorted(others)[0]}" if others else None


def write_gguf_adapter(adapter: Path, config: ModelConfig, target: Path, *, name: str) -> int:
    """Write the file for a model with this config; returns how many matrices it changes.

    WeightsError for what the format cannot say, ShapeMismatch and UnexpectedWeights for an adapter of another model.
    """
    if (left_out := unsayable(adapter)) is not None:
        raise WeightsError(
            f"{adapter} has {left_out}, which a GGUF adapter cannot say", hint="merge it: adapter=merged"
        )
    changes = _changes(adapter, config)
    gguf = gguf_package("writing a GGUF file")
    first = next(iter(changes.values()))
    alpha = first.scale * len(first.a)
    writer = gguf.GGUFWriter(target, ARCHITECTURE)
    try:
        writer.add_type("adapter")
        writer.add_name(name)
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", alpha)
        written = 0
        for place in places(config):
            held = {part: changes[part] for part in place.parts if part in changes}
            if not held:
                continue
            if place.name == "token_embd.weight":
                raise WeightsError("llama.cpp does not put a LoRA on the embedding", hint="merge it: adapter=merged")
            a, b = _pair(place, held, alpha)
            writer.add_tensor(f"{place.name}.lora_a", a)
            writer.add_tensor(f"{place.name}.lora_b", b)
            written += len(held)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
    return written


def _changes(adapter: Path, config: ModelConfig) -> dict[str, _Change]:
    """Our name of a matrix -> its change; a matrix that is fused in the files gives each part its rows of B."""
    settings, family, shapes = AdapterConfig.read(adapter), family_for(config.family), shapes_of(config)
    changes: dict[str, _Change] = {}
    for module, held in tensors_by_module(adapter).items():
        ours = family.our_names(f"{module}.weight")
        if not ours or not set(ours) <= set(shapes):
            raise UnexpectedWeights(f"{adapter} changes {module}, which a {config.family} model of this size has not",
                                    hint="was it trained on this model?")  # fmt: skip
        if held.keys() != {A, B}:
            raise UnexpectedWeights(f"{adapter} holds only {', '.join(held)} of {module}", hint="is the file whole?")
        for suffix, values in held.items():
            refuse_infinite(f"{module}.{suffix} in {adapter}", values)
        a, b, scale = held[A].float(), held[B].float(), settings.settings_of(module).scale
        rows = [shapes[name][0] for name in ours]
        if a.shape[1] != shapes[ours[0]][1] or b.shape != (sum(rows), a.shape[0]):
            raise ShapeMismatch(
                f"{adapter}: the change of {module} is {tuple(b.shape)} by {tuple(a.shape)}, the matrix "
                f"{(sum(rows), shapes[ours[0]][1])}",
                hint="was it trained on this model?",
            )
        for name, part in zip(ours, torch.split(b, rows), strict=True):
            changes[name] = _Change(a=a, b=part, scale=scale)
    if not changes:
        raise UnexpectedWeights(f"{adapter} changes nothing", hint="is the file whole?")
    return changes


def _pair(place: Place, held: Mapping[str, _Change], alpha: float) -> tuple[Array, Array]:
    """A and B of one tensor of the file, in float32."""
    rank = max(len(change.a) for change in held.values())
    rows, columns = place.shape[-2:]
    first, second = [], []
    for part in place.parts:
        a, b = np.zeros((rank, columns), np.float32), np.zeros((rows, rank), np.float32)
        if (change := held.get(part)) is not None:
            own = len(change.a)
            factor = change.scale * rank / alpha
            a[:own] = change.a.numpy()
            scaled = change.b if math.isclose(factor, 1) else change.b * factor
            turned = scaled.numpy() if place.heads is None else interleave(scaled.numpy(), place.heads)
            b[:, :own] = turned
        first.append(a)
        second.append(b)
    if len(place.shape) == 3:
        return np.stack(first), np.stack(second)
    return first[0], second[0]
