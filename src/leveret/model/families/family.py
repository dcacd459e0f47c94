"""What a model family is: a table of config keys, a table of weight names, and the few exceptions.

`config_from_hf` reads a `config.json` strictly. Every key is one of four kinds:

    a field of ModelConfig      read, with the family's default (the one transformers uses) when it is absent
    RoPE's keys                 read by `rope_keys.py`, in the spelling of transformers 4 or 5
    neutral                     must have the one value that means "off" here (biases, dropout, other activations ...)
    metadata                    on a list of keys known to change nothing

Any other key with a value is an error that names it: a field we do not know may change the maths, and a model that
loads and answers slightly wrong is the worst outcome. Weight tables pair our module names with the file's; `{layer}`
and `{expert}` stand for numbers, and whatever follows the module's name (`.weight`, `.qweight`, ...) is kept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from leveret.config import suggest
from leveret.errors import ConfigError
from leveret.model.config import ModelConfig, MoeConfig
from leveret.model.families.rope_keys import ROPE_KEYS, rope_from_hf, rope_to_hf

SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
"""Keys without which there is no model; all whole numbers."""

OPTIONAL = {
    "num_key_value_heads": int, "head_dim": int, "max_position_embeddings": int, "rms_norm_eps": float,
    "initializer_range": float, "tie_word_embeddings": bool, "bos_token_id": int, "pad_token_id": int,
}  # fmt: skip
"""Keys that ModelConfig has under the same name, with their type; null means absent."""

EXPERT_KEYS = {"num_local_experts": "num_experts", "num_experts_per_tok": "experts_per_token",
               "router_aux_loss_coef": "router_aux_loss_coef"}  # fmt: skip
"""A mixture's keys and the fields of MoeConfig."""

NEUTRAL: Mapping[str, tuple[object, ...]] = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (False,), "mlp_bias": (False,), "qkv_bias": (False,), "use_bias": (False,), "bias": (False,),
    "attention_dropout": (0,), "hidden_dropout": (0,), "hidden_dropout_prob": (0,), "embd_pdrop": (0,),
    "resid_pdrop": (0,), "attention_probs_dropout_prob": (0,), "dropout": (0,), "router_jitter_noise": (0,),
    "partial_rotary_factor": (1,), "is_encoder_decoder": (False,), "add_cross_attention": (False,),
    "tie_encoder_decoder": (False,), "cross_attention_hidden_size": (),
}  # fmt: skip
"""Keys that change the maths unless they have one of these values (null is always fine)."""

DROPOUT = re.compile(r"dropout|pdrop")
"""Keys whose 0 is off, whatever a release calls them; any other value of one that is not in NEUTRAL is unknown."""

