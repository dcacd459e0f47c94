"""The AWQ storage layout (AutoAWQ's "gemm"): four-bit weights packed along the outputs, with a zero point a group.

Each quantized Linear `name` of shape (O, I) with G groups becomes three tensors, eight values in an int32:

    name.qweight  int32  (I, O / 8)   levels: output 8*c + ORDER[j] of input r at bits [4*j, 4*j + 4) of word (r, c)
    name.qzeros   int32  (G, O / 8)   zero points, packed in the same order, as they are (no minus one)
    name.scales   fp16   (G, O)

The order is that in which one GPU instruction takes nibbles apart. Groups are of consecutive inputs, there is no
g_idx, and every group has a zero point. The weight is scale * (level - zero), transposed to (O, I). How levels are
found is no matter of the layout: `quantize/awq.py`. Described by the AWQ paper's code (arXiv 2306.00978) and AutoAWQ;
`docs/contributing/storage_format.md` has a worked example.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from leveret.errors import ConfigError
from leveret.kernels.int_matmul import GroupedIntegers

METHOD = "awq"

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight outputs lies in each field of a word, the lowest first."""

PER_WORD = len(ORDER)


@dataclass(frozen=True, kw_only=True)
class AwqStorage:
    """`quantization_config` of a model directory, the part of it that decides how weights are read."""

    group_size: int | None
    """Input columns a group; None (written -1) is one group an output."""
    skipped: tuple[str, ...] = ("lm_head",)
    """Modules kept whole (`modules_to_not_convert`): a name, or consecutive parts of one."""
    bits: ClassVar[int] = 4
    symmetric: ClassVar[bool] = False
    desc_act: ClassVar[bool] = False
    lm_head: ClassVar[bool] = False

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, source: str = "quantization_config") -> AwqStorage:
        """Read the dictionary of a config.json; ConfigError for anything this project cannot read exactly."""
        bits = data.get("bits", data.get("w_bit"))
        layout = str(data.get("version") or data.get("format") or "gemm").lower()
        if bits != 4 or layout != "gemm" or not data.get("zero_point", True):
            raise ConfigError(
                f"{source}: of AWQ's formats only 4 bits, version gemm, with zero points can be loaded; this is "
                f"{bits} bits, version {layout}, zero_point {data.get('zero_point', True)}",
                hint="start from the unquantized model",
            )
        group_size = int(data.get("group_size", data.get("q_group_size", 128)))
        return cls(
            group_size=None if group_size == -1 else group_size,
            skipped=("lm_head", *(name for name in data.get("modules_to_not_convert") or () if name != "lm_head")),
        )

    def to_dict(self) -> dict[str, Any]:
        """The dictionary for config.json, with the keys AutoAWQ, transformers and vLLM read."""
        return {
            "quant_method": METHOD,
            "bits": self.bits,
            "group_size": -1 if self.group_size is None else self.group_size,
            "zero_point": True,
            "version": "gemm",
            "modules_to_not_convert": list(self.skipped),
        }

    def skips(self, name: str) -> bool:
        """Whether a module, by its name in the files, is kept whole."""
        return any(f".{each}." in f".{name}." for each in self.skipped)

    def shapes(self, in_features: int, out_features: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the stored tensors; ConfigError when the layer does not fit the layout."""
        if out_features % PER_WORD:
            raise ConfigError(
                f"{out_features} output features are not a multiple of {PER_WORD}, as AWQ needs",
                hint="skip this layer (it then stays in full precision)",
            )
        groups = 1 if self.group_size is None else -(-in_features // self.group_size)
        return {
            "qweight": (in_features, out_features // PER_WORD),
            "qzeros": (groups, out_features // PER_WORD),
            "scales": (groups, out_features),
        }

    def pack(self, weight: GroupedIntegers) -> dict[str, torch.Tensor]:
        """The tensors of the layout, by their suffix."""
        assert weight.bits == self.bits and weight.group_size is not None, "AWQ has groups of consecutive inputs"
        return {
            "qweight": _pack_outputs(weight.levels_OI.T),
            "qzeros": _pack_outputs(weight.zeros_GO),
            "scales": weight.scales_GO.to(torch.float16).contiguous(),
        }

    def unpack(self, tensors: Mapping[str, torch.Tensor]) -> GroupedIntegers:
        """The inverse of `pack`."""
        levels, scales = _unpack_outputs(tensors["qweight"]), tensors["scales"]
        inputs = torch.arange(len(levels), device=levels.device, dtype=torch.int32)
        return GroupedIntegers(
            levels_OI=levels.T.to(torch.uint8).contiguous(),
            scales_GO=scales,
            zeros_GO=_unpack_outputs(tensors["qzeros"]),
            group_of_input=inputs // (self.group_size or len(levels)),
            bits=self.bits,
        )


def _pack_outputs(values: torch.Tensor) -> torch.Tensor:
    """(R, 8 * C) below 16 -> (R, C) int32."""
    fields = values.to(torch.int32).reshape(len(values), -1, PER_WORD)
    words = torch.zeros(fields.shape[:2], dtype=torch.int32, device=values.device)
    for place, output in enumerate(ORDER):
        words |= fields[..., output] << (4 * place)  # the last one may set the sign, which is a bit like any other
    return words


def _unpack_outputs(words: torch.Tensor) -> torch.Tensor:
    """(R, C) int32 -> (R, 8 * C) int32 below 16."""
    fields = torch.empty((*words.shape, PER_WORD), dtype=torch.int32, device=words.device)
    for place, output in enumerate(ORDER):
        fields[..., output] = (words >> (4 * place)) & 15
    return fields.flatten(1)
