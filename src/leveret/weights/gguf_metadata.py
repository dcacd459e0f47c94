"""What a GGUF file says about a model beside its tensors: a ModelConfig as llama.cpp's keys, and back.

llama.cpp's `llama` knows neither a sliding window nor dynamic RoPE. Within a window, and within the trained length,
both change nothing; so the file's context length ends there, and `limits` says so in a sentence. Our own config.json
travels in the key `leveret.config`, which other programs skip, so that the way back is exact. It is believed only
where the keys that the other programs read say the same.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from leveret.errors import ConfigError
from leveret.model.config import ModelConfig, MoeConfig, RopeConfig
from leveret.model.families import family_for
from leveret.model.rope import frequencies_of, yarn_attention
from leveret.weights.gguf_layout import Array

CONFIG_KEY = "leveret.config"
"""Our config.json, as text."""

REWRITE_HINT = (
    "export the model again; or take the keys leveret.config, leveret.files and tokenizer.huggingface.json out of it, "
    "and it is read as another program's"
)
"""What to do about a file that contradicts itself."""

ROPE_TENSOR = "rope_freqs.weight"
"""Divisors of RoPE's frequencies, one a pair: how llama.cpp has `llama3`."""


NEEDED = (
    "embedding_length", "feed_forward_length", "block_count", "context_length", "attention.head_count",
    "attention.layer_norm_rms_epsilon",
)  # fmt: skip
"""Keys of another program's file without which there is no model."""

READ = frozenset({
    *NEEDED, "vocab_size", "attention.head_count_kv", "attention.key_length", "rope.freq_base", "rope.scaling.type",
    "rope.scaling.factor", "expert_count", "expert_used_count",
})  # fmt: skip
"""Keys that say what the network is."""

SILENT = frozenset({"rope.scaling.original_context_length", "rope.scaling.finetuned", "tensor_data_layout"})
"""Keys that change nothing in the networks that are read here."""

NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "attention.causal": (True,), "attention.scale": (0,), "attention.clamp_kqv": (0,), "logit_scale": (0, 1),
    "embedding_scale": (0, 1), "residual_scale": (0, 1), "use_parallel_residual": (False,),
    "rope.scale_linear": (0, 1), "rope.scaling.attn_factor": (0, 1), "expert_shared_count": (0,),
    "leading_dense_block_count": (0,), "expert_weights_norm": (True,), "expert_weights_scale": (0, 1),
    "expert_gating_func": (1,), "attention.sliding_window": (0,),
}  # fmt: skip
"""Keys that change the maths, and the values with which they do not (of a scale, 0 stands for none)."""


def context_length(config: ModelConfig) -> int:
    """The longest sequence on which llama.cpp computes the same function."""
    longest = config.max_position_embeddings if config.rope.kind == "dynamic" else config.context_tokens
    return min(longest, config.sliding_window or longest)


def limits(config: ModelConfig) -> list[str]:
    """What of the model the file cannot say, in sentences."""
    found = []
    if config.rope.kind == "dynamic":
        found.append("llama.cpp has no dynamic RoPE, which begins beyond the trained length")
    if config.sliding_window is not None and config.sliding_window < config.context_tokens:
        found.append(f"llama.cpp has no sliding window ({config.sliding_window:,} tokens) in this architecture")
    if found:
        found.append(
            f"so the file's context ends at {context_length(config):,} tokens, where both still change nothing"
        )
    return found


def model_keys(config: ModelConfig) -> dict[str, int | float | str | bool]:
    """The keys `llama.*`, without the prefix; whole numbers are written as uint32, others as float32."""
    keys: dict[str, int | float | str | bool] = {
        "vocab_size": config.vocab_size,
        "context_length": context_length(config),
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "rope.dimension_count": config.head_dim,
        "rope.freq_base": float(config.rope.theta),
    }
    if config.moe is not None:
        keys |= {"expert_count": config.moe.num_experts, "expert_used_count": config.moe.experts_per_token}
    return keys | _rope_keys(config)


