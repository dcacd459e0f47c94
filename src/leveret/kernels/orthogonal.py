"""Muon's direction: matrices with their singular values brought to about 1, by products alone.

U V^T of X = U S V^T is found without a decomposition, by rounds of an odd polynomial

    X <- a X + b (X X^T) X + c (X X^T)^2 X

that bring every singular value near 1. One polynomial for five rounds (3.4445, -4.7750, 2.0315; Jordan et al. 2024)
leaves values between 0.68 and 1.2. Here each round has the polynomial that is farthest from 1 by the least for what the
round before left (a minimax polynomial; "The Polar Express", arXiv 2505.16932), and the first round scales X by its
Schatten 4-norm, ||X||_4 = ||X X^T||_F^(1/2), a bound of the largest singular value that costs nothing and lies half as
high as the Frobenius norm for the momenta of a small model. Four rounds bring all values above 0.002 of that norm to
between 0.67 and 1.33, and come as near to U V^T as five of the one polynomial (docs/log.md).

Products are in bf16, as published. The compiled kernel gives each thread a matrix, which stays in the core's cache for
all rounds, and computes one half of what is symmetric; PyTorch takes all matrices of one shape through together, which
is better for matrices that fill a machine on their own.

Shape legend: G matrices of R rows and C columns.
"""

from __future__ import annotations

import ctypes
from itertools import chain

import torch
from torch import Tensor

from leveret.kernels.native.library import native_for, pointer, size

ROUNDS = (
    (8.4267878, -24.9361340, 18.4924929),
    (4.0709380, -2.9691611, 0.5470486),
    (3.6777917, -2.6964204, 0.5165879),
    (2.7819505, -2.0749271, 0.4635008),
)
"""a, b, c of each round: minimax polynomials on [0.002, 1] and on what each leaves. The second and third are those of
x / 1.01, so that a value a little above the bound, by rounding, does not run away."""

SLACK = 1.02
"""The scale is so much larger than the norm, for the same reason."""

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
        pointer(x), size(number), size(rows), size(columns), len(ROUNDS),
        (ctypes.c_float * (3 * len(ROUNDS)))(*chain(*ROUNDS)), ctypes.c_float(SLACK), threads,
    )  # fmt: skip
    return x


def plain_orthogonalize_unit(x: Tensor) -> Tensor:
    """The same by PyTorch."""
    tall = x.shape[1] > x.shape[2]  # then X^T X is the smaller square, and the polynomial goes on the right
    for number, (a, b, c) in enumerate(ROUNDS):
        turned = x.transpose(1, 2)
        square = torch.bmm(turned, x) if tall else torch.bmm(x, turned)  # (G, r, r) with r = min(R, C)
        if number == 0:
            lengths: Tensor = torch.linalg.vector_norm(square, dim=(1, 2), keepdim=True, dtype=torch.float32)
            scale = torch.where(lengths > 0, 1 / (SLACK * lengths.sqrt()), 1.0)
            x, square = (x * scale).to(x.dtype), (square * scale.square()).to(x.dtype)
        square = torch.baddbmm(square, square, square, beta=b, alpha=c)
        x = torch.baddbmm(x, x, square, beta=a) if tall else torch.baddbmm(x, square, x, beta=a)
    return x


def exact_orthogonalize(matrix: Tensor) -> Tensor:
    """What all of them approximate: U V^T of one (R, C) matrix."""
    u, _, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    exact: Tensor = (u @ vh).to(matrix.dtype)
    return exact