METADATA = frozenset({
    "architectures", "auto_map", "bad_words_ids", "begin_suppress_tokens", "chunk_size_feed_forward",
    "decoder_start_token_id", "diversity_penalty", "do_sample", "dtype", "early_stopping",
    "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty", "finetuning_task", "flash_attn",
    "forced_bos_token_id", "forced_eos_token_id", "gradient_checkpointing", "id2label", "is_decoder", "label2id",
    "length_penalty", "max_length", "min_length", "model_max_length", "model_type", "name_or_path",
    "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences", "output_attentions",
    "output_hidden_states", "output_router_logits", "output_scores", "prefix", "pretraining_tp", "problem_type",
    "pruned_heads", "quantization_config", "remove_invalid_values", "repetition_penalty", "return_dict",
    "return_dict_in_generate", "sep_token_id", "suppress_tokens", "task_specific_params", "temperature",
    "tf_legacy_loss", "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript", "transformers_version",
    "typical_p", "unsloth_fixed", "unsloth_version", "use_bfloat16", "use_cache", "use_flash_attention",
})  # fmt: skip
"""Keys that say nothing about the logits. `quantization_config` is read by `weights/load.py`; `_...` is private."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """One `model_type`: how its config.json and its tensors map to ours."""

    name: str
    """`model_type` in config.json, and `ModelConfig.family`."""
    architecture: str
    """The class named in `architectures`."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """What transformers assumes for a key that is absent, where that differs from ModelConfig's default."""
    names: tuple[tuple[str, str], ...]
    """Module names: ours, the file's."""
    fused: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Modules of the file that hold several of ours, stacked along the outputs: the file's name, ours in order."""
    aliases: tuple[tuple[str, str], ...] = ()
    """Other names of a module seen in files, and the name in `names` or `fused`; read, never written."""
    modules: tuple[tuple[str, str], ...] = ()
    """What transformers calls a module whose tensor has another name in the files, and that name: adapters that hold
    such a module whole have it by the first; both are read."""
    has_window: bool = False
    """Reads `sliding_window`."""
    has_experts: bool = False
    """Reads the keys of a mixture of experts."""
    norm_scales_in_float32: bool = False
    """See ModelConfig."""

    def config_from_hf(self, values: Mapping[str, Any]) -> ModelConfig:
        """The ModelConfig of a parsed config.json. ConfigError names each field that is missing, wrong or unknown."""
        self._refuse_unknown(values)
        known = {**self.defaults, **{key: value for key, value in values.items() if value is not None}}
        missing = [key for key in SIZES if key not in known]
        if missing:
            raise ConfigError(f"the config lacks {', '.join(missing)}", hint="it is not a whole decoder config.json")
        fields: dict[str, Any] = {key: _typed(key, known[key], int) for key in SIZES}
        fields |= {key: _typed(key, known[key], kind) for key, kind in OPTIONAL.items() if key in known}
        fields["eos_token_id"] = _eos(known.get("eos_token_id"))
        fields["rope"] = rope_from_hf(values, default_theta=self.defaults.get("rope_theta"))
        if self.has_window:
            # An explicit null means no window, although the default has one.
            window = values["sliding_window"] if "sliding_window" in values else known.get("sliding_window")
            fields["sliding_window"] = None if window is None else _typed("sliding_window", window, int)
        if self.has_experts:
            given = {key: ours for key, ours in EXPERT_KEYS.items() if key in known}
            kinds = {key: float if key == "router_aux_loss_coef" else int for key in given}
            fields["moe"] = MoeConfig(**{ours: _typed(key, known[key], kinds[key]) for key, ours in given.items()})
        return ModelConfig(family=self.name, norm_scales_in_float32=self.norm_scales_in_float32, **fields)

    def config_to_hf(self, config: ModelConfig) -> dict[str, Any]:
        """A config.json's content, in the spellings of transformers 4 and 5 at once."""
        values: dict[str, Any] = {"architectures": [self.architecture], "model_type": self.name, "hidden_act": "silu"}
        values |= {key: getattr(config, key) for key in (*SIZES, *OPTIONAL)}
        eos = config.eos_token_id
        values["eos_token_id"] = list(eos) if isinstance(eos, tuple) else eos
        values |= rope_to_hf(config.rope)
        if self.has_window:
            values["sliding_window"] = config.sliding_window
        if self.has_experts and config.moe is not None:
            values |= {key: getattr(config.moe, ours) for key, ours in EXPERT_KEYS.items()}
        return values

    def check(self, config: ModelConfig) -> None:
        """ConfigError if this family's config.json cannot say what `config` says (a window, experts ...)."""
        said = {
            "sliding_window": self.has_window or config.sliding_window is None,
            "moe": self.has_experts == (config.moe is not None),
            "norm_scales_in_float32": self.norm_scales_in_float32 == config.norm_scales_in_float32,
        }
        for name, fits in said.items():
            if not fits:
                value = getattr(config, name)
                raise ConfigError(f"a {self.name} model cannot have {name} {value}", hint="choose another family")

    def our_names(self, stored: str) -> tuple[str, ...]:
        """Our names of the tensors in the file's tensor `stored`, in the order they are stacked; () if unknown."""
        for pattern, ours in self._readers:
            if found := pattern.fullmatch(stored):
                numbers = {key: value for key, value in found.groupdict().items() if key != "rest"}
                return tuple(name.format(**numbers) + found["rest"] for name in ours)
        return ()

    def stored_name(self, ours: str) -> str:
        """The file's name of our tensor; several of ours share one if they are fused."""
        for pattern, stored in self._writers:
            if found := pattern.fullmatch(ours):
                numbers = {key: value for key, value in found.groupdict().items() if key != "rest"}
                return stored.format(**numbers) + found["rest"]
        raise AssertionError(f"the {self.name} family has no name for {ours}")

    def stored_module(self, ours: str) -> str:
        """The file's name of our module (a Linear); several of ours share one if they are fused."""
        return self.stored_name(f"{ours}.weight").removesuffix(".weight")

    def whole_module(self, stored: str) -> str:
        """The name by which an adapter holds a module whole, given its name in the model's files."""
        for module, in_files in self.modules:
            if found := _pattern(in_files).fullmatch(f"{stored}.weight"):
                return module.format(**{key: value for key, value in found.groupdict().items() if key != "rest"})
        return stored

    @cached_property
    def _readers(self) -> list[tuple[re.Pattern[str], tuple[str, ...]]]:
        held = {stored: (ours,) for ours, stored in self.names} | dict(self.fused)
        held |= {alias: held[name] for alias, name in (*self.aliases, *self.modules)}
        return [(_pattern(stored), ours) for stored, ours in held.items()]

    @cached_property
    def _writers(self) -> list[tuple[re.Pattern[str], str]]:
        fused = [(_pattern(name), stored) for stored, ours in self.fused for name in ours]
        return fused + [(_pattern(ours), stored) for ours, stored in self.names]

    def _refuse_unknown(self, values: Mapping[str, Any]) -> None:
        read = {*SIZES, *OPTIONAL, "eos_token_id", *ROPE_KEYS}
        read |= {"sliding_window"} if self.has_window else set()
        read |= set(EXPERT_KEYS) if self.has_experts else set()
        wrong = []
        for key, value in values.items():
            if key in read or key in METADATA or key.startswith("_") or value is None:
                continue
            if DROPOUT.search(key) and value == 0:
                continue
            if key not in NEUTRAL:
                near = suggest(key, sorted(read))
                wrong.append(f"{key} = {value!r} is unknown" + (f" (did you mean {near}?)" if near else ""))
            elif value not in NEUTRAL[key]:
                wrong.append(f"{key} = {value!r} is not supported, only {' or '.join(map(repr, NEUTRAL[key])) or None}")
        if wrong:
            raise ConfigError(
                f"a {self.name} config with fields that may change the maths: {'; '.join(wrong)}",
                hint="if a field is mere metadata, remove it from config.json; else this model is not supported",
            )


def _pattern(template: str) -> re.Pattern[str]:
    escaped = re.escape(template).replace(r"\{layer\}", r"(?P<layer>\d+)").replace(r"\{expert\}", r"(?P<expert>\d+)")
    return re.compile(escaped + r"(?P<rest>\.[a-z_]+)")


def _typed(key: str, value: Any, kind: type) -> Any:
    """`value` if it is of this kind; a float field takes whole numbers, an int field takes no bool and no 3.0."""
    fits = isinstance(value, bool) if kind is bool else not isinstance(value, bool) and isinstance(value, int)
    if kind is float:
        fits = not isinstance(value, bool) and isinstance(value, int | float)
    if not fits:
        raise ConfigError(
            f"{key} is {value!r}, it must be of type {kind.__name__}", hint=f"correct {key} in config.json"
        )
    return value


def _eos(value: Any) -> int | tuple[int, ...] | None:
    if value is None:
        return None
    if isinstance(value, list):
        return tuple(_typed("eos_token_id", token, int) for token in value)
    token: int = _typed("eos_token_id", value, int)
    return token
