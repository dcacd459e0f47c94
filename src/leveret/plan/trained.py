"""Which numbers a training stage trains: all of the model's, or those of an adapter beside a frozen model.

Beside a frozen matrix of I inputs and O outputs an adapter of rank R trains R (I + O) numbers. The gradient of the
frozen matrix is not computed, which saves a third of its arithmetic; optimizer and gradients hold the trained numbers
alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from leveret.model.config import ModelConfig
from leveret.model.count import count
from leveret.model.lora_rules import ends, match_targets, matrix, shapes_of

TABLES = ("embed_tokens", "lm_head")


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What a step updates."""

    numbers: int
    """All of it."""
    largest: int
    """The largest parameter, whose gradient is made in one piece."""
    inner: int = 0
    """Numbers of matrices inside the layers, which `optimizer: muon` updates by one average."""
    thin: int = 0
    """Numbers of thin matrices, which come on top of the model's."""
    thin_active: float = 0.0
    """Of these, those that one token is multiplied with."""
    thin_outputs: float = 0.0
    """Numbers that the thin matrices keep of one token for backward: a rank for each."""
    has_head: bool = True
    """Whether the gradient of the output matrix is computed."""
    is_everything: bool = True


def trained_of(config: ModelConfig, adapter: Any) -> Trained:
    """What is trained of a model; `adapter` is the section of a fine-tuning config, or None. ConfigError as there."""
    if adapter is None:
        largest = config.hidden_size * max(config.vocab_size, config.intermediate_size)
        whole_model = count(config)
        tables = whole_model.embedding * (1 if config.tie_word_embeddings else len(TABLES))
        norms = config.hidden_size * (2 * config.num_hidden_layers + 1)
        return Trained(numbers=whole_model.total, largest=largest, inner=whole_model.total - tables - norms)
    if adapter.method == "prefix":
        width = 2 * config.num_key_value_heads * config.head_dim
        each = adapter.prefix_tokens * width
        return Trained(
            numbers=each * config.num_hidden_layers, largest=each, thin=each * config.num_hidden_layers,
            has_head=False, is_everything=False,
        )  # fmt: skip
    shapes = shapes_of(config)
    chosen = match_targets({stored: matrix(stored, config.family) for stored in shapes}, adapter.targets)
    sizes = {stored: adapter.rank * sum(shapes[stored]) for stored in chosen}
    used = {stored: _share(config, stored) for stored in chosen}
    whole = _whole(config, adapter.modules_to_save)
    table = config.vocab_size * config.hidden_size
    numbers = sum(whole.values()) - (table if config.tie_word_embeddings and set(TABLES) <= set(whole) else 0)
    lengths = sum(shapes[stored][1] for stored in chosen) if adapter.dora else 0
    inside = [sizes[stored] for stored in chosen if stored not in TABLES]
    inside += [size for stored, size in whole.items() if stored not in TABLES]
    return Trained(
        numbers=numbers + sum(sizes.values()) + lengths,
        largest=max([*whole.values(), *(adapter.rank * max(shapes[stored]) for stored in chosen)]),
        inner=sum(inside),
        thin=sum(sizes.values()) + lengths,
        thin_active=sum(size * used[stored] for stored, size in sizes.items()),
        thin_outputs=sum(adapter.rank * share for share in used.values()),
        has_head="lm_head" in whole or (config.tie_word_embeddings and bool(whole.keys() & set(TABLES))),
        is_everything=False,
    )


def _share(config: ModelConfig, stored: str) -> float:
    """The share of tokens that a matrix sees."""
    if config.moe is None or ".experts." not in stored:
        return 1.0
    return config.moe.experts_per_token / config.moe.num_experts


def _whole(config: ModelConfig, names: list[str]) -> dict[str, int]:
    """Numbers of the tables and matrices that are trained themselves; norms are too small to count."""
    table = config.vocab_size * config.hidden_size
    there = {stored: inputs * outputs for stored, (inputs, outputs) in shapes_of(config).items()}
    there |= dict.fromkeys(TABLES, table)
    return {stored: size for stored, size in there.items() if any(ends(stored, name) for name in names)}
