"""The layout of NF4 in safetensors files, which is that of bitsandbytes, and its `quantization_config`.

For each quantized Linear `name` of shape (O, I), B = O * I / 64 blocks:

    name.weight                              uint8 (O * I / 2, 1)   two numbers a byte, the first in the upper half
    name.weight.absmax                       the scale of each block: uint8 (B,), or float32 without double quantization
    name.weight.quant_map                    float32 (16,)          what the numbers stand for
    name.weight.nested_absmax                float32 (B / 256,)     \\ only with
    name.weight.nested_quant_map             float32 (256,)         / double quantization
    name.weight.quant_state.bitsandbytes__nf4   uint8               JSON: shape, dtype, block sizes, the scales' offset

The matrix is written flat, row by row, so a block may reach over the end of a row. Which Linears are left whole is said
by name in config.json (`llm_int8_skip_modules`), as parts of a name and not as patterns.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from leveret.errors import ConfigError, CorruptedFile
from leveret.kernels.normal_float import SCALES_PER_GROUP
from leveret.precision.nf4_format import BLOCK

METHOD = "bitsandbytes"
KEPT_WHOLE = ("lm_head", "gate", "router")
"""Modules that are never rounded: the head, and the routers of experts."""


@dataclass(frozen=True, kw_only=True)
class Nf4Storage:
    """`quantization_config` of a model directory, the part of it that decides how weights are read."""

    double_quantization: bool = True
    """Whether scales are stored in eight bits."""
    skipped: tuple[str, ...] = KEPT_WHOLE
    """Modules kept whole: a name, its end, or the name of what holds them."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, source: str = "quantization_config") -> Nf4Storage:
        """Read the dictionary of a config.json; ConfigError for what this project cannot read exactly."""
        kind = data.get("bnb_4bit_quant_type", "fp4")
        if not (data.get("load_in_4bit") or data.get("_load_in_4bit")) or kind != "nf4":
            raise ConfigError(
                f"{source}: of bitsandbytes' formats only nf4 can be loaded, and this is "
                + (f"4 bits, {kind}" if data.get("load_in_4bit") else "8 bits"),
                hint="start from the unquantized model",
            )
        storage = data.get("bnb_4bit_quant_storage", "uint8")
        if storage != "uint8":
            raise ConfigError(f"{source}: bnb_4bit_quant_storage {storage!r} cannot be loaded; uint8 can")
        names = data.get("llm_int8_skip_modules")
        return cls(
            double_quantization=bool(data.get("bnb_4bit_use_double_quant", False)),
            skipped=("lm_head",) if names is None else tuple(names),
        )

    def to_dict(self) -> dict[str, Any]:
        """The dictionary for config.json, with the keys transformers and vLLM read."""
        return {
            "quant_method": METHOD,
            "load_in_4bit": True,
            "load_in_8bit": False,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": self.double_quantization,
            "bnb_4bit_compute_dtype": "bfloat16",
            "bnb_4bit_quant_storage": "uint8",
            "llm_int8_skip_modules": list(self.skipped),
        }

    def skips(self, name: str) -> bool:
        """Whether a module, by its name in the files, is kept whole."""
        return any(name == each or name.endswith(f".{each}") or name.startswith(f"{each}.") for each in self.skipped)


def stored_bits(quantization: Mapping[str, Any]) -> int | None:
    """Bits of a weight by any `quantization_config` (an empty one is of a model that is not quantized)."""
    if quantization.get("quant_method") == METHOD:
        return 4 if quantization.get("load_in_4bit") or quantization.get("_load_in_4bit") else 8
    bits = quantization.get("bits")
    return None if bits is None else int(bits)


def buffer_shapes(shape: torch.Size, *, double_quantization: bool) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
    """The tensors of one Linear but the last, whose length is that of its JSON: shape and dtype."""
    count = shape.numel()
    blocks = -(-count // BLOCK)
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "weight": ((-(-count // 2), 1), torch.uint8),
        "weight_absmax": ((blocks,), torch.uint8 if double_quantization else torch.float32),
        "weight_quant_map": ((16,), torch.float32),
    }
    if double_quantization:
        shapes["weight_nested_absmax"] = ((-(-blocks // SCALES_PER_GROUP),), torch.float32)
        shapes["weight_nested_quant_map"] = ((256,), torch.float32)
    return shapes


def pack_state(shape: torch.Size, dtype: torch.dtype, offset: float | None) -> Tensor:
    """The JSON as bytes. offset: None without double quantization."""
    state: dict[str, Any] = {
        "quant_type": "nf4",
        "blocksize": BLOCK,
        "dtype": str(dtype).removeprefix("torch."),
        "shape": list(shape),
    }
    if offset is not None:
        state |= {"nested_blocksize": SCALES_PER_GROUP, "nested_dtype": "float32", "nested_offset": offset}
    return torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)


def read_offset(packed: Tensor, shape: torch.Size, *, double_quantization: bool) -> float:
    """The offset of the scales; CorruptedFile when the JSON is of another matrix or layout."""
    try:
        state = json.loads(bytes(packed.tolist()).decode())
        wanted = {"quant_type": "nf4", "blocksize": BLOCK, "shape": list(shape)}
        if double_quantization:
            wanted["nested_blocksize"] = SCALES_PER_GROUP
        for key, value in wanted.items():
            if state[key] != value:
                raise ValueError(f"its {key} is {state[key]}, and {value} is needed")
        return float(state["nested_offset"]) if double_quantization else 0.0
    except (ValueError, KeyError) as error:
        raise CorruptedFile(
            f"quant_state of a {tuple(shape)} matrix in NF4 cannot be read: {error}",
            hint="quantize the original model again (`leveret quantize ... --method nf4`)",
        ) from error
