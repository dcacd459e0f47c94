"""The arithmetic of merging on blocks of stored values: weighted sums, inner products, is all of it finite?

Sums are computed in float32 and rounded once. The compiled kernels read bfloat16 and write bfloat16 in one pass, where
PyTorch makes float32 copies of every block, which no longer fit in the core's cache; they run in the thread that calls
them, for merging divides its work by blocks. The functions named `plain_` are their twins, and serve all other dtypes.

Shape legend: N models, P values of a block.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from leveret.allocator import PAGE
from leveret.kernels.native.library import native_for, pointer, size

GRAM_PART = 1 << 15
"""Values that `plain_gram_matrix` takes at a time."""


def weighted_sum(values: Sequence[Tensor], coefficients: Sequence[float], dtype: torch.dtype = torch.float32) -> Tensor:
    """Σ c_i x_i of N blocks (P,), in float32, rounded to `dtype`.

    Models whose coefficient is 0 are not looked at (0 times infinity is no number). Written as
    (Σc) x_a + Σ c_i (x_i - x_a) around the model a of the largest coefficient, which is exact where all x are equal
    and Σc is 1, and where only one c is not 0.
    """
    library = native_for(*values) if dtype == torch.bfloat16 else None
    if library is None or not any(coefficients):
        return plain_weighted_sum(values, coefficients, dtype)
    anchor, total = _around(coefficients)
    result = _page_aligned(values[0].numel(), dtype)
    library.leveret_weighted_sum(
        _pointers(values), (ctypes.c_float * len(values))(*coefficients), size(len(values)), size(anchor),
        ctypes.c_float(total), size(result.numel()), pointer(result),
    )  # fmt: skip
    return result


def plain_weighted_sum(values: Sequence[Tensor], coefficients: Sequence[float], dtype: torch.dtype) -> Tensor:
    """The same by PyTorch."""
    if not any(coefficients):
        return torch.zeros_like(values[0], dtype=dtype)
    place, total = _around(coefficients)
    anchor = values[place].float()
    result = anchor * total
    for number, (coefficient, value) in enumerate(zip(coefficients, values, strict=True)):
        if number != place and coefficient != 0:
            result.add_(value.float() - anchor, alpha=coefficient)
    return result.to(dtype)


def gram_matrix(values: Sequence[Tensor], base: Tensor | None = None) -> Tensor:
    """Inner products (N, N) of N blocks (P,), or of their changes from `base`, in float64.

    Those of a tensor are the sum over its blocks. The compiled kernel sums runs of 4,096 products in float32.
    """
    library = native_for(*values, *([] if base is None else [base]))
    if library is None:
        return plain_gram_matrix(values, base)
    result = torch.empty(len(values), len(values), dtype=torch.float64)
    library.leveret_gram(_pointers(values), pointer(base), size(len(values)), size(values[0].numel()), pointer(result))
    return result


def plain_gram_matrix(values: Sequence[Tensor], base: Tensor | None = None) -> Tensor:
    """The same by PyTorch: part by part, so that the copies in float64 stay in the processor's cache."""
    result = torch.zeros(len(values), len(values), dtype=torch.float64)
    for start in range(0, values[0].numel(), GRAM_PART):
        parts = torch.stack([value[start : start + GRAM_PART].float() for value in values])
        if base is not None:
            parts -= base[start : start + GRAM_PART].float()
        wide = parts.double()
        result.addmm_(wide, wide.T)
    return result


def all_finite(values: Tensor) -> bool:
    """Whether no value is infinite or no number."""
    library = native_for(values)
    if library is None:
        return bool(torch.isfinite(values).all())
    return bool(library.leveret_all_finite(pointer(values), size(values.numel())))


def _around(coefficients: Sequence[float]) -> tuple[int, float]:
    """The model with the largest coefficient, and the sum of all: 1 where only rounding is between."""
    total = math.fsum(coefficients)
    place = max(range(len(coefficients)), key=lambda number: abs(coefficients[number]))
    return place, 1.0 if abs(total - 1) < 1e-9 else total


def _page_aligned(count: int, dtype: torch.dtype) -> Tensor:
    """An empty tensor (count,) that begins at a page: it can be written past the system's cache as it lies."""
    room = torch.empty(count * dtype.itemsize + PAGE, dtype=torch.uint8)
    start = -room.data_ptr() % PAGE
    return room[start : start + count * dtype.itemsize].view(dtype)


def _pointers(tensors: Sequence[Tensor]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(tensor.data_ptr() for tensor in tensors))
