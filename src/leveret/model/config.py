"""What a decoder is, as plain numbers: the one description that training, serving and counting share.

The names are Hugging Face's wherever they have one. `families/` turns a `config.json` into a `ModelConfig` and back;
nothing else in the project reads that file's keys. A field is either a fact about the maths (sizes, RoPE, window,
experts) or an id that must travel with the weights (bos, eos, pad). This file needs no torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from leveret.errors import ConfigError

RopeKind = Literal["default", "linear", "dynamic", "yarn", "llama3"]


@dataclass(frozen=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding and how it is stretched beyond the trained length (formulas: `rope.py`)."""

    theta: float = 10000.0
    """The base of the wavelengths: pair i turns once every 2 pi theta^(2i/head_dim) positions."""
    kind: RopeKind = "default"
    """default: as trained; linear, dynamic, yarn, llama3: four ways to reach `factor` times further."""
    factor: float = 1.0
    """How many times longer than the original length; 1 for `default`."""
    original_max_position_embeddings: int | None = None
    """The length before stretching (yarn, llama3); None: the model's max_position_embeddings."""
    attention_factor: float | None = None
    """yarn: cos and sin are multiplied by this; None: 0.1 ln(factor) + 1, or what the next two say."""
    mscale: float | None = None
    """yarn: with `mscale_all_dim`, the factor is (0.1 mscale ln(factor) + 1) / (0.1 mscale_all_dim ln(factor) + 1)."""
    mscale_all_dim: float | None = None
    """yarn: see `mscale`; one of them alone, or 0, changes nothing."""
    beta_fast: float = 32.0
    """yarn: pairs that turn more often than this within the original length are left alone."""
    beta_slow: float = 1.0
    """yarn: pairs that turn less often than this are fully interpolated."""
    truncate: bool = True
    """yarn: round the two borders of the ramp outwards to whole pairs."""
    low_freq_factor: float = 1.0
    """llama3: wavelengths above original/low_freq_factor are fully interpolated."""
    high_freq_factor: float = 4.0
    """llama3: wavelengths below original/high_freq_factor are left alone."""

    def __post_init__(self) -> None:
        _require(0 < self.theta < math.inf, "rope_theta", self.theta, "more than 0, and finite")
        _require(1 <= self.factor < math.inf, "rope factor", self.factor, "at least 1, and finite")
        if self.kind == "llama3":
            _require(
                self.high_freq_factor > self.low_freq_factor,
                "high_freq_factor",
                self.high_freq_factor,
                f"more than low_freq_factor, {self.low_freq_factor}",
            )


@dataclass(frozen=True, kw_only=True)
class MoeConfig:
    """A sparse mixture of experts in place of every feed-forward block (Mixtral)."""

    num_experts: int = 8
    """Experts in a layer."""
    experts_per_token: int = 2
    """Experts that a token visits."""
    router_aux_loss_coef: float = 0.001
    """Weight of the load-balancing loss in training."""

    def __post_init__(self) -> None:
        _require(
            1 <= self.experts_per_token <= self.num_experts,
            "experts_per_token",
            self.experts_per_token,
            f"between 1 and num_experts, {self.num_experts}",
        )


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The whole description of a decoder-only transformer. Linears have no bias, the activation is SiLU."""

    family: str = "mistral"
    """Which table of `families/` names its config keys and weights."""
    vocab_size: int
    """Rows of the embedding and of the output head."""
    hidden_size: int
    """Width H of the residual stream."""
    intermediate_size: int
    """Width of the feed-forward block (of one expert, if there are experts)."""
    num_hidden_layers: int
    """Decoder layers."""
    num_attention_heads: int
    """Query heads."""
    num_key_value_heads: int = None  # type: ignore[assignment]  # filled in below
    """Key and value heads, each shared by a group of query heads; left out: as many as query heads."""
    head_dim: int = None  # type: ignore[assignment]  # filled in below
    """Width D of a head; left out: hidden_size / num_attention_heads."""
    max_position_embeddings: int = 2048
    """The longest sequence the model is meant for, in tokens."""
    rope: RopeConfig = field(default_factory=RopeConfig)
    """Position embedding."""
    rms_norm_eps: float = 1e-5
    """Added to the mean square before the root."""
    sliding_window: int | None = None
    """A token sees itself and the `sliding_window - 1` before it; None: all before it."""
    tie_word_embeddings: bool = False
    """The output head is the embedding matrix."""
    moe: MoeConfig | None = None
    """Experts; None: a dense feed-forward block."""
    initializer_range: float = 0.02
    """Standard deviation of fresh weights."""
    norm_scales_in_float32: bool = False
    """RMSNorm multiplies by its weight before it rounds to the model's dtype (Aquila), not after (Llama)."""
    bos_token_id: int | None = None
    """Id that begins a sequence."""
    eos_token_id: int | tuple[int, ...] | None = None
    """Id, or ids, that end one."""
    pad_token_id: int | None = None
    """Id that fills up a batch; never seen by the model's attention."""

    def __post_init__(self) -> None:
        if self.num_key_value_heads is None:
            object.__setattr__(self, "num_key_value_heads", self.num_attention_heads)
        if self.head_dim is None:
            whole = self.num_attention_heads > 0 and self.hidden_size % self.num_attention_heads == 0
            _require(
                whole,
                "hidden_size",
                self.hidden_size,
                f"a multiple of num_attention_heads, {self.num_attention_heads}, when head_dim is not given",
            )
            object.__setattr__(self, "head_dim", self.hidden_size // self.num_attention_heads)
        for name in (
            "vocab_size",
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "max_position_embeddings",
        ):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "at least 1")
        _require(0 <= self.rms_norm_eps < math.inf, "rms_norm_eps", self.rms_norm_eps, "0 or more, and finite")
        _require(
            self.num_attention_heads % self.num_key_value_heads == 0,
            "num_attention_heads",
            self.num_attention_heads,
            f"a multiple of num_key_value_heads, {self.num_key_value_heads}",
        )
        _require(self.head_dim % 2 == 0, "head_dim", self.head_dim, "even, for RoPE turns pairs")
        window = self.sliding_window
        _require(window is None or window >= 1, "sliding_window", window, "at least 1, or null for none")

    @property
    def context_tokens(self) -> int:
        """The longest sequence to be served: with linear or dynamic RoPE, `factor` times what the config trained."""
        stretched = self.rope.kind in ("linear", "dynamic")
        return int(self.max_position_embeddings * self.rope.factor) if stretched else self.max_position_embeddings

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """All ids that end a sequence, as a tuple."""
        ids = self.eos_token_id
        return () if ids is None else (ids,) if isinstance(ids, int) else ids

    @property
    def ids_outside(self) -> list[str]:
        """The special ids that no token has, as `key id`. A padding id of -1 is how some say that there is none."""
        pad = None if self.pad_token_id == -1 else self.pad_token_id
        special = [("bos_token_id", self.bos_token_id), ("pad_token_id", pad)]
        special += [("eos_token_id", token) for token in self.eos_token_ids]
        return [f"{key} {token}" for key, token in special if token is not None and not 0 <= token < self.vocab_size]


def _require(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise ConfigError(f"{name} is {value}, it must be {wanted}", hint=f"correct {name} in the model's config")
