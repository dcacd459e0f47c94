"""Which Linears of a model are swapped for quantized ones, and the swapping.

Quantization is put on from outside: the model knows nothing of it. Left in full precision by default are

* the output matrix (`lm_head`) and the embedding: errors there reach every logit undiluted;
* the router of a mixture of experts (`gate`, `router`): tiny, and one flipped choice sends a token to the wrong expert;
* whatever `quantization_config` names (`dynamic` patterns in GPTQ's, `modules_to_not_convert` in AWQ's).

`prepare_quantized` turns a freshly built model into one whose state dict has the names and shapes of a quantized
file; `quantize_linears` quantizes a model that already has weights.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from leveret.errors import ConfigError
from leveret.kernels.triton_product import MOST_ROWS
from leveret.precision.awq_layout import METHOD as AWQ
from leveret.precision.awq_layout import AwqStorage
from leveret.precision.gptq_layout import GptqStorage
from leveret.precision.int4 import Int4Linear
from leveret.precision.int8 import Int8Linear
from leveret.precision.int8_table import expect_table
from leveret.precision.linear import IntegerStorage, Product, QuantizedLinear
from leveret.precision.nf4 import NF4Linear, Scratch
from leveret.precision.nf4_layout import KEPT_WHOLE, METHOD, Nf4Storage

Storage = IntegerStorage | Nf4Storage

KEPT_NAMES = ("gate", "router")
"""Last parts of module names that are never quantized: the routers of mixtures of experts."""

WORKING_COPY_BYTES = 512 * 2**20
"""Up to this many bytes of written-out weights (2 each), a working copy is kept; above, the packed product is used."""

logger = logging.getLogger(__name__)


def read_storage(quantization_config: Mapping[str, Any]) -> Storage:
    """What a `quantization_config` says; ConfigError for a method or layout that cannot be read."""
    if not isinstance(quantization_config, Mapping):
        raise ConfigError(f"quantization_config is {quantization_config!r}, it must be a mapping",
                          hint="correct it in config.json")  # fmt: skip
    if quantization_config.get("quant_method") == METHOD:
        return Nf4Storage.from_dict(quantization_config)
    if quantization_config.get("quant_method") == AWQ:
        return AwqStorage.from_dict(quantization_config)
    return GptqStorage.from_dict(quantization_config)


def is_quantized_linear(module: nn.Module) -> bool:
    """Whether it is a Linear whose weight is stored in fewer bits."""
    return isinstance(module, QuantizedLinear | NF4Linear)


def quantizable(
    model: nn.Module, storage: Storage, stored_name: Callable[[str], str] | None = None
) -> dict[str, nn.Linear]:
    """The Linears of a model that these settings quantize, by their names in the model."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and _is_quantized(name, stored_name(name) if stored_name else name, storage)
    }


def prepare_quantized(
    model: nn.Module, quantization_config: Mapping[str, Any], *, stored_name: Callable[[str], str] | None = None
) -> None:
    """Swap Linears in place for empty quantized ones, ready for the tensors of a quantized directory.

    Call it on the model as built from config.json, before its weights are loaded; it works on the meta device too.
    stored_name: a module's name in the files, which is what `dynamic` patterns speak of; by default as in the model.
    Raises ConfigError for a method, layout or shape that cannot be read.
    """
    storage = read_storage(quantization_config)
    if isinstance(storage, Nf4Storage):
        _prepare_nf4(model, storage, stored_name or str)
        return
    if isinstance(storage, GptqStorage) and storage.embedding_in_8_bits:
        expect_table(model.get_submodule("embed_tokens"))
    for name, linear in quantizable(model, storage, stored_name).items():
        try:
            empty = _class_of(storage)(
                linear.in_features,
                linear.out_features,
                storage=storage,
                bias=linear.bias is not None,
                device=linear.weight.device,
            )
        except ConfigError as error:
            raise ConfigError(f"{name}: {error.message}", hint=error.hint) from error
        if empty.bias is not None:
            empty.bias.data = empty.bias.data.to(linear.weight.dtype)
        model.set_submodule(name, empty)
    choose_product(model)


def quantize_linears(
    model: nn.Module, storage: GptqStorage, *, search: bool = True, product: Product | None = None
) -> list[str]:
    """Quantize a model's Linears in place by rounding to nearest; returns the names of those that were."""
    linears = quantizable(model, storage)
    for name, linear in linears.items():
        quantized = _class_of(storage).from_linear(
            linear, group_size=storage.group_size, symmetric=storage.symmetric, search=search
        )
        model.set_submodule(name, quantized)
    choose_product(model, product)
    return list(linears)


