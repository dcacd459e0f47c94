"""Muon's direction: matrices with their singular values brought to about 1, by products alone.

U V^T of X = U S V^T is found without a decomposition: with X scaled to norm 1, five rounds of the odd polynomial

    X <- a X + b (X X^T) X + c (X X^T)^2 X          a, b, c = 3.4445, -4.7750, 2.0315

push every singular value towards 1 (to between about 0.7 and 1.2, which is near enough and fast; Jordan et al. 2024).
Products are in bf16, as published. The compiled kernel gives each thread a matrix, which stays in the core's cache for
all rounds, and computes one half of what is symmetric; PyTorch takes all matrices of one shape through together, which
is better for matrices that fill a machine on their own.

Shape legend: G matrices of R rows and C columns.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from leveret.kernels.native.library import native_for, pointer, size

ROUNDS = 5
_A, _B, _C = 3.4445, -4.7750, 2.0315

LARGEST_SIDE = 1024
"""The shorter side of a matrix that is still left to one thread."""


def orthogonalize(matrices: Tensor) -> Tensor:
    """(G, R, C) -> (G, R, C), in the same dtype, of any scale."""
    x = matrices.to(torch.bfloat16)
    unit = x / (torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True) + 1e-7)
    return orthogonalize_unit_(unit).to(matrices.dtype)


def orthogonalize_unit_(x: Tensor) -> Tensor:
    """The same for bf16 matrices (G, R, C) of norm 1 (or less), which it may overwrite."""
    number, rows, columns = x.shape
    threads = torch.get_num_threads()
    library = native_for(x)
    if library is None or min(rows, columns) > LARGEST_SIDE or number < threads:
        return plain_orthogonalize_unit(x)
    library.leveret_orthogonalize(
        pointer(x), size(number), size(rows), size(columns), ROUNDS,
        ctypes.c_float(_A), ctypes.c_float(_B), ctypes.c_float(_C), threads,
    )  # fmt: skip
    return x


def plain_orthogonalize_unit(x: Tensor) -> Tensor:
    """The same by PyTorch."""
    tall = x.shape[1] > x.shape[2]  # then X^T X is the smaller square, and the polynomial goes on the right
    for _ in range(ROUNDS):
        turned = x.transpose(1, 2)
        square = torch.bmm(turned, x) if tall else torch.bmm(x, turned)  # (G, r, r) with r = min(R, C)
        square = torch.baddbmm(square, square, square, beta=_B, alpha=_C)
        x = torch.baddbmm(x, x, square, beta=_A) if tall else torch.baddbmm(x, square, x, beta=_A)
    return x


def exact_orthogonalize(matrix: Tensor) -> Tensor:
    """What all of them approximate: U V^T of one (R, C) matrix."""
    u, _, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    exact: Tensor = (u @ vh).to(matrix.dtype)
    return exact
