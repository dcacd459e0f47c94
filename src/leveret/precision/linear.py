"""A Linear whose weight is stored in 4 or 8 bits, and the choice of how it multiplies.

The stored tensors are the buffers `qweight`, `qzeros`, `scales`, `g_idx` of the GPTQ layout, or the first three in
AWQ's, so a model of such Linears has exactly the state dict that lies in the file. How the product is formed is another
matter, chosen once:

    copy    write the weight out on first use and keep it in the dtype of the activations; costs the memory that storage
            saved. For few rows of bfloat16 (generating) the integers are read instead, which is several times faster.
    packed  never keep a copy: the compiled kernels read the integers (kernels/integer_product.py), or PyTorch's
            operators, both in bfloat16; on a GPU Triton does, for few rows (kernels/triton_product.py), and for more
            the weight is written out. For models whose written-out weights would be large.
    plain   write the weight out on every call. Slow, small, always right: the twin the others are tested against.

Where the compiled kernels read the integers they may round bfloat16 activations to eight bits (`activations`), which is
several times faster for many rows; then they read them for any number of rows. Whatever was chosen, activations that
need a gradient go through a route that has one.
"""

from __future__ import annotations

import logging
from typing import Any, ClassVar, Literal, Self

import torch
from torch import nn

from leveret.kernels.dense import linear
from leveret.kernels.int_matmul import (
    GroupedIntegers,
    PackedWeight,
    dequantize,
    matmul_packed,
    matmul_plain,
    packed_refusal,
    prepack,
)
from leveret.kernels.integer_product import (
    Activations,
    CompiledWeight,
    compiled_refusal,
    multiply_compiled,
    pack_compiled,
    pack_words,
    words_in_tiles,
)
from leveret.kernels.triton_product import DTYPES, MOST_ROWS, TritonWeight, prepare_words, triton_refusal, watch
from leveret.precision.awq_layout import AwqStorage
from leveret.precision.gptq_layout import GptqStorage, pack
from leveret.precision.held_once import HeldOnce
from leveret.precision.rounding import check_group_size, round_to_nearest

Product = Literal["copy", "packed", "plain"]

Packed = CompiledWeight | PackedWeight | TritonWeight

IntegerStorage = GptqStorage | AwqStorage

PACKED_TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-3, torch.bfloat16: 1e-2}
"""Largest relative error at which the packed product counts as equal to the plain one, by dtype of the activations."""

PACKED_DTYPES = (torch.bfloat16,)
"""Dtypes of activations for which PyTorch's operators are vectorised; in the others they are 10 to 50 times slower."""

FEW_ROWS = 8
"""Up to so many rows the packed product was faster than a working copy, on a CPU with AVX-512 and small matrices."""

CHECKED_OUTPUTS = 16
"""So many outputs of a packed product are compared with the plain one before it is used."""

logger = logging.getLogger(__name__)