def rope_divisors(config: ModelConfig) -> Array | None:
    """What llama.cpp divides the frequency of each pair by, for `llama3`; None for the other kinds."""
    rope = config.rope
    if rope.kind != "llama3":
        return None
    trained = rope.original_max_position_embeddings or config.max_position_embeddings
    plain, _ = frequencies_of(RopeConfig(theta=rope.theta), config.head_dim, trained)
    stretched, _ = frequencies_of(rope, config.head_dim, trained)
    divisors: Array = (plain / stretched).to(torch.float32).numpy()
    return divisors


def config_from(keys: Mapping[str, Any], divisors: Sequence[float] | None = None) -> ModelConfig:
    """The ModelConfig of a file; ConfigError if it is not one of our networks, or says two things.

    divisors: what the file divides RoPE's frequencies by (`ROPE_TENSOR`).
    """
    if text := keys.get(CONFIG_KEY):
        values = json.loads(text)
        config = family_for(str(values.get("model_type"))).config_from_hf(values)
        _refuse_changed(config, keys, divisors)
        return config
    if keys.get("general.type") == "adapter":
        raise ConfigError(
            "the file is an adapter and no model", hint="convert the adapter's folder, or the whole model"
        )
    if (architecture := keys.get("general.architecture")) != "llama":
        raise ConfigError(f"the file's architecture is {architecture!r}; only 'llama' is read here",
                          hint="use the model's original folder, or llama.cpp for the file itself")  # fmt: skip
    told = {key.removeprefix("llama."): value for key, value in keys.items() if key.startswith("llama.")}
    _refuse_unknown(told)
    moe = None
    if told.get("expert_count"):
        moe = MoeConfig(num_experts=told["expert_count"], experts_per_token=told["expert_used_count"])
    tokens = keys.get("tokenizer.ggml.tokens") or ()
    if not told.get("vocab_size", len(tokens)):
        raise ConfigError("the file has neither llama.vocab_size nor tokens", hint="fetch or write the file again")
    config = ModelConfig(
        family="llama" if moe is None else "mixtral",
        vocab_size=told.get("vocab_size", len(tokens)),
        hidden_size=told["embedding_length"],
        intermediate_size=told["feed_forward_length"],
        num_hidden_layers=told["block_count"],
        num_attention_heads=told["attention.head_count"],
        num_key_value_heads=told.get("attention.head_count_kv"),  # type: ignore[arg-type]  # None: as many as queries
        head_dim=told.get("attention.key_length"),  # type: ignore[arg-type]  # None: width over heads
        max_position_embeddings=told["context_length"],
        rms_norm_eps=_short(told["attention.layer_norm_rms_epsilon"]),
        rope=_rope_from(told),
        moe=moe,
        bos_token_id=keys.get("tokenizer.ggml.bos_token_id"),
        eos_token_id=keys.get("tokenizer.ggml.eos_token_id"),
        pad_token_id=keys.get("tokenizer.ggml.padding_token_id"),
    )
    return config if divisors is None else _stretched(config, divisors)


def _refuse_changed(config: ModelConfig, keys: Mapping[str, Any], divisors: Sequence[float] | None) -> None:
    """ConfigError where other programs would compute with other numbers than the config.json in the file has."""
    told = {key.removeprefix("llama."): value for key, value in keys.items() if key.startswith("llama.")}
    wanted = model_keys(config)
    wrong = [
        f"llama.{key} is {value}, by {CONFIG_KEY} it is {wanted.get(key, 'not set')}"
        for key, value in told.items()
        if not (_equal(value, wanted[key]) if key in wanted else key in SILENT or value in NEUTRAL.get(key, ()))
    ]
    expected = rope_divisors(config)
    if (expected is None) != (divisors is None) or not (
        expected is None or divisors is None or np.allclose(expected, divisors)
    ):
        wrong.append(f"{ROPE_TENSOR} is not that of {CONFIG_KEY}")
    if wrong:
        raise ConfigError(f"the file was changed after it was written: {'; '.join(wrong)}", hint=REWRITE_HINT)


