"""RoPE in a config.json: two spellings of one thing, read both, written both.

    transformers 4    "rope_theta": 10000.0, "rope_scaling": null | {"type" or "rope_type": "linear", "factor": 4.0}
    transformers 5    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "linear", "factor": 4.0}

Old releases accept exactly {"type", "factor"} for linear and dynamic, so that is what is written there. A file that
says different things in its two spellings is refused: no reading of it would be safe.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_args

from leveret.config import suggest
from leveret.errors import ConfigError
from leveret.model.config import RopeConfig, RopeKind

ROPE_KEYS = ("rope_theta", "rope_scaling", "rope_parameters")
"""The top-level keys of config.json that this file reads."""

KIND_FIELDS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": (
        "factor", "original_max_position_embeddings", "attention_factor", "mscale", "mscale_all_dim", "beta_fast",
        "beta_slow", "truncate",
    ),
    "llama3": ("factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
}  # fmt: skip
"""The fields that each kind reads. All but the default need `factor`."""

WITHOUT_MEANING = {"original_max_position_embeddings": None, "partial_rotary_factor": 1.0}
"""Fields that are allowed where a kind does not read them, and the one value they may have (None: any)."""


def rope_from_hf(values: Mapping[str, Any], *, default_theta: float | None = None) -> RopeConfig:
    """RopeConfig from a config.json's keys, whichever spelling they use; ConfigError names what is wrong.

    default_theta: the family's base for a file that names none; None: RopeConfig's.
    """
    told = _merged(values)
    if default_theta is not None:
        told.setdefault("rope_theta", default_theta)
    kind = told.pop("rope_type", "default")
    if kind not in KIND_FIELDS:
        near = suggest(str(kind), list(KIND_FIELDS))
        raise ConfigError(
            f"rope_type is {kind!r}; known are {', '.join(get_args(RopeKind))}",
            hint=f"did you mean {near}?" if near else "this way of stretching RoPE is not supported",
        )
    fields = {"theta": told.pop("rope_theta")} if "rope_theta" in told else {}
    for key, value in told.items():
        if key in KIND_FIELDS[kind]:
            fields[key] = value
        elif key not in WITHOUT_MEANING or WITHOUT_MEANING[key] not in (None, value):
            raise ConfigError(f"RoPE of type {kind} with {key} = {value!r}, which it does not know",
                              hint=f"it reads {', '.join(KIND_FIELDS[kind]) or 'nothing'}")  # fmt: skip
    if kind != "default" and "factor" not in fields:
        raise ConfigError(f"RoPE of type {kind} needs a factor", hint='add "factor" beside its type')
    for key, value in fields.items():
        if isinstance(value, bool) != (key == "truncate") or not isinstance(value, int | float):
            raise ConfigError(f"RoPE's {key} is {value!r}, which is no number", hint=f"correct {key} in config.json")
    return RopeConfig(kind=kind, **fields)


def rope_to_hf(rope: RopeConfig) -> dict[str, Any]:
    """The keys `rope_theta`, `rope_scaling` and `rope_parameters` that say the same to old and new readers."""
    fields = {key: getattr(rope, key) for key in KIND_FIELDS[rope.kind]}
    fields = {key: value for key, value in fields.items() if value is not None}
    parameters = {"rope_theta": rope.theta, "rope_type": rope.kind, **fields}
    scaling: dict[str, Any] | None = {"rope_type": rope.kind, **fields}
    if rope.kind == "default":
        scaling = None
    elif rope.kind in ("linear", "dynamic"):
        scaling = {"type": rope.kind, **fields}
    return {"rope_theta": rope.theta, "rope_scaling": scaling, "rope_parameters": parameters}


def _merged(values: Mapping[str, Any]) -> dict[str, Any]:
    """One dict of all that the two spellings say; nulls are absent, "type" is called "rope_type"."""
    told: dict[str, Any] = {}
    theta = {"rope_theta": values.get("rope_theta")}
    for source, block in (("rope_theta", theta), *((key, values.get(key) or {}) for key in ROPE_KEYS[1:])):
        if not isinstance(block, Mapping):
            raise ConfigError(f"{source} is {block!r}, it must be a mapping or null", hint="correct it in config.json")
        for key, value in block.items():
            name = "rope_type" if key == "type" else key
            if isinstance(value, Mapping):
                raise ConfigError(f"{source} has a part for {key}: RoPE that differs by layer is not supported")
            if name in told and value is not None and told[name] != value:
                raise ConfigError(f"{source} says {name} = {value!r}, another key of the file says {told[name]!r}",
                                  hint="make rope_theta, rope_scaling and rope_parameters agree")  # fmt: skip
            if value is not None:
                told[name] = value
    return told
