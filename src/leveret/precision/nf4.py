"""NF4Linear: a frozen Linear in four bits, multiplied by without ever being kept written out.

For a product the matrix is written out in the dtype of the activations, into memory that all layers of a model share,
and multiplied like any other; the next layer writes over it. Writing it out costs a few hundredths of a product with
some thousand rows, and is done again in backward rather than kept. Larger matrices go through that memory in parts.

    y = x W^T          dx = dy W          W has no gradient, so no product is spent on it

LoRA on top of it is QLoRA (2305.14314). The buffers are those of the files (precision/nf4_layout.py).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any, Self

import torch
from torch import Tensor, nn

from leveret.kernels.dense import matmul
from leveret.kernels.normal_float import BlockScales, FourBitNumbers, write_out
from leveret.precision.nf4_format import BLOCK, dynamic_code, nf4_values, quantize_nf4
from leveret.precision.nf4_layout import Nf4Storage, buffer_shapes, pack_state, read_offset

PART_BYTES = 64 * 2**20
"""A matrix that is larger when written out is multiplied by in parts of this size."""


class Scratch:
    """Memory to write matrices into, one piece for each thread that computes; layers of a model share it."""

    def __init__(self) -> None:
        self._pieces: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}

    def piece(self, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        """(count,) numbers, whatever they are; valid until this thread asks again."""
        key = (threading.get_ident(), dtype, device)
        piece = self._pieces.get(key)
        if piece is None or piece.numel() < count:
            with torch.inference_mode(False):
                piece = self._pieces[key] = torch.empty(count, dtype=dtype, device=device)
        return piece[:count]

    def __deepcopy__(self, memo: dict[int, Any]) -> Scratch:
        return Scratch()

    def __getstate__(self) -> dict[str, Any]:
        return {"_pieces": {}}


class NF4Linear(nn.Module):
    """x (..., in_features) -> (..., out_features) by a weight in NF4."""

    weight: Tensor
    weight_absmax: Tensor
    weight_quant_map: Tensor
    weight_quant_state: Tensor

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        storage: Nf4Storage,
        bias: bool = False,
        device: torch.device | str | None = None,
        scratch: Scratch | None = None,
    ) -> None:
        """Empty storage of the right shapes, to be filled from files."""
        super().__init__()
        self.in_features, self.out_features, self.storage = in_features, out_features, storage
        self.scratch = scratch or Scratch()
        shapes = buffer_shapes(self.shape, double_quantization=storage.double_quantization)
        for name, (shape, dtype) in shapes.items():
            self.register_buffer(name, torch.zeros(shape, dtype=dtype, device=device))
        self.register_buffer("weight_quant_state", torch.zeros(0, dtype=torch.uint8, device=device))
        self.bias = nn.Parameter(torch.zeros(out_features, device=device), requires_grad=False) if bias else None
        self._offset: tuple[int, float] | None = None

    @property
    def shape(self) -> torch.Size:
        """Of the matrix: (out_features, in_features)."""
        return torch.Size((self.out_features, self.in_features))

    @classmethod
    def from_linear(cls, linear: nn.Linear, storage: Nf4Storage, scratch: Scratch | None = None) -> Self:
        """Round a Linear's weight to NF4."""
        made = cls(
            linear.in_features, linear.out_features, storage=storage, bias=linear.bias is not None,
            device="meta", scratch=scratch,
        )  # fmt: skip
        made.fill(linear.weight)
        if linear.bias is not None:
            made.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=False)
        return made.train(linear.training)

    def fill(self, weight: Tensor) -> None:
        """Round `weight` (out_features, in_features) into this layer."""
        double = self.storage.double_quantization
        rounded = quantize_nf4(weight, double_quantization=double)
        self.weight, self.weight_absmax = rounded.packed.view(-1, 1), rounded.absmax
        self.weight_quant_map = nf4_values(weight.device)
        if rounded.nested_absmax is not None:
            self.weight_nested_absmax = rounded.nested_absmax
            self.weight_nested_quant_map = dynamic_code(weight.device)
        offset = rounded.offset if double else None
        self.weight_quant_state = pack_state(weight.shape, weight.dtype, offset).to(weight.device)

    def numbers(self) -> FourBitNumbers:
        """What the kernel reads. CorruptedFile when the stored JSON does not fit the layer."""
        double = self.storage.double_quantization
        if self._offset is None or self._offset[0] != id(self.weight_quant_state):
            value = read_offset(self.weight_quant_state, self.shape, double_quantization=double)
            self._offset = (id(self.weight_quant_state), value)
        scales = BlockScales(scales=self.weight_absmax)
        if double:
            scales = BlockScales(
                codes=self.weight_absmax, code_values=self.weight_nested_quant_map,
                group_scales=self.weight_nested_absmax, offset=self._offset[1],
            )  # fmt: skip
        return FourBitNumbers(
            packed=self.weight, values=self.weight_quant_map, scales=scales, block=BLOCK, count=self.shape.numel()
        )

    def stored_tensors(self) -> tuple[Tensor | None, ...]:
        """What is held of the weight; copies of a module that share it hold the same tensors."""
        return tuple(self._buffers.values())

    def dequantize(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """The matrix (out_features, in_features) that this layer multiplies by."""
        return write_out(self.numbers(), torch.empty(self.shape, dtype=dtype, device=self.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, self.in_features)
        y: Tensor = _Product.apply(rows, self)  # type: ignore[no-untyped-call]
        y = y.view(*x.shape[:-1], self.out_features)
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def multiply(self, x: Tensor) -> Tensor:
        """x (N, in_features) -> x W^T, without the bias and without a gradient."""
        if len(self._parts(x.dtype)) == 1:
            return matmul(x, next(self._written(x.dtype))[1].t())
        y = x.new_empty(x.shape[0], self.out_features)
        for outputs, matrix in self._written(x.dtype):
            y[:, outputs] = matmul(x, matrix.t())
        return y

    def multiply_back(self, slope: Tensor) -> Tensor:
        """slope (N, out_features) -> slope W, which is the gradient of x."""
        product: Tensor | None = None
        for outputs, matrix in self._written(slope.dtype):
            part = matmul(slope[:, outputs], matrix)
            product = part if product is None else product.add_(part)
        assert product is not None
        return product

    def _parts(self, dtype: torch.dtype) -> list[slice]:
        """The outputs in parts that begin a block and fit PART_BYTES, as far as 64 rows do."""
        rows = max(BLOCK, PART_BYTES // (dtype.itemsize * self.in_features) // BLOCK * BLOCK)
        return [slice(first, min(first + rows, self.out_features)) for first in range(0, self.out_features, rows)]

    def _written(self, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
        """Each part, written out; valid until the next one is."""
        numbers, width = self.numbers(), self.in_features
        for outputs in self._parts(dtype):
            count = outputs.stop - outputs.start
            piece = self.scratch.piece(count * width, dtype, self.weight.device).view(count, width)
            yield outputs, write_out(numbers, piece, first=outputs.start * width)

    def extra_repr(self) -> str:
        """What `print(model)` shows."""
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        """Move with the model, but keep the dtypes: `model.to(torch.bfloat16)` must not round scales."""
        before = dict(self._buffers)
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, old in before.items():
            new = self._buffers[name]
            if old is not None and new is not None and new.dtype != old.dtype:
                self._buffers[name] = new.to(old.dtype) if old.is_meta else old.to(new.device)
        return self


class _Product(torch.autograd.Function):
    """The product, and the gradient of its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: NF4Linear) -> Tensor:
        ctx.layer = layer
        return layer.multiply(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.layer.multiply_back(gradients[0]), None
