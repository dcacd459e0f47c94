"""The network: do two forms compute with the same numbers beside their weights?

RoPE's frequencies, the epsilon of the norms, a sliding window: short texts show little of them, and where one side is
rounded, what they show lies within the bounds. So they are compared as the files say them. RoPE is compared by its
frequencies and a window by whether it is shorter than the context, for a GGUF file may say both in another way.
"""

from __future__ import annotations

from torch import allclose

from leveret.certify.findings import Check, verdict
from leveret.certify.form import Form
from leveret.model.config import ModelConfig
from leveret.model.decoder import Decoder
from leveret.model.rope import frequencies_of
from leveret.weights.load import read_config

COMPARED = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
)  # fmt: skip
"""Sizes that must be equal."""

CLOSE = 1e-5
"""How far frequencies may be apart, and an epsilon: a file may hold them in float32."""


def compare_network(first: Form, second: Form) -> Check:
    """The check; not compared where a form shows no config."""
    ours, theirs = _config(first), _config(second)
    if ours is None or theirs is None:
        return Check(name="network", measured="one form does not show its config", bound="-", verdict="not compared")
    context = min(first.context_tokens, second.context_tokens)
    apart = _apart(ours, theirs, context)
    measured = "; ".join(apart) or "the same sizes, RoPE, epsilon and window"
    return Check(name="network", measured=measured, bound="equal", verdict=verdict(not apart))


def _apart(ours: ModelConfig, theirs: ModelConfig, context: int) -> list[str]:
    """What differs, in words."""
    pairs = {name: (getattr(ours, name), getattr(theirs, name)) for name in COMPARED}
    pairs["sliding_window"] = (_window(ours, context), _window(theirs, context))
    pairs["experts_per_token"] = (
        ours.moe and ours.moe.experts_per_token, theirs.moe and theirs.moe.experts_per_token,
    )  # fmt: skip
    apart = [f"{name} {pair[0]}, and the second {pair[1]}" for name, pair in pairs.items() if pair[0] != pair[1]]
    eps = (ours.rms_norm_eps, theirs.rms_norm_eps)
    if abs(eps[0] - eps[1]) > CLOSE * max(eps):
        apart.append(f"rms_norm_eps {eps[0]:g}, and the second {eps[1]:g}")
    if ours.head_dim == theirs.head_dim and not _same_rope(ours, theirs, context):
        apart.append(f"RoPE {_told(ours)}, and the second {_told(theirs)}")
    return apart


def _same_rope(ours: ModelConfig, theirs: ModelConfig, context: int) -> bool:
    """Whether positions up to `context` are turned alike; a dynamic RoPE is plain up to the trained length."""
    (mine, my_factor), (other, other_factor) = (
        frequencies_of(config.rope, config.head_dim, config.max_position_embeddings) for config in (ours, theirs)
    )
    grows = [
        (config.rope.kind, config.rope.factor)
        for config in (ours, theirs)
        if config.rope.kind == "dynamic" and config.max_position_embeddings < context
    ]
    if grows and (ours.rope.kind, ours.rope.factor) != (theirs.rope.kind, theirs.rope.factor):
        return False
    return allclose(mine, other, rtol=CLOSE, atol=0) and abs(my_factor - other_factor) <= CLOSE * my_factor


def _told(config: ModelConfig) -> str:
    rope = config.rope
    return f"theta {rope.theta:g}" + ("" if rope.kind == "default" else f", {rope.kind} {rope.factor:g}")


def _window(config: ModelConfig, context: int) -> int | None:
    """The window, if it is shorter than the texts that both are meant for."""
    window = config.sliding_window
    return None if window is None or window >= context else window


def _config(form: Form) -> ModelConfig | None:
    if isinstance(form.model, Decoder):
        return form.model.config
    return read_config(form.path) if form.reader == "transformers" else None
