"""Products of activations with 4- and 8-bit weights that carry one scale and one zero point a group.

A weight of shape (O, I) is cut along its *input* axis into groups of `group_size` columns. Inside a group

    weight[o, i] = scale[g, o] * (level[o, i] - zero[g, o])        g = group_of_input[i]

with `level` an unsigned integer of 4 or 8 bits. Two ways to multiply are offered, and a test holds them together:

* `matmul_plain`: write the weight out in the dtype of the activations and multiply. It runs everywhere, has a gradient
  for the activations, and is the meaning of all the others.
* `prepack` + `matmul_packed`: PyTorch's own CPU operators (`_weight_int4pack_mm_for_cpu`, `_weight_int8pack_mm`), which
  read the small weight directly. One stream of tokens is limited by how fast memory is read, so four bits instead of
  sixteen is the whole gain. `packed_refusal` says in words when they cannot be used.

Shape legend: M rows of activations, O outputs, I inputs, G groups.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

PACKED_GROUP_SIZES = (32, 64, 128, 256)
"""Group sizes PyTorch's int4 operator accepts."""


@dataclass(frozen=True, kw_only=True)
class GroupedIntegers:
    """A quantized weight, unpacked: what the storage layouts pack and what the products read."""

    levels_OI: torch.Tensor
    """(O, I) uint8, each below 2**bits."""
    scales_GO: torch.Tensor
    """(G, O) float16, float32 or bfloat16."""
    zeros_GO: torch.Tensor
    """(G, O) int32: the level that means zero."""
    group_of_input: torch.Tensor
    """(I,) int32: the group each input column belongs to; i // group_size unless columns were reordered."""
    bits: int
    """4 or 8."""

    @property
    def group_size(self) -> int | None:
        """Columns a group when groups are equal and in order, else None."""
        inputs, groups = self.levels_OI.shape[1], self.scales_GO.shape[0]
        if inputs % groups:
            return None
        size = inputs // groups
        ordered = torch.arange(inputs, device=self.group_of_input.device, dtype=torch.int32) // size
        return size if torch.equal(self.group_of_input.to(torch.int32), ordered) else None


def dequantize(weight: GroupedIntegers, dtype: torch.dtype) -> torch.Tensor:
    """The weight written out, shape (O, I); computed in float32 and rounded once, to `dtype`."""
    groups = weight.group_of_input.long()
    scales_OI = weight.scales_GO.float().T[:, groups]
    zeros_OI = weight.zeros_GO.float().T[:, groups]
    return ((weight.levels_OI.float() - zeros_OI) * scales_OI).to(dtype)


def matmul_plain(x: torch.Tensor, weight: GroupedIntegers) -> torch.Tensor:
    """`x @ weight.T` for x (..., I); returns (..., O) in the dtype of x."""
    return F.linear(x, dequantize(weight, x.dtype))


@dataclass(frozen=True, kw_only=True)
class PackedWeight:
    """A weight in the private layout of PyTorch's CPU operators; made by `prepack`, read by `matmul_packed`."""

    data: torch.Tensor
    scales: torch.Tensor
    bits: int
    group_size: int
    out_features: int


def packed_refusal(
    *, bits: int, group_size: int | None, in_features: int, out_features: int, symmetric: bool, device: torch.device
) -> str | None:
    """Why PyTorch's operators cannot multiply this weight; None when they can."""
    operator = "_weight_int4pack_mm_for_cpu" if bits == 4 else "_weight_int8pack_mm"
    if device.type != "cpu":
        return f"the packed operators are for the CPU and the weight is on {device.type}"
    if not hasattr(torch.ops.aten, operator):
        return f"this PyTorch ({torch.__version__}) has no {operator}"
    if group_size is None or in_features % group_size:
        return "its groups are reordered or unequal"
    if bits == 8:
        if group_size != in_features or not symmetric:
            return f"{operator} takes one symmetric scale an output, not groups of {group_size}"
        return None
    if group_size not in PACKED_GROUP_SIZES:
        return f"{operator} takes groups of {', '.join(map(str, PACKED_GROUP_SIZES))}, not {group_size}"
    if out_features % 16:
        return f"{operator} takes multiples of 16 outputs, not {out_features}"
    return None


def prepack(weight: GroupedIntegers, dtype: torch.dtype) -> PackedWeight:
    """Rearrange a weight for `matmul_packed` with activations of `dtype`; ask `packed_refusal` first."""
    group_size = weight.group_size
    assert group_size is not None
    if weight.bits == 8:
        data = (weight.levels_OI.to(torch.int16) - 128).to(torch.int8).contiguous()
        scales = weight.scales_GO[0].to(dtype).contiguous()
    else:
        data = torch.ops.aten._convert_weight_to_int4pack_for_cpu(weight.levels_OI.to(torch.int32).contiguous(), 1)
        # The operator computes scale * (level - 8) + offset: our zero point becomes an offset.
        scales_GO = weight.scales_GO.float()
        offsets_GO = scales_GO * (8 - weight.zeros_GO.float())
        scales = torch.stack([scales_GO, offsets_GO], dim=-1).to(dtype).contiguous()  # (G, O, 2)
    return PackedWeight(
        data=data, scales=scales, bits=weight.bits, group_size=group_size, out_features=weight.levels_OI.shape[0]
    )


def matmul_packed(x: torch.Tensor, packed: PackedWeight) -> torch.Tensor:
    """The same product as `matmul_plain` by PyTorch's operator; no gradient; scales are rounded to the dtype of x."""
    rows = x.reshape(-1, x.shape[-1]).contiguous()  # (M, I)
    if packed.bits == 8:
        product = torch._weight_int8pack_mm(rows, packed.data, packed.scales)
    else:
        product = torch.ops.aten._weight_int4pack_mm_for_cpu(rows, packed.data, packed.group_size, packed.scales)
    return product.reshape(*x.shape[:-1], packed.out_features)
