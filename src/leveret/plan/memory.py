"""Memory by part, as formulas: what a stage holds at its peak, and which parts several devices can split.

Training, with N parameters, n of them trained, T tokens in a micro-batch, H hidden, I intermediate, V vocabulary:

    weights            N * 2 (bf16) or 4
    fp32 masters       n * 4, unless precision is fp32 or stochastic_rounding is on
    averages           n * 8 (adamw), 4 (adamw_bf16), 2 + 8/256 (adamw_8bit); muon: 8, but 4 for a layer's matrices
    gradients          n * 4, or none with optimizer_in_backward; and the largest parameter's own while it is made
    activations        T * (layers * A + 2 H) numbers, A for one layer as below; recomputed: layers * H + A instead
    loss               one chunk of logits, and the gradients of hidden states (T H) and head (V H, fp32), if trained

    A = 4 H + 2 q + k + 3 I    bf16 with the compiled kernels on a CPU     q = heads * head_dim, k = 2 kv heads * it
    A = 6 H + 2 q + k + 4 I    fp32
    A = 8 H + 2 q + k + 4 I    bf16 otherwise: PyTorch keeps more of a norm and of silu
    with experts, E' of them a token: 2 E' I in place of the I term

An adapter of rank R adds its numbers to N and is all of n (trained.py), and keeps R numbers of a token for each matrix.

What a layer keeps was counted on the decoder itself (a test counts again). ZeRO splits, stage by stage, optimizer
state, gradients, and weights; activations belong to each device's own rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from leveret.engine.config import DEFAULT_CACHE_BYTES
from leveret.model.config import ModelConfig
from leveret.model.count import cache_bytes_per_token, count
from leveret.plan.known_model import KnownModel
from leveret.plan.trained import Trained, trained_of
from leveret.trainer.config import TrainingConfig

Split = Literal["optimizer", "gradients", "weights", "nothing"]
"""What kind of thing a part is: ZeRO 1, 2 and 3 split the first one, two and three of these."""

WAYS: dict[str, tuple[Split, ...]] = {
    "copies": (),
    "zero-1": ("optimizer",),
    "zero-2": ("optimizer", "gradients"),
    "zero-3": ("optimizer", "gradients", "weights"),
}
"""How the parts lie on several devices: copied (DDP), or split ever further (zero-3 is FSDP)."""

CHUNK_LOGITS, CHUNK_POSITIONS, MOST_CHUNK_LOGITS = 2**22, 1024, 2**26
"""What decides how much of the loss is computed at a time (kernels/cross_entropy.py; a test compares)."""
_AVERAGES = {"adamw": 8.0, "adamw_bf16": 4.0, "adamw_8bit": 2 + 8 / 256}
_MOST_DEVICES = 4096


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a stage's memory, on one device that does all."""

    name: str
    bytes: float
    split: Split = "nothing"


def training_parts(
    model: KnownModel, training: TrainingConfig, *, compiled_kernels: bool, trained: Trained | None = None
) -> list[Part]:
    """What a full training step holds; `compiled_kernels`: on a CPU that has them. trained: None, everything."""
    config = model.config
    what = trained or trained_of(config, None)
    numbers = what.numbers
    size = 4 if training.precision == "fp32" else 2
    tokens = training.micro_batch_rows * training.sequence_length
    weights = count(config).total * size if what.is_everything else stored_bytes(model, size) + what.thin * size
    recomputed = training.recompute == "layers"
    activations = activation_bytes(config, training, compiled_kernels=compiled_kernels)
    activations += tokens * what.thin_outputs * size / (config.num_hidden_layers if recomputed else 1)
    loss = _loss_bytes(config, tokens, size, compiled_kernels=compiled_kernels, has_head=what.has_head)
    masters = 0 if size == 4 or training.stochastic_rounding else 4 * numbers
    fp32_copy = 0 if training.optimizer_in_backward else 4 * numbers
    parts = [
        Part(name="weights", bytes=weights, split="weights"),
        Part(name="fp32 masters", bytes=masters, split="optimizer"),
        Part(name="optimizer averages", bytes=_averages_bytes(training, what), split="optimizer"),
        Part(name="gradients", bytes=fp32_copy, split="gradients"),
        Part(name="gradient in the making", bytes=what.largest * size),
        Part(name="activations", bytes=activations),
        Part(name="loss", bytes=loss),
    ]
    return [part for part in parts if part.bytes]


def _averages_bytes(training: TrainingConfig, trained: Trained) -> float:
    if training.optimizer == "muon":
        return 8.0 * trained.numbers - 4.0 * trained.inner
    return trained.numbers * _AVERAGES[training.optimizer]


