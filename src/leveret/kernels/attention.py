"""Causal attention over grouped heads: the fast call for each shape, a plain twin, and the one mask they share.

    out = softmax(q k^T / sqrt(D) + mask) v          (Attention Is All You Need, 1706.03762)

Query head h reads key-value head h // (heads per group) (GQA, 2305.13245). Four cases, one function:

* the plain causal square (training without packing, first prefill): `is_causal`, no mask is ever built;
* anything else (packed documents, a window, ragged cache rows): one additive mask, built once per forward by
  `additive_mask` and shared by all layers;
* the square of a short sequence in bfloat16 on a CPU, when a gradient is wanted (fine-tuning on conversations):
  written as two batched products. SDPA's flash kernel there takes 3 to 5 times as long for 32 to 256 tokens, nearly all
  of it in backward (docs/log.md);
* one query against a cache (decoding): the query heads of a group become G queries of one key-value head. No key is
  copied, and bfloat16 on a CPU is several times faster than the grouped call.

Shape legend: B rows, T queries, S keys, H query heads, K key-value heads, D head width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SHORT_SQUARE_TOKENS = 256
"""Up to here the written-out causal square is the faster one to train through, in bfloat16 on a CPU."""


def attention(query: Tensor, key: Tensor, value: Tensor, *, mask: Tensor | None, is_causal: bool) -> Tensor:
    """Attend; query (B, H, T, D), key and value (B, K, S, D) -> (B, H, T, D).

    mask: additive, broadcastable to (B, 1, T, S), in the query's dtype; None with `is_causal` for a T = S square, None
    without it when every query may read every key.
    """
    assert mask is None or not is_causal, "a mask must hold its own causality"
    batch, heads, length, width = query.shape
    groups = key.shape[1]
    grouped = heads != groups
    if (is_causal or mask is not None) and _trains_short_square(query, key):
        return _dense(query, key, value, mask)
    if length == 1 and grouped:
        query = query.view(batch, groups, heads // groups, width)  # (B, K, H/K, D)
        grouped = False
    out: Tensor = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=is_causal, enable_gqa=grouped
    )
    return out if out.shape[1] == heads else out.reshape(batch, heads, length, width)


def _trains_short_square(query: Tensor, key: Tensor) -> bool:
    return (
        1 < query.shape[2] <= SHORT_SQUARE_TOKENS
        and query.shape[2] == key.shape[2]
        and query.dtype == torch.bfloat16
        and query.device.type == "cpu"
        and query.requires_grad
        and torch.is_grad_enabled()
    )


def _dense(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """Attention with all scores in memory; the query heads of a group are stacked, so no key is copied.

    mask: as in `attention`; None means the causal square.
    """
    batch, heads, length, width = query.shape
    groups = key.shape[1]
    stacked = query.reshape(batch * groups, -1, width)  # (B * K, H/K * T, D)
    if mask is None:
        mask = torch.full((1, 1, length, length), float("-inf"), dtype=query.dtype).triu_(1)
    added = mask.repeat(1, 1, heads // groups, 1).expand(batch, groups, -1, -1).flatten(0, 1)  # (B * K, H/K * T, S)
    scores = torch.baddbmm(added, stacked, key.reshape(-1, length, width).transpose(1, 2), alpha=width**-0.5)
    return torch.bmm(scores.softmax(dim=-1), value.reshape(-1, length, width)).view(batch, heads, length, width)


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
