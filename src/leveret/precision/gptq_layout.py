"""The GPTQ storage layout: how 4- and 8-bit weights lie in a safetensors file so that other tools read them.

Each quantized Linear `name` of shape (O, I) with G groups becomes four tensors (P = 32 / bits values in an int32):

    name.qweight  int32  (I / P, O)   level of input P*r + j at bits [bits*j, bits*(j+1)) of row r: packed along inputs
    name.qzeros   int32  (G, O / P)   zero points, packed along outputs, *minus one* when checkpoint_format is "gptq"
    name.scales   fp16   (G, O)
    name.g_idx    int32  (I,)         group of each input column

The minus one is history: the first implementation stored z - 1 and added one when reading, and every later tool
kept it. checkpoint_format "gptq_v2" stores z itself; both are read here. The weight is scale * (level - zero),
transposed to (O, I). config.json says which is which under `quantization_config`. Described by the GPTQ paper's
code (arXiv 2210.17323), AutoGPTQ and GPTQModel; `docs/contributing/storage_format.md` has a worked example.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import torch

from leveret.errors import ConfigError
from leveret.kernels.int_matmul import GroupedIntegers

CheckpointFormat = Literal["gptq", "gptq_v2"]

OWN_METHOD = "leveret"
"""`quant_method` of a file that no other reader should try: its embedding is in eight bits."""


@dataclass(frozen=True, kw_only=True)
class GptqStorage:
    """`quantization_config` of a model directory, the part of it that decides how weights are read."""

    bits: int
    """4 or 8."""
    group_size: int | None
    """Input columns a group; None (written -1) is one group an output."""
    symmetric: bool
    """Zero points all in the middle."""
    desc_act: bool = False
    """Columns were quantized in order of activation size; then g_idx is not i // group_size."""
    checkpoint_format: CheckpointFormat = "gptq"
    """Whether zero points are stored minus one ("gptq") or as they are ("gptq_v2")."""
    lm_head: bool = False
    """Whether the output matrix is quantized too."""
    embedding_in_8_bits: bool = False
    """Whether the embedding is stored in eight bits (`int8_table.py`), which only this project reads."""
    skipped: tuple[str, ...] = ()
    """Regular expressions of module names kept in full precision (`dynamic` entries that begin with "-:")."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, source: str = "quantization_config") -> GptqStorage:
        """Read the dictionary of a config.json; ConfigError for anything this project cannot read exactly."""
        method = data.get("quant_method")
        if method not in ("gptq", OWN_METHOD):
            raise ConfigError(
                f"{source}: quant_method {method!r} is not one that can be loaded",
                hint="'gptq', 'awq' and 'bitsandbytes' (nf4) can; start from the unquantized model",
            )
        bits = data.get("bits")
        if bits not in (4, 8):
            raise ConfigError(f"{source}: bits is {bits!r}; 4 and 8 can be loaded")
        layout = data.get("checkpoint_format") or data.get("format") or "gptq"
        if layout not in ("gptq", "gptq_v2"):
            raise ConfigError(f"{source}: checkpoint_format {layout!r} cannot be loaded; 'gptq' and 'gptq_v2' can")
        group_size = int(data.get("group_size", 128))
        return cls(
            bits=int(bits),
            group_size=None if group_size == -1 else group_size,
            symmetric=bool(data.get("sym", True)),
            desc_act=bool(data.get("desc_act", False)),
            checkpoint_format=cast(CheckpointFormat, layout),
            lm_head=bool(data.get("lm_head", False)),
            embedding_in_8_bits=method == OWN_METHOD and data.get("embedding_bits") == 8,
            skipped=_skipped(data.get("dynamic") or {}, source),
        )

    def to_dict(self) -> dict[str, Any]:
        """The dictionary for config.json, with the keys GPTQModel, vLLM and transformers read."""
        data: dict[str, Any] = {
            "quant_method": OWN_METHOD if self.embedding_in_8_bits else "gptq",
            "bits": self.bits,
            "group_size": -1 if self.group_size is None else self.group_size,
            "sym": self.symmetric,
            "desc_act": self.desc_act,
            "checkpoint_format": self.checkpoint_format,
            "pack_dtype": "int32",
            "lm_head": self.lm_head,
        }
        if self.embedding_in_8_bits:
            data["embedding_bits"] = 8
        if self.skipped:
            data["dynamic"] = {f"-:{pattern}": {} for pattern in self.skipped}
        return data

    def skips(self, name: str) -> bool:
        """Whether a module name is kept in full precision by one of the `skipped` patterns."""
        return any(re.match(pattern, name) for pattern in self.skipped)

    def shapes(self, in_features: int, out_features: int) -> dict[str, tuple[int, ...]]:
        """As `packed_shapes`."""
        return packed_shapes(in_features, out_features, self)

    def pack(self, weight: GroupedIntegers) -> dict[str, torch.Tensor]:
        """As `pack`, with this checkpoint_format."""
        return pack(weight, self.checkpoint_format)

    def unpack(self, tensors: Mapping[str, torch.Tensor]) -> GroupedIntegers:
        """The inverse of `pack`."""
        return unpack(tensors, bits=self.bits, checkpoint_format=self.checkpoint_format)

    @property
    def zero_offset(self) -> int:
        """What is added to zero points as they are stored, modulo 2**bits."""
        return _stored_offset(self.checkpoint_format)

    def zero_points(self, qzeros: torch.Tensor) -> torch.Tensor:
        """The zero points (G, O) int32 that are stored so."""
        stored = _unpack_words(qzeros.T, self.bits).T
        zeros: torch.Tensor = (stored + self.zero_offset) & (2**self.bits - 1)
        return zeros


def packed_shapes(in_features: int, out_features: int, storage: GptqStorage) -> dict[str, tuple[int, ...]]:
    """Shapes of the four stored tensors; ConfigError when the layer does not fit the layout."""
    per_word = 32 // storage.bits
    for side, features in (("input", in_features), ("output", out_features)):
        if features % per_word:
            raise ConfigError(
                f"{features} {side} features are not a multiple of {per_word}, as {storage.bits}-bit storage needs",
                hint="skip this layer (it then stays in full precision)",
            )
    groups = 1 if storage.group_size is None else -(-in_features // storage.group_size)
    return {
        "qweight": (in_features // per_word, out_features),
        "qzeros": (groups, out_features // per_word),
        "scales": (groups, out_features),
        "g_idx": (in_features,),
    }


def pack(weight: GroupedIntegers, checkpoint_format: CheckpointFormat = "gptq") -> dict[str, torch.Tensor]:
    """The four tensors of the layout, by their suffix."""
    zeros = weight.zeros_GO - _stored_offset(checkpoint_format)
    assert int(zeros.min()) >= 0, "a zero point of 0 has no agreed meaning in this layout"
    return {
        "qweight": _pack_words(weight.levels_OI.T.to(torch.int32), weight.bits),  # along inputs
        "qzeros": _pack_words(zeros.T.to(torch.int32), weight.bits).T.contiguous(),  # along outputs
        "scales": weight.scales_GO.to(torch.float16).contiguous(),
        "g_idx": weight.group_of_input.to(torch.int32),
    }


def unpack(
    tensors: Mapping[str, torch.Tensor], *, bits: int, checkpoint_format: CheckpointFormat = "gptq"
) -> GroupedIntegers:
    """The inverse of `pack`."""
    zeros = _unpack_words(tensors["qzeros"].T, bits).T
    return GroupedIntegers(
        levels_OI=_unpack_words(tensors["qweight"], bits).T.to(torch.uint8).contiguous(),
        scales_GO=tensors["scales"],
        zeros_GO=(zeros + _stored_offset(checkpoint_format)) & (2**bits - 1),
        group_of_input=tensors["g_idx"],
        bits=bits,
    )


def _pack_words(values: torch.Tensor, bits: int) -> torch.Tensor:
    """(R * P, C) int32 below 2**bits -> (R, C) int32, value P*r + j in the j-th field of row r."""
    per_word = 32 // bits
    fields = values.reshape(-1, per_word, values.shape[1]).to(torch.int64)
    shifts = torch.arange(per_word, device=values.device, dtype=torch.int64).reshape(1, -1, 1) * bits
    words = (fields << shifts).sum(dim=1)
    signed = torch.where(words >= 2**31, words - 2**32, words)
    return signed.to(torch.int32).contiguous()


def _unpack_words(words: torch.Tensor, bits: int) -> torch.Tensor:
    """(R, C) int32 -> (R * P, C) int32 below 2**bits."""
    per_word = 32 // bits
    shifts = torch.arange(per_word, device=words.device, dtype=torch.int32).reshape(1, -1, 1) * bits
    fields: torch.Tensor = (words.unsqueeze(1) >> shifts) & (2**bits - 1)
    return fields.reshape(-1, words.shape[1])


def _stored_offset(checkpoint_format: CheckpointFormat) -> int:
    return 1 if checkpoint_format == "gptq" else 0


def _skipped(dynamic: Mapping[str, Any], source: str) -> tuple[str, ...]:
    """Patterns of `dynamic` that leave modules alone; other per-module settings would change how weights are read."""
    unread = [pattern for pattern in dynamic if not pattern.startswith("-:")]
    if unread:
        raise ConfigError(f"{source}: dynamic sets other bits for some modules ({unread[0]!r}), which is not read here")
    return tuple(pattern.removeprefix("-:") for pattern in dynamic)
