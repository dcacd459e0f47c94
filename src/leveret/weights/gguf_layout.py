"""Where a model's tensors lie in a GGUF file: their names, the turned rows of q and k, the type each is stored in.

All families here are the same network to llama.cpp, its architecture `llama`. Three things differ from our layout:

* *Names.* `blk.3.attn_q.weight` for `layers.3.self_attn.q_proj.weight`; the table is the `gguf` package's own.
* *Pairs.* RoPE turns pairs of a head's numbers. Ours (and Hugging Face's) are (i, i + D/2), llama.cpp's (2i, 2i + 1).
  So the rows of q and k are reordered, within each head: half-split (2, D/2) becomes interleaved (D/2, 2). The product
  of q and k does not change, as both are reordered alike. A file without this loads, and talks nonsense.
* *Experts* of a layer lie in one tensor, stacked along a new first axis.

Vectors (norms) and routers stay in float32 whatever the file's type; a matrix whose rows are no whole number of blocks
falls back to float16, and the writer counts these.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from leveret.model.config import ModelConfig
from leveret.weights.gguf_file import gguf_package
from leveret.weights.model_tensors import shapes_of

Array = NDArray[Any]
FileType = Literal["f32", "f16", "bf16", "q8_0", "q4_0"]
FILE_TYPES: tuple[str, ...] = get_args(FileType)
"""What is written here. Other types are made of these by llama.cpp."""

ARCHITECTURE = "llama"
_EXPERT = re.compile(r"\.experts\.(\d+)\.")


@dataclass(frozen=True, kw_only=True)
class Place:
    """One tensor of the file, and what of ours is in it."""

    name: str
    """The file's name."""
    parts: tuple[str, ...]
    """Our names; several are experts, in order."""
    shape: tuple[int, ...]
    """As numpy has it, rows first."""
    heads: int | None
    """The rows are turned for so many heads; None: they are not."""
    whole: bool
    """Stays in float32."""


def places(config: ModelConfig) -> list[Place]:
    """All tensors of a model's file, in the order in which they are written."""
    gguf = gguf_package()
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    shapes = shapes_of(config)
    grouped: dict[str, list[str]] = {}
    for ours in shapes:
        plain = _EXPERT.sub(".experts.", ours)
        name = table.get_name(plain if plain.startswith("lm_head") else f"model.{plain}", try_suffixes=(".weight",))
        assert name is not None, f"the gguf package has no name for {ours}"
        grouped.setdefault(name, []).append(ours)
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    found = []
    for name, parts in grouped.items():
        parts.sort(key=_expert_number)
        shape = shapes[parts[0]]
        role = name.split(".")[-2]
        found.append(
            Place(
                name=name,
                parts=tuple(parts),
                shape=(len(parts), *shape) if "exps" in role else shape,
                heads=heads.get(role),
                whole=len(shape) == 1 or role == "ffn_gate_inp",
            )
        )
    return found


def stored_type(place: Place, kind: FileType) -> Any:
    """The GGML type of one tensor in a file of this kind."""
    types = gguf_package().GGMLQuantizationType
    if place.whole:
        return types.F32
    wanted = types[kind.upper()]
    if kind == "q4_0" and place.name in ("token_embd.weight", "output.weight"):
        wanted = types.Q8_0  # what every token passes through is worth 8 bits
    block = gguf_package().GGML_QUANT_SIZES[wanted][0]
    return types.F16 if place.shape[-1] % block else wanted


def to_file(place: Place, tensors: Mapping[str, torch.Tensor]) -> Array:
    """The values of one tensor of the file, in float32, from ours."""
    parts = [tensors[name].to(torch.float32).numpy() for name in place.parts]
    if place.heads is not None:
        parts = [interleave(part, place.heads) for part in parts]
    return np.stack(parts) if len(place.shape) == 3 else parts[0]


def from_file(place: Place, values: Array) -> dict[str, torch.Tensor]:
    """The way back."""
    parts = list(values) if len(place.shape) == 3 else [values]
    if place.heads is not None:
        parts = [half_split(part, place.heads) for part in parts]
    return {name: torch.from_numpy(np.array(part, order="C")) for name, part in zip(place.parts, parts, strict=True)}


def interleave(weight: Array, heads: int) -> Array:
    """Rows (i, i + D/2) of each head beside each other: from our order of RoPE's pairs to llama.cpp's."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def half_split(weight: Array, heads: int) -> Array:
    """The inverse of `interleave`."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _expert_number(name: str) -> int:
    found = _EXPERT.search(name)
    return int(found[1]) if found else 0
