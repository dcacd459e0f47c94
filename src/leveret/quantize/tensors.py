"""Quantize a model directory tensor by tensor: one full-precision tensor in memory at a time.

The new model is built without memory, with quantized Linears in place; then each tensor of the old files is read, and
either rounded into its layer or put in its place. What the files hold is accounted for as strictly as in loading.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from leveret.errors import ConfigError, UnexpectedWeights, WeightsError
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.model.families import family_for
from leveret.model.meta import shapes_only
from leveret.precision.linear import IntegerStorage, QuantizedLinear
from leveret.precision.nf4 import NF4Linear
from leveret.precision.rounding import check_group_size, relative_error, round_to_nearest
from leveret.precision.swap import Storage, prepare_quantized
from leveret.quantize.report import LayerReport, naming
from leveret.weights.load import read_config
from leveret.weights.placing import HEAD, assign, match_names, require_numbers, split
from leveret.weights.rewrite import converted
from leveret.weights.safetensors import find_weight_files


def linears_named(config: ModelConfig, patterns: Sequence[str]) -> list[str]:
    """The names in the files of those Linears whose name has one of these regular expressions in it."""
    with shapes_only():
        model = Decoder(config)
    family = family_for(config.family)
    stored = [family.stored_module(name) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    return [name for name in stored if any(re.search(pattern, name) for pattern in patterns)]


def empty_quantized(config: ModelConfig, storage: Storage) -> Decoder:
    """The model to be filled: no memory yet, quantized Linears in place. ConfigError when a layer does not fit."""
    with shapes_only():
        model = Decoder(config)
    prepare_quantized(model, storage.to_dict(), stored_name=family_for(config.family).stored_module)
    layers = quantized_layers(model)
    if not layers:
        raise ConfigError("nothing is left to quantize", hint="`skip` matches every layer")
    for name, layer in layers.items():
        if isinstance(storage, IntegerStorage):
            with naming(name):
                check_group_size(layer.in_features, storage.group_size)
    return model


def quantized_layers(model: Decoder) -> dict[str, QuantizedLinear | NF4Linear]:
    """The quantized Linears of a model, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, QuantizedLinear | NF4Linear)}


def fill_quantized(
    model: Decoder, source: Path, storage: Storage, *, search: bool, other_dtype: torch.dtype | None
) -> Iterator[LayerReport]:
    """Fill the model of `empty_quantized` from the unquantized directory `source`; yields a report of each layer."""
    config = read_config(source)
    with shapes_only():
        whole = Decoder(config)
    files = find_weight_files(source)
    held = match_names(whole, family_for(config.family), files.file_of, source)
    shapes = {name: tensor.shape for name, tensor in whole.state_dict().items()}
    tied_head: torch.Tensor | None = None
    for stored, file, tensor in files.tensors():
        if stored not in held:
            continue
        label = f"{stored} in {source / file}"
        require_numbers(tensor.dtype, label)
        for name, part in split(tensor, held[stored], shapes, label=label).items():
            layer = name.removesuffix(".weight")
            target = model.get_submodule(name.rpartition(".")[0])
            if isinstance(target, NF4Linear) and name.endswith(".weight"):
                yield _round_into(target, layer, part)
            elif isinstance(target, QuantizedLinear) and isinstance(storage, IntegerStorage):
                yield _quantize_into(target, layer, part, storage, search=search)
            elif name == HEAD and config.tie_word_embeddings:
                tied_head = part
            else:
                # A copy, never a view of the mapped file: the result may take the file's place.
                assign(model, name, converted(name, part, other_dtype or part.dtype).clone())
    model.tie_weights()
    if tied_head is not None and not torch.equal(tied_head.to(other_dtype or tied_head.dtype), model.lm_head.weight):
        raise UnexpectedWeights(f"{source} has its own {HEAD}, but config.json ties the head to the embedding")


def _quantize_into(
    layer: QuantizedLinear, name: str, weight: torch.Tensor, storage: IntegerStorage, *, search: bool
) -> LayerReport:
    with naming(name):
        integers = round_to_nearest(
            weight, bits=storage.bits, group_size=storage.group_size, symmetric=storage.symmetric, search=search
        )
    layer.fill(integers)
    return LayerReport(
        name=name,
        parameters=weight.numel(),
        bytes_before=weight.nbytes,
        bytes_after=sum(tensor.nbytes for tensor in layer.buffers()),
        relative_error=relative_error(weight, integers),
        method="round-to-nearest",
    )


def _round_into(layer: NF4Linear, name: str, weight: torch.Tensor) -> LayerReport:
    if not bool(torch.isfinite(weight).all()):
        bad = int((~torch.isfinite(weight)).sum())
        raise WeightsError(f"{name}: {bad} of {weight.numel()} weights are not finite: they cannot be quantized")
    layer.fill(weight)
    whole = weight.float()
    lost = (layer.dequantize() - whole).norm() / whole.norm().clamp(min=1e-12)
    stored = sum(tensor.nbytes for tensor in layer.buffers())
    return LayerReport(
        name=name,
        parameters=weight.numel(),
        bytes_before=weight.nbytes,
        bytes_after=stored,
        relative_error=float(lost),
        method="nf4",
    )