def _equal(value: object, wanted: float | str | bool) -> bool:
    return bool(value == (float(np.float32(wanted)) if isinstance(wanted, float) else wanted))


def _refuse_unknown(told: Mapping[str, Any]) -> None:
    """ConfigError names the keys that are missing, of another kind, or may change the maths and are not read."""
    if missing := [key for key in NEEDED if key not in told]:
        raise ConfigError(f"the file's keys lack {', '.join(f'llama.{key}' for key in missing)}",
                          hint="fetch or write the file again")  # fmt: skip
    heads = told["attention.head_count"]
    by_layer = [key for key, value in told.items() if key in READ and isinstance(value, list)]
    neutral = dict(NEUTRAL)
    if not by_layer:
        width = told.get("attention.key_length", told["embedding_length"] // heads)
        neutral |= {"rope.dimension_count": (width,), "attention.value_length": (width,)}
        window = told.get("attention.sliding_window", 0)
        if window >= told["context_length"]:  # the whole context is seen
            neutral["attention.sliding_window"] = (window,)
    wrong = [key for key in told if key not in READ | SILENT and told[key] not in neutral.get(key, ())]
    if wrong := sorted({*wrong, *by_layer}):
        raise ConfigError(
            f"the file's network has what is not read here: {', '.join(f'llama.{key} = {told[key]}' for key in wrong)}",
            hint="use the model's original folder, or llama.cpp for the file itself",
        )


def _stretched(config: ModelConfig, divisors: Sequence[float]) -> ModelConfig:
    """The config whose RoPE has these divisors: the parameters of Llama 3 are tried, and taken only if they give them.

    A file holds the divisors alone. Released models of this kind stretch from 8,192 tokens, between 1 and 4 turns.
    """
    for trained in (8192, config.max_position_embeddings):
        rope = RopeConfig(theta=config.rope.theta, kind="llama3", factor=round(max(divisors), 4),
                          original_max_position_embeddings=trained)  # fmt: skip
        tried = replace(config, rope=rope)
        expected = rope_divisors(tried)
        if expected is not None and np.allclose(expected, divisors, rtol=1e-4):
            return tried
    raise ConfigError("the file divides RoPE's frequencies by numbers that are not Llama 3's",
                      hint="use the model's original folder")  # fmt: skip


def _rope_keys(config: ModelConfig) -> dict[str, int | float | str | bool]:
    rope = config.rope
    if rope.kind == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope.factor)}
    if rope.kind != "yarn":
        return {}
    if yarn_attention(rope) != yarn_attention(RopeConfig(kind="yarn", factor=rope.factor)) or not rope.truncate:
        raise ConfigError("llama.cpp's yarn has no attention_factor of its own (mscale) and no untruncated borders",
                          hint="leave both out of rope_parameters, or do not export to GGUF")  # fmt: skip
    return {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": float(rope.factor),
        "rope.scaling.original_context_length": rope.original_max_position_embeddings or config.max_position_embeddings,
        "rope.scaling.yarn_beta_fast": rope.beta_fast,
        "rope.scaling.yarn_beta_slow": rope.beta_slow,
    }


def _rope_from(told: Mapping[str, Any]) -> RopeConfig:
    theta = _short(told.get("rope.freq_base", 10000.0))
    factor = _short(told.get("rope.scaling.factor", 0.0))
    kind = told.get("rope.scaling.type", "linear" if factor else "none")  # as llama.cpp takes it
    if kind == "none" or not factor:
        return RopeConfig(theta=theta)
    if kind != "linear":
        raise ConfigError(f"RoPE of type {kind!r} in a GGUF file of another program is not read here",
                          hint="use the model's original folder")  # fmt: skip
    return RopeConfig(theta=theta, kind="linear", factor=factor)


def _short(value: float) -> float:
    """A float32 as the decimal number it was written from: 1e-05, not 9.999999747378752e-06."""
    return float(str(np.float32(value)))
