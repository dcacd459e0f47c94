"""Quantization of a model when it is loaded, in memory: nothing is stored, and the next start does it again.

int8 has one scale an output, int4 a scale for each group of inputs, NF4 the levels and blocks that QLoRA trains on. All
round to nearest, without a search for better scales, which would make a start several times longer; `leveret quantize`
searches, or measures on text (GPTQ, AWQ), and does so once.
"""

from __future__ import annotations

from typing import get_args

from torch import nn

from leveret.config import suggest
from leveret.errors import ConfigError
from leveret.precision.gptq_layout import GptqStorage
from leveret.precision.names import GROUP_SIZES, InMemory
from leveret.precision.swap import is_quantized_linear, quantizable, quantize_linears, round_to_nf4


def quantize_in_memory(model: nn.Module, kind: str) -> list[str]:
    """Quantize the Linears of a model in place, but head and routers; returns their names.

    Raises ConfigError for an unknown kind, and for a model that is quantized already.
    """
    if kind not in get_args(InMemory):
        near = suggest(kind, get_args(InMemory))
        raise ConfigError(
            f"quantize: {kind!r} is not known", hint=f"did you mean {near}?" if near else "int8, int4 and nf4 are"
        )
    if any(is_quantized_linear(module) for module in model.modules()):
        raise ConfigError(
            f"quantize={kind}: the model's files are quantized already",
            hint="leave quantize out, or load the model it was made of",
        )
    if kind == "nf4":
        return round_to_nf4(model)
    whole = GptqStorage(bits=8 if kind == "int8" else 4, group_size=None, symmetric=True)
    inputs = [linear.in_features for linear in quantizable(model, whole).values()]
    fitting = [size for size in GROUP_SIZES if all(count % size == 0 for count in inputs)]
    group_size = fitting[0] if kind == "int4" and fitting else None
    return quantize_linears(model, GptqStorage(bits=whole.bits, group_size=group_size, symmetric=True), search=False)
