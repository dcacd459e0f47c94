"""What an optimizer does elementwise over flat float32 buffers: sums of gradients, and what surrounds Muon's products.

Flat buffers of P numbers hold all parameters end to end; a matrix is R * C of them from its start. Each function has a
twin in PyTorch, used off the CPU and where nothing is compiled; the compiled one makes one pass (Muon's directions:
two), and writes the rounded weights in passing. The formulas are in `trainer/muon.py`. AdamW stays with PyTorch's
fused kernel, which is one pass already.

Shape legend: P numbers of a flat buffer, G matrices of R rows and C columns.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from leveret.kernels.native.library import compiled, pointer, size


def muon_directions(
    gradients: Tensor, momenta: Tensor, starts: Tensor, shape: tuple[int, int], *, factor: float, momentum: float
) -> Tensor:
    """Add `factor` times the gradients to the momenta, in place; return the unit directions ahead, (G, R, C) bfloat16.

    gradients and momenta: (P,); starts: (G,) int64 on the CPU, where each matrix begins; shape: (R, C).
    """
    library = _library(gradients, momenta)
    if library is None:
        return plain_muon_directions(gradients, momenta, starts, shape, factor=factor, momentum=momentum)
    directions = torch.empty((len(starts), *shape), dtype=torch.bfloat16)
    library.leveret_muon_directions(
        *map(pointer, (gradients, momenta, starts)), size(len(starts)), size(shape[0] * shape[1]),
        ctypes.c_float(factor), ctypes.c_float(momentum), pointer(directions), torch.get_num_threads(),
    )  # fmt: skip
    return directions


def plain_muon_directions(
    gradients: Tensor, momenta: Tensor, starts: Tensor, shape: tuple[int, int], *, factor: float, momentum: float
) -> Tensor:
    """The same by PyTorch."""
    ahead = []
    for gradient, kept in zip(_pieces(gradients, starts, shape), _pieces(momenta, starts, shape), strict=True):
        scaled = gradient * factor
        kept.mul_(momentum).add_(scaled)
        ahead.append(scaled.add_(kept, alpha=momentum))
    directions = torch.stack(ahead)
    lengths: Tensor = torch.linalg.vector_norm(directions, dim=(1, 2), keepdim=True)
    return (directions / (lengths + 1e-7)).to(torch.bfloat16)


def muon_apply_(
    masters: Tensor, weights: Tensor | None, starts: Tensor, updates: Tensor, *, keep: float, step_size: float
) -> None:
    """masters <- keep * masters - step_size * updates, for the matrices from `starts` on; `weights` get the rounding.

    updates: (G, R, C) bfloat16.
    """
    library = _library(masters, updates)
    if library is None or (weights is not None and weights.dtype != torch.bfloat16):
        plain_muon_apply_(masters, weights, starts, updates, keep=keep, step_size=step_size)
        return
    library.leveret_muon_apply(
        *map(pointer, (masters, weights, starts)), size(len(starts)), size(updates[0].numel()), pointer(updates),
        ctypes.c_float(keep), ctypes.c_float(step_size), torch.get_num_threads(),
    )  # fmt: skip


def plain_muon_apply_(
    masters: Tensor, weights: Tensor | None, starts: Tensor, updates: Tensor, *, keep: float, step_size: float
) -> None:
    """The same by PyTorch."""
    shape = (updates.shape[1], updates.shape[2])
    for matrix, update in zip(_pieces(masters, starts, shape), updates, strict=True):
        matrix.mul_(keep).sub_(update.to(matrix.dtype), alpha=step_size)
    if weights is not None:
        for rounded, matrix in zip(_pieces(weights, starts, shape), _pieces(masters, starts, shape), strict=True):
            rounded.copy_(matrix)


def collect_(total: Tensor, gradient: Tensor, *, adds: bool) -> None:
    """total <- gradient, or total + gradient: a float32 sum of gradients in the model's dtype, of one shape."""
    library = _library(total, gradient)
    if library is not None and gradient.dtype == torch.bfloat16:
        library.leveret_collect(
            pointer(gradient), pointer(total), size(total.numel()), int(adds), torch.get_num_threads()
        )
    elif adds:
        total.add_(gradient)
    else:
        total.copy_(gradient)


def _library(*tensors: Tensor) -> ctypes.CDLL | None:
    """The compiled kernels, if all of these are whole tensors on the CPU."""
    if any(each.device.type != "cpu" or not each.is_contiguous() or type(each) is not Tensor for each in tensors):
        return None
    return compiled()


def _pieces(flat: Tensor, starts: Tensor, shape: tuple[int, int]) -> list[Tensor]:
    """The matrices of `shape` that begin at `starts`, as views."""
    count = shape[0] * shape[1]
    return [flat[start : start + count].view(shape) for start in starts.tolist()]