def serving_parts(
    model: KnownModel, *, requests: int, context_tokens: int | None = None, cache_bytes: float | None = None
) -> list[Part]:
    """What answering `requests` at a time holds when each has filled the context, or all of them the cache.

    context_tokens: None, what the model can hold. cache_bytes: the engine's limit; None, its default.
    """
    one = (context_tokens or model.config.context_tokens) * cache_bytes_per_token(model.config, model.number_bytes)
    limit = max(DEFAULT_CACHE_BYTES, one) if cache_bytes is None else cache_bytes
    return [
        Part(name="weights", bytes=stored_bytes(model), split="weights"),
        Part(name="KV cache, full", bytes=min(limit, requests * one)),
    ]


def stored_bytes(model: KnownModel, bytes_per_number: int | None = None) -> float:
    """The weights as they lie in memory and in files: Linears inside the layers in `bits`, the rest whole."""
    numbers = count(model.config)
    bytes_per_number = bytes_per_number or model.number_bytes
    if model.bits >= 16:
        return float(numbers.total * bytes_per_number)
    outside = numbers.embedding * (1 if model.config.tie_word_embeddings else 2)
    # A group shares one 16-bit scale and one zero point of `bits`.
    shared = 0.0 if model.group_size is None else (2 + model.bits / 8) / model.group_size
    return outside * bytes_per_number + (numbers.total - outside) * (model.bits / 8 + shared)


def bytes_read_per_token(model: KnownModel) -> float:
    """What decoding one token reads of the weights: a tied embedding is its head, another one row of a table."""
    numbers = count(model.config)
    head = float(numbers.embedding * model.number_bytes)
    outside = numbers.embedding * (1 if model.config.tie_word_embeddings else 2)
    inside = stored_bytes(model) - outside * model.number_bytes
    return head + inside * (numbers.active - outside) / (numbers.total - outside)


def numbers_kept_per_layer(config: ModelConfig, *, precision: str, compiled_kernels: bool) -> int:
    """Numbers that one layer keeps of one token for backward: A of the formulas above."""
    compiled = compiled_kernels and precision == "bf16"
    hidden_factor, gate_factor = (4, 3) if compiled else (6, 4) if precision == "fp32" else (8, 4)
    queries = config.num_attention_heads * config.head_dim
    keys_and_values = 2 * config.num_key_value_heads * config.head_dim
    inner = gate_factor * config.intermediate_size
    if config.moe is not None:
        inner = config.moe.experts_per_token * 2 * config.intermediate_size
    return hidden_factor * config.hidden_size + 2 * queries + keys_and_values + inner


def activation_bytes(config: ModelConfig, training: TrainingConfig, *, compiled_kernels: bool) -> float:
    """What forward leaves for backward of one micro-batch."""
    size = 4 if training.precision == "fp32" else 2
    tokens = training.micro_batch_rows * training.sequence_length
    layer = numbers_kept_per_layer(config, precision=training.precision, compiled_kernels=compiled_kernels)
    if training.recompute == "layers":
        kept = config.num_hidden_layers * config.hidden_size + layer
    else:
        kept = config.num_hidden_layers * layer
    return float(tokens * (kept + 2 * config.hidden_size) * size)


def bytes_per_device(parts: Sequence[Part], devices: int, way: str) -> float:
    """What each of `devices` holds when the parts are split that way."""
    return sum(part.bytes / (devices if part.split in WAYS[way] else 1) for part in parts)


def devices_needed(parts: Sequence[Part], room: float, way: str) -> int | None:
    """The smallest power of two of devices with `room` bytes each that hold the parts; None when no number does."""
    devices = 1
    while bytes_per_device(parts, devices, way) > room:
        devices *= 2
        if devices > _MOST_DEVICES or way == "copies":
            return None
    return devices


def chunk_positions(positions: int, vocabulary: int) -> int:
    """Positions whose loss is computed at a time; the same as in kernels/cross_entropy.py, which needs torch."""
    wanted = max(CHUNK_LOGITS // vocabulary, min(CHUNK_POSITIONS, MOST_CHUNK_LOGITS // vocabulary))
    return max(1, min(positions, wanted))


def _loss_bytes(config: ModelConfig, tokens: int, size: int, *, compiled_kernels: bool, has_head: bool) -> float:
    chunk = chunk_positions(tokens, config.vocab_size) * config.vocab_size
    buffers = size if size == 4 or compiled_kernels else size + 4
    head = config.vocab_size * config.hidden_size * has_head
    return chunk * buffers + 2 * tokens * config.hidden_size * size + head * (4 + size)
