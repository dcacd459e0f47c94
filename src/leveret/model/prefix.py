"""Prefix tuning: trained keys and values that every token of every layer may read, before a frozen model's own.

Nothing of the model is changed; it is as if something had been said before each text, in a form that no token has (Li
and Liang 2021, 2101.00190). P such tokens cost 2 P K D numbers a layer, less than LoRA, and a little of the context.

Files keep the keys as peft has them: not rotated, at the places 0 .. P - 1 before the text, which then begins at P.
Scores depend on differences of places, so here the text stays at 0 and the keys are turned back by P:

    (R(p + P) q) . k  =  (R(p) q) . (R(-P) k)

With a sliding window the prefix stays in sight.

Shape legend: P prefix tokens, B rows, T queries, S keys, H query heads, K key-value heads, D head width.
"""

from __future__ import annotations

import hashlib

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from leveret.errors import ConfigError
from leveret.kernels.attention import additive_mask, attention
from leveret.model.attention import AttentionPlan, SelfAttention
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.model.meta import shapes_only
from leveret.model.rope import RotaryEmbedding, rotate

START_DEVIATION = 0.02
"""Of the random start: the prefix is then read evenly and says little."""


class PrefixAttention(SelfAttention):
    """The attention of a layer, with a prefix (P, 2 K D): the keys, then the values."""

    def __init__(self, config: ModelConfig, rope: RotaryEmbedding, old: SelfAttention, prefix: nn.Parameter) -> None:
        with shapes_only():
            super().__init__(config, old.layer)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = old.q_proj, old.k_proj, old.v_proj, old.o_proj
        self.prefix = prefix
        places = torch.tensor([[len(prefix)]], device=prefix.device)
        cos, signed_sin = rope(places, None, torch.float32)  # (1, 1, 1, D)
        self._turn_back = cos, -signed_sin

    def _mix(self, query: Tensor, key: Tensor, value: Tensor, plan: AttentionPlan) -> Tensor:
        return self._attend(query, key, value, plan)

    def _read(self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, is_causal: bool) -> Tensor:
        batch, _, length, _ = query.shape
        prefix_key, prefix_value = (
            part.view(1, len(part), -1, self.head_dim).transpose(1, 2)  # (1, K, P, D)
            for part in self.prefix.to(query.dtype).view(len(self.prefix), 2, -1).unbind(1)
        )
        cos, signed_sin = (angles.to(query) for angles in self._turn_back)
        prefix_key = rotate(prefix_key, cos, signed_sin)
        if mask is None and is_causal:
            along = torch.arange(length, device=query.device).unsqueeze(0)
            mask = additive_mask(along, along, window=None, dtype=query.dtype)  # (1, 1, T, T)
        if mask is not None:
            mask = F.pad(mask, (len(self.prefix), 0))  # (B or 1, 1, T, P + S)
        key = torch.cat([prefix_key.expand(batch, -1, -1, -1), key], dim=2)
        value = torch.cat([prefix_value.expand(batch, -1, -1, -1), value], dim=2)
        return attention(query, key, value, mask=mask, is_causal=False)


def add_prefix(model: Decoder, tokens: int, *, seed: int) -> None:
    """Freeze `model` and give each layer a prefix of as many tokens, at random by the seed."""
    width = 2 * model.config.num_key_value_heads * model.config.head_dim
    device = model.norm.weight.device
    prefixes = []
    for layer in range(model.config.num_hidden_layers):
        digest = hashlib.sha256(f"{seed}:prefix.{layer}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        prefixes.append(torch.randn(tokens, width, generator=generator).mul_(START_DEVIATION).to(device))
    put_prefix(model, prefixes)


def put_prefix(model: Decoder, prefixes: list[Tensor]) -> None:
    """Freeze `model` and give each layer its prefix (P, 2 K D). ConfigError for RoPE that changes with the length."""
    if model.config.rope.kind in ("dynamic", "yarn"):
        raise ConfigError(
            f"a prefix before a model with RoPE of type {model.config.rope.kind} is not supported",
            hint="train a LoRA instead (adapter.method: lora)",
        )
    model.requires_grad_(False)
    for layer, prefix in zip(model.layers, prefixes, strict=True):
        old = layer.self_attn
        assert isinstance(old, SelfAttention)
        layer.self_attn = PrefixAttention(model.config, model.rope, old, nn.Parameter(prefix)).train(model.training)


def prefixes_of(model: Decoder) -> list[Tensor]:
    """The prefix of each layer; empty when the model has none."""
    return [module.prefix.detach() for module in model.modules() if isinstance(module, PrefixAttention)]
