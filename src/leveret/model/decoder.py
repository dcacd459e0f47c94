"""The decoder: one definition for training, evaluation, roll-outs and serving; the KV cache is an argument.

    x = embed(ids);  per layer: x += attention(norm(x)); x += feed_forward(norm(x));  logits = lm_head(norm(x))

Modules are named as in Hugging Face checkpoints (`layers.0.self_attn.q_proj`, without the leading `model.`), so LoRA,
quantization and parallelism find their Linears from outside by the names people know. Nothing here knows about them.

`hidden` stops before the head. Training multiplies by `lm_head.weight` itself, in chunks (`kernels/cross_entropy.py`);
serving asks for the one position per row that it needs. Whole logits are for inspection and small inputs.

Shape legend: B rows, T tokens, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import MutableSequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leveret.model.attention import AttentionPlan, SelfAttention, plan_with_cache, plan_with_rows, plan_without_cache
from leveret.model.cache import KVCache
from leveret.model.config import ModelConfig
from leveret.model.feed_forward import FeedForward
from leveret.model.linear import Linear
from leveret.model.moe import SparseMixture
from leveret.model.norm import RMSNorm
from leveret.model.paged_cache import PagedRows
from leveret.model.rope import RotaryEmbedding


class Decoder(nn.Module):
    """A decoder-only transformer: `model(ids)` with ids (B, T) returns logits (B, T, V)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = _norm(config)
        self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)
        self.rope = RotaryEmbedding(config)
        self.tie_weights()

    def tie_weights(self) -> None:
        """Make the head the embedding matrix, if the config says so; call again after replacing either.

        A head that something is wrapped around is left alone: what it wraps was tied before.
        """
        if self.config.tie_word_embeddings and isinstance(self.lm_head, nn.Linear):
            self.lm_head.weight = self.embed_tokens.weight

    def forward(
        self,
        input_ids: Tensor,
        *,
        positions: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: KVCache | PagedRows | None = None,
        last_only: bool = False,
        logits_at: Tensor | None = None,
    ) -> Tensor:
        """Logits (B, T, V) for input_ids (B, T), or (B, 1, V) for one position of each row.

        last_only: only the last column. logits_at: (B,), only this column of each row (the last true one of a
        right-padded batch). The other arguments are those of `hidden`.
        """
        hidden = self.hidden(input_ids, positions=positions, document_ids=document_ids, cache=cache)
        if logits_at is not None:
            rows = torch.arange(hidden.shape[0], device=hidden.device)
            hidden = hidden[rows, logits_at.to(hidden.device)].unsqueeze(1)
        elif last_only:
            hidden = hidden[:, -1:]
        logits: Tensor = self.lm_head(hidden)
        return logits

    def hidden(
        self,
        input_ids: Tensor,
        *,
        positions: Tensor | None = None,
        document_ids: Tensor | None = None,
        cache: KVCache | PagedRows | None = None,
        router: MutableSequence[Tensor] | None = None,
        only: Tensor | None = None,
    ) -> Tensor:
        """The states after the final norm, (B, T, H).

        positions: (B, T), each document's own count from 0; None: 0 .. T - 1.
        document_ids: (B, T); a token attends only within its document; -1 is padding.
        cache: continue what it holds, and add these tokens to it; positions follow from it, so neither may be given.
        With `PagedRows`, input_ids are its `ids`: one row for all sequences.
        router: collects (`moe.RouterLogits`) each layer's router logits (B * T, experts), for the balance loss.
        only: (N,) places in the flattened (B, T); the states there, (N, H). The last layer computes no others, of which
        nothing else depends: where half of the positions train nothing, that is a third of its work.
        """
        x = F.embedding(input_ids, self.embed_tokens.weight)  # (B, T, H)
        plan = self._plan(x, positions, document_ids, cache)
        *inner, last = self.layers
        for layer in inner:
            x = layer(x, plan, router)
        x = last(x, plan, router) if only is None else last(x, plan, router, only)
        if isinstance(cache, KVCache):
            cache.advance(input_ids.shape[1])
        out: Tensor = self.norm(x)
        return out

    def _plan(
        self, x: Tensor, positions: Tensor | None, document_ids: Tensor | None, cache: KVCache | PagedRows | None
    ) -> AttentionPlan:
        batch, length, _ = x.shape
        if cache is not None:
            assert positions is None and document_ids is None, "with a cache, positions follow from the cache"
            if isinstance(cache, PagedRows):
                return plan_with_rows(self.config, self.rope, cache, dtype=x.dtype)
            return plan_with_cache(self.config, self.rope, length, cache=cache, dtype=x.dtype)
        return plan_without_cache(
            self.config,
            self.rope,
            (batch, length),
            positions=positions,
            document_ids=document_ids,
            dtype=x.dtype,
            device=x.device,
        )


class DecoderLayer(nn.Module):
    """Attention, then feed-forward or experts, each on the normed stream and added to it."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.input_layernorm = _norm(config)
        self.self_attn = SelfAttention(config, layer)
        self.post_attention_layernorm = _norm(config)
        self.mlp: FeedForward | SparseMixture
        if config.moe is None:
            self.mlp = FeedForward(config.hidden_size, config.intermediate_size)
        else:
            self.mlp = SparseMixture(config.hidden_size, config.intermediate_size, config.moe)

    def forward(
        self,
        x: Tensor,
        plan: AttentionPlan,
        router: MutableSequence[Tensor] | None = None,
        only: Tensor | None = None,
    ) -> Tensor:
        """x (B, T, H) -> (B, T, H); only: (N,) places in the flattened (B, T) -> (N, H)."""
        if only is not None and isinstance(self.mlp, SparseMixture):  # whose experts are balanced over all tokens
            return self.forward(x, plan, router).flatten(0, 1).index_select(0, only)
        attended = self.self_attn(self.input_layernorm(x), plan, only)
        if only is not None:
            x = x.flatten(0, 1).index_select(0, only)
        x, normed = self.post_attention_layernorm.after_adding(x, attended)
        mixed = self.mlp(normed, router) if isinstance(self.mlp, SparseMixture) else self.mlp(normed)
        return torch.add(x, mixed)


def _norm(config: ModelConfig) -> RMSNorm:
    return RMSNorm(config.hidden_size, eps=config.rms_norm_eps, scales_in_float32=config.norm_scales_in_float32)