class QuantizedLinear(HeldOnce):
    """Weight-only quantized Linear; `Int4Linear` and `Int8Linear` say how many bits."""

    bits: ClassVar[int]
    computed = ("_written_out", "_prepacked")
    qzeros: torch.Tensor
    scales: torch.Tensor
    g_idx: torch.Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        storage: IntegerStorage,
        bias: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        """Empty storage of the right shapes, to be filled by `load_state_dict`.

        Raises ConfigError when the shape does not fit the layout or the group size.
        """
        super().__init__()
        assert storage.bits == self.bits
        self.in_features, self.out_features, self.storage = in_features, out_features, storage
        self.product: Product = "copy"
        self.activations: Activations = "exact"
        shapes = storage.shapes(in_features, out_features)
        self._stored = tuple(shapes)
        for name, shape in shapes.items():
            dtype = torch.float16 if name == "scales" else torch.int32
            self.register_buffer(name, torch.zeros(shape, dtype=dtype, device=device))
        self.bias = nn.Parameter(torch.zeros(out_features, device=device), requires_grad=False) if bias else None
        self._written_out: tuple[Any, torch.Tensor] | None = None
        self._prepacked: tuple[Any, Packed | None] | None = None

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        group_size: int | None = 128,
        symmetric: bool = True,
        search: bool = True,
    ) -> Self:
        """Quantize a Linear by rounding to nearest (`precision/rounding.py`)."""
        check_group_size(linear.in_features, group_size)
        integers = round_to_nearest(
            linear.weight, bits=cls.bits, group_size=group_size, symmetric=symmetric, search=search
        )
        storage = GptqStorage(bits=cls.bits, group_size=group_size, symmetric=symmetric)
        quantized = cls(
            linear.in_features,
            linear.out_features,
            storage=storage,
            bias=linear.bias is not None,
            device=linear.weight.device,
        )
        quantized.fill(integers)
        if quantized.bias is not None:
            quantized.bias.data = linear.bias.detach().clone()
        return quantized

    def fill(self, weight: GroupedIntegers) -> None:
        """Store this weight."""
        self.words = None
        for name, tensor in self.storage.pack(weight).items():
            setattr(self, name, tensor)

    def integers(self) -> GroupedIntegers:
        """The stored weight, unpacked to one byte a value."""
        return self.storage.unpack({name: getattr(self, name) for name in self._stored})

    def dequantize(self, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        """The weight (out_features, in_features) that this layer multiplies with."""
        return dequantize(self.integers(), dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x (..., in_features) -> (..., out_features), in the dtype of x."""
        if self._reads_integers(x) and (packed := self._packed(x.dtype)) is not None:
            y = watch().multiply(x, packed, self.integers) if isinstance(packed, TritonWeight) else _multiply(x, packed)
        elif self.product == "copy":
            y = linear(x, self._copy(x.dtype))
        else:
            y = matmul_plain(x, self.integers())
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def _reads_integers(self, x: torch.Tensor) -> bool:
        if self.product == "plain" or (x.requires_grad and torch.is_grad_enabled()):
            return False
        if self.on_gpu:  # where a copy that is kept anyway is multiplied
            few = 0 < x.numel() <= MOST_ROWS * self.in_features
            return self.product == "packed" and x.dtype in DTYPES and few
        if x.dtype not in PACKED_DTYPES:
            return False
        if self.product == "packed" or self.activations == "int8":
            return True
        return x.numel() <= FEW_ROWS * self.in_features

    def packed_refusal(self) -> str | None:
        """Why the packed product cannot be used for this layer; None when it can."""
        inputs = self.in_features
        if self.on_gpu:
            outputs, device = self.out_features, self._device()
            return triton_refusal(bits=self.bits, in_features=inputs, out_features=outputs, device=device)
        if self.compiled_refusal() is None:
            return None
        return packed_refusal(
            bits=self.bits,
            group_size=None if self.storage.desc_act else self.storage.group_size or inputs,
            in_features=inputs,
            out_features=self.out_features,
            symmetric=self.storage.symmetric,
            device=self._device(),
        )

    def compiled_refusal(self) -> str | None:
        """Why the compiled kernels cannot multiply this layer; None when they can."""
        group_size = self.storage.group_size or self.in_features
        return compiled_refusal(in_features=self.in_features, group_size=group_size, device=self._device())

    def compiled_weight(self) -> CompiledWeight | None:
        """The weight as the compiled kernels read it in bfloat16; None when they cannot, or must not (`product`)."""
        packed = None if self.product == "plain" else self._packed(torch.bfloat16)
        return packed if isinstance(packed, CompiledWeight) else None

    @property
    def on_gpu(self) -> bool:
        """Whether Triton would multiply, not a processor."""
        return self._device().type == "cuda"

    def _device(self) -> torch.device:
        return torch.device("cpu") if self.scales.is_meta else self.scales.device

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        group = self.storage.group_size or self.in_features
        return f"in_features={self.in_features}, out_features={self.out_features}, group_size={group}, {self.product}"

    def _copy(self, dtype: torch.dtype) -> torch.Tensor:
        key = (dtype, *self._versions())
        if self._written_out is None or self._written_out[0] != key:
            self._written_out = (key, self.dequantize(dtype))
        return self._written_out[1]

    def _packed(self, dtype: torch.dtype) -> Packed | None:
        """The weight as the kernels or operators want it; None when they refuse it or their product differs."""
        if self._prepacked is None or self._prepacked[0] != (dtype, self.activations, *self._versions()):
            packed, error = (None, 0.0) if self.packed_refusal() else self._prepack(dtype)
            if error > PACKED_TOLERANCE[dtype]:
                logger.warning("packed int%d product is off by %.2g and is not used", self.bits, error)
                packed = None
            self._prepacked = ((dtype, self.activations, *self._versions()), packed)
        return self._prepacked[1]

    @torch.no_grad()
    def _prepack(self, dtype: torch.dtype) -> tuple[Packed | None, float]:
        """The packed weight and its relative error against the plain product on one fixed row, for some outputs."""
        if self.on_gpu:
            return self._for_triton(), 0.0  # whoever multiplies with it looks at the error
        packed: CompiledWeight | PackedWeight | None = None
        if self.compiled_refusal() is None:
            packed = self._as_it_lies() or pack_compiled(self.integers(), self.activations)
        if packed is None and self.storage.desc_act:
            return None, 0.0
        packed = packed or prepack(self.integers(), dtype)
        row = torch.linspace(-1, 1, self.in_features, device=self.scales.device).cos().to(dtype).unsqueeze(0)
        wanted = matmul_plain(row, self._first_outputs()).float()
        found = _multiply(row, packed)[:, : wanted.shape[1]].float()
        return packed, float((found - wanted).norm() / wanted.norm().clamp(min=1e-12))

    def _for_triton(self) -> TritonWeight:
        """The stored tensors themselves; AWQ's words lie across the outputs, so they are packed anew, beside them."""
        if isinstance(self.storage, GptqStorage):
            stored, offset = {name: getattr(self, name) for name in self._stored}, self.storage.zero_offset
        else:
            stored, offset = pack(self.integers(), "gptq_v2"), 0
        return prepare_words(
            stored["qweight"], stored["qzeros"], stored["scales"], stored["g_idx"], bits=self.bits, zero_offset=offset
        )

    def can_be_tiled(self) -> bool:
        """Whether the words of the file are those that the compiled kernels read, but for their order."""
        plain = isinstance(self.storage, GptqStorage) and not self.storage.desc_act
        return plain and self.compiled_refusal() is None

    def _as_it_lies(self) -> CompiledWeight | None:
        """The stored words, if groups are in order; from now on they are held as the kernels read them."""
        inputs = torch.arange(self.in_features, dtype=torch.int32)
        if not isinstance(self.storage, GptqStorage) or not torch.equal(
            self.g_idx, inputs // (self.storage.group_size or self.in_features)
        ):
            return None
        if (words := self.held_for_kernels) is None:
            words = words_in_tiles(self.qweight)
            self.hold_for_kernels(words)
        zeros = self.storage.zero_points(self.qzeros)
        return pack_words(words, self.scales, zeros, bits=self.bits, activations=self.activations)

    def _first_outputs(self) -> GroupedIntegers:
        """The stored weight of the first outputs, which say as much about a kernel as all of them."""
        if not isinstance(self.storage, GptqStorage):
            return self.integers()
        count = min(CHECKED_OUTPUTS, self.out_features)
        words = self.held_for_kernels
        first = self.qweight[:, :count] if words is None else words[0, :, :count]
        part = {"qweight": first, "scales": self.scales[:, :count], "g_idx": self.g_idx}
        part["qzeros"] = self.qzeros[:, : count * self.bits // 32]
        return self.storage.unpack(part)

    def settle(self) -> None:
        """Hold the words as the compiled kernels read them, if they do, so that copies made later share them."""
        if self.compiled_refusal() is None:
            self._as_it_lies()

    def stored_tensors(self) -> tuple[torch.Tensor | None, ...]:
        """What is held of the weight; copies of a module that share it hold the same tensors."""
        return self.held_for_kernels, *(self._buffers[name] for name in self._stored)

    def _versions(self) -> tuple[Any, ...]:
        """Changes whenever a stored tensor is replaced or written to, so that nothing stale is multiplied."""
        held = self.stored_tensors()
        return tuple((id(each), 0 if each is None or each.is_inference() else each._version) for each in held)

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Move with the model, but keep scales in float16: `model.to(torch.bfloat16)` must not round them."""
        scales = self.scales
        super()._apply(fn, recurse)
        if self.scales.dtype != torch.float16:
            moved = self.scales
            self.scales = moved.to(torch.float16) if scales.is_meta else scales.to(moved.device)
        self._written_out = self._prepacked = None
        return self


def _multiply(x: torch.Tensor, packed: CompiledWeight | PackedWeight) -> torch.Tensor:
    return multiply_compiled(x, packed) if isinstance(packed, CompiledWeight) else matmul_packed(x, packed)
