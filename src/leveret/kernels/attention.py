"""Causal attention over grouped heads: the fast call for each shape, a plain twin, and the one mask they share.

    out = softmax(q k^T / sqrt(D) + mask) v          (Attention Is All You Need, 1706.03762)

Query head h reads key-value head h // (heads per group) (GQA, 2305.13245). Three cases, one function:

* the plain causal square (training without packing, first prefill): `is_causal`, no mask is ever built;
* anything else (packed documents, a window, ragged cache rows): one additive mask, built once per forward by
  `additive_mask` and shared by all layers;
* one query against a cache (decoding): the query heads of a group become G queries of one key-value head. No key is
  copied, and bfloat16 on a CPU is several times faster than the grouped call.

Shape legend: B rows, T queries, S keys, H query heads, K key-value heads, D head width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def attention(query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None, is_causal: bool) -> Tensor:
    """Attend; query (B, H, T, D), key and value (B, K, S, D) -> (B, H, T, D).

    mask: additive, broadcastable to (B, 1, T, S), in the query's dtype; None with `is_causal` for a T = S square, None
    without it when every query may read every key.
    """
    assert mask is None or not is_causal, "a mask must hold its own causality"
    batch, heads, length, width = query.shape
    groups = key.shape[1]
    grouped = heads != groups
    if length == 1 and grouped:
        query = query.view(batch, groups, heads // groups, width)  # (B, K, H/K, D)
        grouped = False
    out: Tensor = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=is_causal, enable_gqa=grouped
    )
    return out if out.shape[1] == heads else out.reshape(batch, heads, length, width)


def plain_attention(query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None, is_causal: bool) -> Tensor:
    """The same as `attention`, written out, scores in float32."""
    repeat = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeat, dim=1), value.repeat_interleave(repeat, dim=1)  # (B, H, S, D)
    scores = query.float() @ key.float().transpose(-1, -2) / math.sqrt(query.shape[-1])  # (B, H, T, S)
    if is_causal:
        square = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
        scores = scores.masked_fill(square.triu(1), float("-inf"))
    if mask is not None:
        scores = scores + mask.float()
    return (scores.softmax(dim=-1) @ value.float()).to(query.dtype)


def additive_mask(
    query_positions: Tensor,
    key_positions: Tensor,
    *,
    window: int | None,
    query_documents: Tensor | None = None,
    key_documents: Tensor | None = None,
    dtype: torch.dtype,
) -> Tensor:
    """0 where a query may read a key, -inf elsewhere: query (B, T), key (B, S) positions -> (B, 1, T, S).

    A key is read if it is not later, less than `window` positions back, and of the same document (when documents are
    given). Positions here count along the row, also when documents restart their own. Every query can read itself,
    so that no row of the softmax is empty: padding (document -1) reads padding.
    """
    distance = query_positions.unsqueeze(-1) - key_positions.unsqueeze(-2)  # (B, T, S)
    allowed = distance >= 0
    if window is not None:
        allowed &= distance < window
    if query_documents is not None and key_documents is not None:
        allowed = allowed & (query_documents.unsqueeze(-1) == key_documents.unsqueeze(-2))
    mask = torch.zeros(allowed.shape, dtype=dtype, device=allowed.device)
    return mask.masked_fill_(~allowed, float("-inf")).unsqueeze(1)
