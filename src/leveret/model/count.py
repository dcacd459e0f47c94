"""What a config costs, as formulas: parameters, arithmetic per token, bytes of cache. No model is built.

    attention       H (heads + 2 key_value_heads) D + heads D H          per layer
    feed-forward    3 H I                                                per layer, or per expert and H E for the router
    norms           2 H per layer, H at the end
    embedding, head V H each (one of them if tied)

Arithmetic: a matrix of n parameters costs 2 n floating-point operations per token forward and 4 n backward; attention
adds 4 heads D per key read, forward, and twice that backward (PaLM, 2204.02311, appendix B). The embedding is a look-up
and costs nothing, the head is a product like the rest.

Shape legend: H hidden, D head width, I intermediate, E experts, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

from leveret.model.config import ModelConfig


@dataclass(frozen=True, kw_only=True)
class Count:
    """Numbers of parameters."""

    total: int
    """All of them, as stored: a tied head counts once."""
    active: int
    """Those that one token uses: of the experts only `experts_per_token`."""
    embedding: int
    """The embedding alone, part of both numbers above."""
    multiplied: int
    """Those that one token is multiplied with: active, with the head and without the look-up."""


def count(config: ModelConfig) -> Count:
    """The parameters of a model of this config."""
    hidden = config.hidden_size
    queries = config.num_attention_heads * config.head_dim
    keys_and_values = 2 * config.num_key_value_heads * config.head_dim
    attention = hidden * (queries + keys_and_values) + queries * hidden
    expert = 3 * hidden * config.intermediate_size
    stored, used = expert, expert
    if config.moe is not None:
        router = hidden * config.moe.num_experts
        stored = config.moe.num_experts * expert + router
        used = config.moe.experts_per_token * expert + router
    norms = hidden * (2 * config.num_hidden_layers + 1)
    embedding = config.vocab_size * hidden
    outside = norms + embedding * (1 if config.tie_word_embeddings else 2)
    layers = config.num_hidden_layers
    matrices = layers * (attention + used) + embedding
    return Count(
        total=layers * (attention + stored) + outside,
        active=layers * (attention + used) + outside,
        embedding=embedding,
        multiplied=matrices,
    )


def flops_per_token(config: ModelConfig, sequence_length: int, *, training: bool) -> float:
    """Floating-point operations for one token, on average over a sequence of this many tokens.

    training: forward and backward, three times the forward alone.
    """
    window = min(config.sliding_window or sequence_length, sequence_length)
    # Position p reads min(p + 1, window) keys; this is their mean over the sequence.
    keys = (window * (window + 1) / 2 + (sequence_length - window) * window) / sequence_length
    per_key = 4 * config.num_attention_heads * config.head_dim * config.num_hidden_layers
    forward = 2 * count(config).multiplied + per_key * keys
    return 3 * forward if training else forward


def cache_bytes_per_token(config: ModelConfig, bytes_per_number: int = 2) -> int:
    """Bytes of KV cache that one token takes."""
    return 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * bytes_per_number