def round_to_nf4(model: nn.Module, *, double_quantization: bool = True) -> list[str]:
    """Round a model's Linears to NF4 in place, but head and routers; returns the names of those that were."""
    storage, scratch = Nf4Storage(double_quantization=double_quantization), Scratch()
    linears = quantizable(model, storage)
    for name, linear in linears.items():
        model.set_submodule(name, NF4Linear.from_linear(linear, storage, scratch))
    return list(linears)


@torch.no_grad()
def write_out_head(model: nn.Module) -> bool:
    """Make a quantized head an ordinary Linear of the numbers it multiplies by, in the embedding's dtype, in place;
    whether it was one. The loss of training reads the whole matrix, and rows of tokens are replaced in it."""
    head = model.get_submodule("lm_head")
    if not isinstance(head, QuantizedLinear):
        return False
    whole = nn.Linear(head.in_features, head.out_features, bias=head.bias is not None, device="meta")
    dtype = next(model.get_submodule("embed_tokens").parameters()).dtype
    whole.weight = nn.Parameter(head.dequantize(dtype), requires_grad=False)
    if head.bias is not None:
        whole.bias = nn.Parameter(head.bias.detach().to(dtype), requires_grad=False)
    model.set_submodule("lm_head", whole)
    return True


def num_parameters(model: nn.Module) -> int:
    """Numbers in the weights of a model, those stored in fewer bits too."""
    quantized = (module for module in model.modules() if isinstance(module, QuantizedLinear | NF4Linear))
    stored = sum(module.in_features * module.out_features for module in quantized)
    return stored + sum(parameter.numel() for parameter in model.parameters())


def _prepare_nf4(model: nn.Module, storage: Nf4Storage, stored_name: Callable[[str], str]) -> None:
    linears, scratch = quantizable(model, storage, stored_name), Scratch()
    if len({stored_name(name) for name in linears}) < len(linears):
        raise ConfigError(
            "this model's files hold several Linears in one matrix, and NF4's scales of scales reach over them all",
            hint="NF4 files of such a model cannot be read or written; in memory (`adapter.base: nf4`) it works",
        )
    for name, linear in linears.items():
        empty = NF4Linear(
            linear.in_features, linear.out_features, storage=storage, bias=linear.bias is not None,
            device=linear.weight.device, scratch=scratch,
        )  # fmt: skip
        model.set_submodule(name, empty)


def choose_product(model: nn.Module, product: Product | None = None) -> str:
    """Set how every quantized Linear multiplies; returns, and logs, the choice and its reason in one line."""
    layers = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    if nf4 := sum(isinstance(module, NF4Linear) for module in model.modules()):
        line = f"NF4 product of {nf4} layers: each matrix is written out for a product, and not kept"
        logger.info(line)
        return line
    if not layers:
        return "no quantized layers"
    chosen, reason = (product, "asked for") if product else _best_product(layers)
    compiled = chosen != "plain" and all(layer.compiled_refusal() is None for layer in layers)
    for layer in layers:
        layer.product = chosen
        layer.activations = "int8" if compiled else "exact"
    line = f"int{layers[0].bits} product of {len(layers)} layers: {chosen} ({reason})"
    if compiled:
        line += (
            "; bfloat16 activations are rounded to 8 bits in blocks and multiplied as whole numbers, the fastest way"
        )
    logger.info(line)
    return line


def _best_product(layers: list[QuantizedLinear]) -> tuple[Product, str]:
    written_out = 2 * sum(layer.in_features * layer.out_features for layer in layers)
    size = f"{written_out / 2**20:,.0f} MiB written out in 16 bits"
    if written_out <= WORKING_COPY_BYTES:
        return "copy", f"{size}, which is small: nothing is unpacked twice"
    refusals = {refusal for layer in layers if (refusal := layer.packed_refusal()) is not None}
    if refusals:
        return "plain", f"{size}, too large to keep, and {min(refusals)}"
    if all(layer.on_gpu for layer in layers):
        return "packed", f"{size}, too large to keep; Triton reads the integers for up to {MOST_ROWS} rows"
    compiled = all(layer.compiled_refusal() is None for layer in layers)
    reader = "the compiled kernels read" if compiled else f"PyTorch {torch.__version__} reads"
    return "packed", f"{size}, too large to keep; {reader} the integers, in bfloat16"


def _is_quantized(name: str, stored: str, storage: Storage) -> bool:
    last = name.rpartition(".")[2]
    if isinstance(storage, Nf4Storage):
        return last not in KEPT_WHOLE and not storage.skips(stored)
    if last == "lm_head":
        return storage.lm_head
    return last not in KEPT_NAMES and not storage.skips(stored)


def _class_of(storage: IntegerStorage) -> type[Int4Linear] | type[Int8Linear]:
    return Int4Linear if storage.bits == 4 else Int8Linear
