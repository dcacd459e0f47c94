"""The Triton program behind `triton_product.py`; importing this file imports Triton, so only that module does.

One instance multiplies all M rows with BLOCK_N outputs, over a run of words. A word holds FIELDS = 32 / BITS levels of
consecutive inputs of one output, so neighbors in memory are outputs, and field j of BLOCK_W words is a matrix
(BLOCK_W, BLOCK_N) that meets every FIELDS-th input of x. Each word is read once and nothing has to change places:

    sum += x[:, j::FIELDS] @ ((level_j - zero) * scale)        for j in 0 .. FIELDS - 1

The weight is computed in float32 and rounded once to the dtype of x, as the plain twin does; sums are float32.

Shape legend: M rows, N outputs, I inputs, W = I / FIELDS words, G groups, P instances that share an output's words.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["M", "W"])  # type: ignore[untyped-decorator]
def few_rows(
    x: tl.tensor,  # (M, I) 16 bits
    words: tl.tensor,  # (W, N) int32
    zeros: tl.tensor,  # (G, N / FIELDS) int32
    scales: tl.tensor,  # (G, N) float16
    group_of_input: tl.tensor,  # (I,) int32
    out: tl.tensor,  # (P, M, N)
    M: tl.tensor,
    N: tl.tensor,
    W: tl.tensor,
    words_each: tl.tensor,  # of an instance; a multiple of BLOCK_W
    BITS: tl.constexpr,
    OFFSET: tl.constexpr,  # what is missing from the zero points, modulo 2**BITS
    SPAN: tl.constexpr,  # aligned runs of so many inputs are in one group: 1, FIELDS or FIELDS * BLOCK_W
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_W: tl.constexpr,
) -> None:
    FIELDS: tl.constexpr = 32 // BITS
    m = tl.arange(0, BLOCK_M)[:, None]
    n = (tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N))[None, :]
    first = tl.program_id(1) * words_each
    last = tl.minimum(first + words_each, W)
    total = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for begin in range(first, last, BLOCK_W):
        w = begin + tl.arange(0, BLOCK_W)
        there = (w < last)[:, None] & (n < N)
        packed = tl.load(words + w[:, None] * N + n, mask=there, other=0)
        if SPAN == FIELDS * BLOCK_W:
            scale, zero = _group(scales, zeros, group_of_input, begin * FIELDS, n, N, n < N, BITS, OFFSET)
        elif SPAN == FIELDS:
            of_word = tl.where(w < last, w, first)[:, None] * FIELDS
            scale, zero = _group(scales, zeros, group_of_input, of_word, n, N, there, BITS, OFFSET)
        for field in tl.static_range(FIELDS):
            if SPAN == 1:
                of_input = tl.where(w < last, w, first)[:, None] * FIELDS + field
                scale, zero = _group(scales, zeros, group_of_input, of_input, n, N, there, BITS, OFFSET)
            level = (packed >> (field * BITS)) & ((1 << BITS) - 1)
            weight = ((level - zero).to(tl.float32) * scale).to(x.dtype.element_ty)
            inputs = (w * FIELDS + field)[None, :]
            rows = tl.load(x + m * (W * FIELDS) + inputs, mask=(m < M) & (w < last)[None, :], other=0.0)
            total = tl.dot(rows, weight, total)
    place = tl.program_id(1) * M * N + m * N + n
    tl.store(out + place, total.to(out.dtype.element_ty), mask=(m < M) & (n < N))


@triton.jit  # type: ignore[untyped-decorator]
def _group(
    scales: tl.tensor,
    zeros: tl.tensor,
    group_of_input: tl.tensor,
    inputs: tl.tensor,
    n: tl.tensor,
    N: tl.tensor,
    mask: tl.tensor,
    BITS: tl.constexpr,
    OFFSET: tl.constexpr,
) -> tl.tensor:
    """The scales, float32, and zero points of the groups that these inputs are in, for outputs n."""
    FIELDS: tl.constexpr = 32 // BITS
    group = tl.load(group_of_input + inputs)
    scale = tl.load(scales + group * N + n, mask=mask, other=0.0).to(tl.float32)
    packed = tl.load(zeros + group * (N // FIELDS) + n // FIELDS, mask=mask, other=0)
    return scale, ((packed >> (n % FIELDS * BITS)) + OFFSET) & ((1 << BITS) - 1)
