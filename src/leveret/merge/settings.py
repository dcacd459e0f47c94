"""What a method is told for one tensor: the config's keys, changed by the rules that match, at the tensor's depth."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from leveret.errors import ConfigError
from leveret.merge.config import Gradient, MergeConfig

T = TypeVar("T")

LAYER = re.compile(r"(?:^|\.)(?:layers|blocks|h)\.(\d+)\.")
"""Finds the number of the layer in a stored name."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The numbers for one tensor."""

    weights: tuple[float, ...]
    """One for each model, without the base."""
    t: float
    scale: float
    density: float
    drop: float


def settings_for(config: MergeConfig, name: str, num_layers: int) -> Settings:
    """The settings of the tensor `name` in a model of `num_layers`."""
    rules = [rule for rule in config.rules if re.search(rule.tensors, name)]
    depth = depth_of(name, num_layers)
    weights = _last([rule.weights for rule in rules], config.weights or default_weights(config))
    values = tuple(at_depth(weight, depth) for weight in weights)
    total = math.fsum(values)
    if config.normalize and not total:
        raise ConfigError(f"the weights of {name} sum to 0, and normalize=true divides by their sum",
                          hint="leave normalize out, or change the weights")  # fmt: skip
    return Settings(
        weights=tuple(value / total for value in values) if config.normalize else values,
        t=at_depth(_last([rule.t for rule in rules], config.t), depth),
        scale=_last([rule.scale for rule in rules], config.scale),
        density=_last([rule.density for rule in rules], config.density),
        drop=_last([rule.drop for rule in rules], config.drop),
    )


def unmatched(config: MergeConfig, names: Iterable[str]) -> list[str]:
    """The patterns of rules that change nothing: no tensor has them in its name."""
    known = list(names)
    return [rule.tensors for rule in config.rules if not any(re.search(rule.tensors, name) for name in known)]


def default_weights(config: MergeConfig) -> list[Gradient]:
    """1/N each in linear, which averages; 1 each where changes are added or only compared."""
    return [1 / len(config.models) if config.method == "linear" else 1.0] * len(config.models)


def layer_of(name: str) -> int | None:
    """The number of the layer that a tensor belongs to; None for embedding, final norm and head."""
    found = LAYER.search(name)
    return int(found[1]) if found else None


def depth_of(name: str, num_layers: int) -> float:
    """0 for the first layer, 1 for the last; the embedding counts with the first, final norm and head with the last."""
    layer = layer_of(name)
    if layer is None:
        return 0.0 if is_embedding(name) else 1.0
    return layer / (num_layers - 1) if num_layers > 1 else 0.0


def is_embedding(name: str) -> bool:
    """Whether a tensor comes before the first layer."""
    return "embed_tokens" in name


def at_depth(value: Gradient, depth: float) -> float:
    """A number as it is; of a list, the value at `depth`, between two neighbours on a straight line."""
    if not isinstance(value, list):
        return value
    place = depth * (len(value) - 1)
    left = min(int(place), len(value) - 1)
    right = min(left + 1, len(value) - 1)
    return value[left] + (place - left) * (value[right] - value[left])


def _last(given: list[T | None], default: T) -> T:
    """The last that is set."""
    return next((value for value in reversed(given) if value is not None), default)
