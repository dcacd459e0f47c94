"""Self-attention of one layer, and the plan of a forward: what all layers share, decided once.

The four projections are separate Linears. Fusing q, k and v would save two small calls per layer, but LoRA, GPTQ and
every checkpoint address them one by one, and a swapped Linear must be found where people expect it.

Which mask a forward needs:

    no documents, no cache, T <= window        none: `is_causal`
    packed documents of like lengths           none: `is_causal` on one document a row (`documents.py`)
    packed documents otherwise, or T > window  one (B or 1, 1, T, T) mask
    cache, one token, all rows equally long    none: everything that is read may be seen
    cache, otherwise                           one (B or 1, 1, T, S) mask
    cache in blocks                            one for each piece (`paged_cache.py`)

Shape legend: B rows, T new tokens, S keys, H query heads, K key-value heads, D head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from leveret.kernels.attention import additive_mask, attention
from leveret.kernels.packed_attention import Documents, can_pack, find_documents, packed_attention
from leveret.model.cache import KVCache, Slots
from leveret.model.config import ModelConfig
from leveret.model.documents import DocumentGroups, group_documents
from leveret.model.linear import Linear
from leveret.model.paged_cache import PagedRows, Piece
from leveret.model.rope import RotaryEmbedding, rotate


@dataclass(frozen=True, kw_only=True)
class AttentionPlan:
    """What every layer of one forward needs besides its input."""

    cos: Tensor
    """(B or 1, 1, T, D)"""
    signed_sin: Tensor
    """(B or 1, 1, T, D)"""
    mask: Tensor | None
    """Additive, (B or 1, 1, T, S); None when `is_causal` says it all or every key may be read."""
    is_causal: bool
    """The plain causal square."""
    documents: DocumentGroups | None = None
    """Attend in this arrangement instead of the rows; cos and signed_sin are arranged so already."""
    cache: KVCache | None = None
    """Where keys and values are kept."""
    slots: Slots | None = None
    """Where in it, for this forward."""
    rows: PagedRows | None = None
    """Keys and values are kept in blocks."""
    pieces: tuple[Piece, ...] = ()
    """What attends together, with `rows`."""
    packed: PackedPlan | None = None
    """How the compiled kernel does it where it can; without a cache only."""


@dataclass(frozen=True, kw_only=True)
class PackedPlan:
    """What `packed_attention` needs for all layers of one forward."""

    documents: Documents
    cos: Tensor
    """(B * T, D)"""
    signed_sin: Tensor
    """(B * T, D)"""
    window: int | None


class SelfAttention(nn.Module):
    """Grouped-query attention with rotary positions: x (B, T, hidden) -> (B, T, hidden)."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        query_size = config.num_attention_heads * config.head_dim
        key_value_size = config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, query_size, bias=False)
        self.k_proj = Linear(config.hidden_size, key_value_size, bias=False)
        self.v_proj = Linear(config.hidden_size, key_value_size, bias=False)
        self.o_proj = Linear(query_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor, plan: AttentionPlan, only: Tensor | None = None) -> Tensor:
        """only: (N,) places in the flattened (B, T) -> (N, hidden), what these read; None: all."""
        read = self._mix(self.q_proj(x), self.k_proj(x), self.v_proj(x), plan)
        projected: Tensor = self.o_proj(read if only is None else read.flatten(0, 1).index_select(0, only))
        return projected

    def _mix(self, query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan) -> Tensor:
        """(B, T, heads * D) each -> (B, T, H * D), by the compiled kernel where it can."""
        packed = plan.packed
        if packed is None or not can_pack(query, key, value, head_dim=self.head_dim, documents=packed.documents):
            return self._attend(query, key, value, plan)
        return packed_attention(
            query, key, value, cos=packed.cos, signed_sin=packed.signed_sin, documents=packed.documents,
            head_dim=self.head_dim, window=packed.window,
        )  # fmt: skip

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan) -> Tensor:
        """The general way; (B, T, heads * D) each -> (B, T, H * D)."""
        batch = query.shape[0]
        query = self._heads(query, plan)  # (B, H, T, D)
        key, value = self._heads(key, plan), self._heads(value, plan)  # (B, K, T, D)
        query, key = rotate(query, plan.cos, plan.signed_sin), rotate(key, plan.cos, plan.signed_sin)
        if plan.rows is not None:
            return self._read_pieces(query, key, value, plan.rows, plan.pieces)
        if plan.cache is not None and plan.slots is not None:
            key, value = plan.cache.append(self.layer, key, value, plan.slots)  # (B, K, S, D)
        out = self._read(query, key, value, plan.mask, plan.is_causal)
        out = out.transpose(1, 2).flatten(2)  # (B, T, H * D)
        if plan.documents is not None:
            out = plan.documents.scatter(out, batch)
        return out

    def _read_pieces(
        self, query: Tensor, key: Tensor, value: Tensor, rows: PagedRows, pieces: tuple[Piece, ...]
    ) -> Tensor:
        """query (1, H, T, D), key and value (1, K, T, D) -> (1, T, H * D); the cache then holds them."""
        rows.write(self.layer, key, value)
        outs = []
        for piece in pieces:
            if (fresh := self._read_fresh(query, key, value, piece, rows.cache.window)) is not None:
                outs.append(fresh)
                continue
            keys, values = rows.read(self.layer, piece, key, value)
            out = self._read(piece.cut(query), keys, values, piece.mask, piece.is_causal)  # (R, H, tokens, D)
            outs.append(out.transpose(1, 2).reshape(piece.rows * piece.tokens, -1))
        return torch.cat(outs).unsqueeze(0)

    def _read_fresh(self, query: Tensor, key: Tensor, value: Tensor, piece: Piece, window: int | None) -> Tensor | None:
        """A piece of which the cache held nothing, by the compiled kernel; None where that cannot do it."""
        if piece.blocks is not None or piece.tokens == 1 or type(self)._read is not SelfAttention._read:
            return None
        count = piece.rows * piece.tokens
        mine = slice(piece.first, piece.first + count)
        flat = [x[0, :, mine].transpose(0, 1).reshape(1, count, -1) for x in (query, key, value)]
        starts = torch.arange(0, count, piece.tokens)
        documents = Documents(starts=starts, lengths=torch.full_like(starts, piece.tokens), cover_all=True)
        if not can_pack(*flat, head_dim=self.head_dim, documents=documents):
            return None
        cos = flat[0].new_ones(count, self.head_dim)  # they have been turned already
        return packed_attention(
            *flat, cos=cos, signed_sin=torch.zeros_like(cos), documents=documents, head_dim=self.head_dim, window=window
        )[0]

    def _read(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
        """query (B, H, T, D), key and value (B, K, S, D) -> (B, H, T, D)."""
        return attention(query, key, value, mask=mask, is_causal=is_causal)

    def _heads(self, x: Tensor, plan: AttentionPlan) -> Tensor:
        """(B, T, heads * D) -> (B, heads, T, D); B and T are documents and their tokens if the plan groups them."""
        if plan.documents is not None:
            x = plan.documents.gather(x)
        return x.view(*x.shape[:2], -1, self.head_dim).transpose(1, 2)


def plan_without_cache(
    config: ModelConfig,
    rope: RotaryEmbedding,
    shape: tuple[int, int],
    *,
    positions: Tensor | None,
    document_ids: Tensor | None,
    dtype: torch.dtype,
    device: torch.device,
) -> AttentionPlan:
    """Plan a forward over whole rows: input of `shape` (B, T), optional positions and document ids of that shape."""
    length = shape[1]
    along = torch.arange(length, device=device).unsqueeze(0)  # (1, T)
    turned = along if positions is None else positions
    lengths = _sequence_lengths(turned, document_ids) if config.rope.kind == "dynamic" else None
    cos, signed_sin = rope(turned, lengths, dtype)
    packed = _packed_plan(config, shape, document_ids, cos, signed_sin)
    if document_ids is not None and _is_right_padding(document_ids):
        document_ids = None
    if document_ids is not None and (groups := group_documents(document_ids, longest=config.sliding_window)):
        cos, signed_sin = (_grouped(angles, groups, shape) for angles in (cos, signed_sin))
        causal = groups.shape[1] > 1
        return AttentionPlan(
            cos=cos, signed_sin=signed_sin, mask=None, is_causal=causal, documents=groups, packed=packed
        )
    inside_window = config.sliding_window is None or length <= config.sliding_window
    mask = None
    if document_ids is not None or not inside_window:
        mask = additive_mask(
            along,
            along,
            window=None if inside_window else config.sliding_window,
            query_documents=document_ids,
            key_documents=document_ids,
            dtype=dtype,
        )
    is_causal = mask is None and length > 1
    return AttentionPlan(cos=cos, signed_sin=signed_sin, mask=mask, is_causal=is_causal, packed=packed)


def _packed_plan(
    config: ModelConfig, shape: tuple[int, int], document_ids: Tensor | None, cos: Tensor, signed_sin: Tensor
) -> PackedPlan | None:
    """For bfloat16 on a CPU: the documents of these rows, the whole row being one without `document_ids`."""
    if cos.device.type != "cpu" or cos.dtype != torch.bfloat16:
        return None
    batch, length = shape
    documents = find_documents(torch.zeros(shape, dtype=torch.long) if document_ids is None else document_ids)
    flat_cos, flat_sin = (
        each.expand(batch, 1, length, -1).reshape(batch * length, -1).contiguous() for each in (cos, signed_sin)
    )
    return PackedPlan(documents=documents, cos=flat_cos, signed_sin=flat_sin, window=config.sliding_window)


def plan_with_cache(
    config: ModelConfig, rope: RotaryEmbedding, length: int, *, cache: KVCache, dtype: torch.dtype
) -> AttentionPlan:
    """Plan a forward of `length` tokens per row that continues what `cache` holds."""
    slots = cache.reserve(length)
    lengths = None
    if config.rope.kind == "dynamic":
        lengths = cache.planned_lengths.to(slots.positions.device).unsqueeze(1)  # (B, 1)
    cos, signed_sin = rope(slots.positions, lengths, dtype)
    window = config.sliding_window
    mask, is_causal = None, False
    if slots.uniform and slots.end == length and (window is None or length <= window):
        is_causal = length > 1
    elif not (slots.uniform and length == 1):
        read = torch.arange(slots.first, slots.end, device=slots.positions.device).unsqueeze(0)  # (1, S)
        mask = additive_mask(slots.positions, read, window=window, dtype=dtype)
    return AttentionPlan(cos=cos, signed_sin=signed_sin, mask=mask, is_causal=is_causal, cache=cache, slots=slots)


def plan_with_rows(config: ModelConfig, rope: RotaryEmbedding, rows: PagedRows, *, dtype: torch.dtype) -> AttentionPlan:
    """Plan a forward over sequences whose keys and values are kept in blocks."""
    cos, signed_sin = rope(rows.positions, rows.planned_lengths if config.rope.kind == "dynamic" else None, dtype)
    return AttentionPlan(
        cos=cos, signed_sin=signed_sin, mask=None, is_causal=False, rows=rows, pieces=tuple(rows.pieces(dtype))
    )


def _grouped(angles: Tensor, groups: DocumentGroups, shape: tuple[int, int]) -> Tensor:
    """(B or 1, 1, T, D) for packed rows of `shape` -> (N, 1, L, D) for grouped documents."""
    packed = angles.squeeze(1).expand(shape[0], -1, -1)  # (B, T, D)
    return groups.gather(packed).unsqueeze(1)


def _is_right_padding(document_ids: Tensor) -> bool:
    """Every row is one document and then padding. Causality alone keeps the padding out, so no mask is needed."""
    same = document_ids[:, 1:] == document_ids[:, :-1]
    return bool((same | (document_ids[:, 1:] < 0)).all()) and bool((document_ids[:, 0] >= 0).all())


def _sequence_lengths(positions: Tensor, document_ids: Tensor | None) -> Tensor:
    """The length of the sequence that each token belongs to: (B, T), or (B, 1) without documents."""
    if document_ids is None:
        return positions.amax(dim=1, keepdim=True) + 1
    index = document_ids.long() + 1  # padding is -1
    longest = torch.zeros(index.shape[0], int(index.max()) + 1, dtype=torch.long, device=positions.device)
    longest = longest.scatter_reduce(1, index, positions.expand_as(index).long() + 1, reduce="amax")
    return longest.gather(1, index)
