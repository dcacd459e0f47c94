"""Causal attention over packed documents, rotary positions included, on the projections as they are.

    turned q and k = rotate(q), rotate(k)                                        (RoFormer, 2104.09864)
    out = softmax(q k^T / sqrt(D)) v within each document, causal, over the last `window` tokens

The compiled kernel takes a document and a key-value head at a time and needs no arrangement of its own: no gather, no
padding, no mask. Scores exist for a block of queries at a time, and only where they may be read. Products are of
bfloat16 numbers with float32 sums, the softmax is float32. `plain_packed_attention` is the same written out.

Shape legend: B rows, T tokens of a row, H query heads, K key-value heads, D head width, N documents.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from leveret.kernels.native.library import native_for, pointer, size

LANES = 32
"""Heads whose width is a multiple of this are served."""


@dataclass(frozen=True, kw_only=True)
class Documents:
    """The documents of packed rows: each is a run of tokens, found in rows laid end to end."""

    starts: Tensor
    """(N,) int64, on the CPU."""
    lengths: Tensor
    """(N,) int64, on the CPU."""
    cover_all: bool
    """Every token belongs to one (no padding)."""


def find_documents(document_ids: Tensor) -> Documents:
    """The documents in document_ids (B, T): runs of one id >= 0 within a row."""
    batch, length = document_ids.shape
    changes = torch.ones_like(document_ids, dtype=torch.bool)
    changes[:, 1:] = document_ids[:, 1:] != document_ids[:, :-1]
    starts = torch.nonzero(changes.flatten()).squeeze(1)  # flat position where each run begins
    lengths = torch.diff(starts, append=starts.new_tensor([batch * length]))
    kept = document_ids.flatten()[starts] >= 0
    return Documents(starts=starts[kept], lengths=lengths[kept], cover_all=bool(kept.all()))


def can_pack(query: Tensor, key: Tensor, value: Tensor, *, head_dim: int, documents: Documents) -> bool:
    """Whether `packed_attention` serves these and has work for all threads: a task is a document and key-value head."""
    tasks = len(documents.starts) * (key.shape[-1] // head_dim)
    if head_dim % LANES or tasks < torch.get_num_threads():
        return False
    return native_for(query, key, value) is not None


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, *, cos: Tensor, signed_sin: Tensor, documents: Documents,
    head_dim: int, window: int | None,
) -> Tensor:  # fmt: skip
    """query (B, T, H * D), key and value (B, T, K * D), cos and signed_sin (B * T, D) -> (B, T, H * D).

    Padding gets zeros. Needs `can_pack`.
    """
    out: Tensor = _PackedAttention.apply(  # type: ignore[no-untyped-call]
        query, key, value, cos, signed_sin, documents, head_dim, window or 0
    )
    return out


def plain_packed_attention(
    query: Tensor, key: Tensor, value: Tensor, *, cos: Tensor, signed_sin: Tensor, documents: Documents,
    head_dim: int, window: int | None,
) -> Tensor:  # fmt: skip
    """The same, one document after another, in the dtype of its arguments."""
    flat = [x.reshape(-1, x.shape[-1] // head_dim, head_dim) for x in (query, key, value)]  # (B * T, heads, D)
    repeat = flat[0].shape[1] // flat[1].shape[1]
    out = torch.zeros_like(flat[0])
    for start, length in zip(documents.starts.tolist(), documents.lengths.tolist(), strict=True):
        rows = slice(start, start + length)
        q, k = (_turn(x[rows], cos[rows], signed_sin[rows]).transpose(0, 1) for x in flat[:2])  # (heads, L, D)
        v = flat[2][rows].transpose(0, 1)
        k, v = k.repeat_interleave(repeat, dim=0), v.repeat_interleave(repeat, dim=0)
        along = torch.arange(length)
        distance = along.unsqueeze(1) - along
        hidden = (distance < 0) | (distance >= (window or length))
        scores = (q @ k.transpose(1, 2) * head_dim**-0.5).masked_fill(hidden, float("-inf"))
        out = out.index_copy(0, along + start, (scores.softmax(dim=-1) @ v).transpose(0, 1))
    return out.view_as(query)


def _turn(x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
    return x * cos.unsqueeze(1) + x.roll(x.shape[-1] // 2, dims=-1) * signed_sin.unsqueeze(1)


class _PackedAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, cos: Tensor, signed_sin: Tensor, documents: Documents,
        head_dim: int, window: int,
    ) -> Tensor:  # fmt: skip
        library = native_for(query, key, value, cos, signed_sin)
        assert library is not None
        ctx.counts = (len(documents.starts), query.shape[-1] // head_dim, key.shape[-1] // head_dim, head_dim, window)
        out = torch.empty_like(query) if documents.cover_all else torch.zeros_like(query)
        log_sums = torch.empty(query.numel() // head_dim, dtype=torch.float32)
        library.leveret_packed_attention(
            *map(pointer, (query, key, value, cos, signed_sin, documents.starts, documents.lengths)),
            *map(size, ctx.counts), pointer(out), pointer(log_sums), torch.get_num_threads(),
        )  # fmt: skip
        ctx.covers_all = documents.cover_all
        ctx.save_for_backward(query, key, value, out, log_sums, cos, signed_sin, documents.starts, documents.lengths)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors
        slope = grads[0].contiguous()
        make = torch.empty_like if ctx.covers_all else torch.zeros_like
        dquery, dkey, dvalue = (make(x) for x in saved[:3])
        library = native_for(*saved[:3])
        assert library is not None
        library.leveret_packed_attention_backward(
            pointer(slope), *map(pointer, saved), *map(size, ctx.counts),
            pointer(dquery), pointer(dkey), pointer(dvalue), torch.get_num_threads(),
        )  # fmt: skip
        return dquery, dkey, dvalue, None, None, None, None, None
