"""MergeConfig: which models are merged, how, and what happens where their vocabularies differ."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from leveret.config import Config, Positional

Method = Literal["linear", "slerp", "task-arithmetic", "ties", "dare", "dare-ties", "model-stock", "passthrough"]
Gradient = float | Annotated[list[float], Field(min_length=1)]
"""A number, or numbers spread evenly over the depth of the model, straight lines between them."""

USED: dict[str, frozenset[str]] = {
    "linear": frozenset({"weights", "normalize"}),
    "slerp": frozenset({"t"}),
    "task-arithmetic": frozenset({"base", "weights", "normalize", "scale"}),
    "ties": frozenset({"base", "weights", "scale", "density"}),
    "dare": frozenset({"base", "weights", "normalize", "scale", "drop"}),
    "dare-ties": frozenset({"base", "weights", "scale", "drop"}),
    "model-stock": frozenset({"base"}),
    "passthrough": frozenset({"layers"}),
}
"""Which of the keys below a method reads; setting another is a mistake, not a wish to be passed over."""

METHOD_KEYS = frozenset().union(*USED.values())


class Rule(Config):
    """Other settings for the tensors whose names match."""

    tensors: str
    """A regular expression, found anywhere in a tensor's stored name (`mlp`, `self_attn`, `^model\\.layers\\.0\\.`)."""
    weights: list[Gradient] | None = None
    """As in the config above it; None: as there. So for the other keys."""
    t: Gradient | None = None
    scale: float | None = None
    density: Annotated[float, Field(ge=0, le=1)] | None = None
    drop: Annotated[float, Field(ge=0, lt=1)] | None = None

    @field_validator("tensors")
    @classmethod
    def _is_a_regular_expression(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
        return pattern


class MergeConfig(Config):
    """Make one model of several, tensor by tensor."""

    models: Annotated[list[str], Positional(0, places=True), Field(min_length=1)]
    """Model directories or hub names. The first gives the config, tokenizer, template, tools and dtype."""
    output: Path
    """The model directory to write: weights, what the first model has besides, leveret-merge.json and a card."""
    method: Method = "linear"
    """How values are merged."""
    base: str | None = None
    """The model that the others were trained from, for methods that merge changes instead of weights."""
    weights: list[Gradient] | None = None
    """One for each model (a list: a gradient over the layers). None: 1/N each in linear, else 1 each."""
    normalize: bool = False
    """Divide the weights by their sum. Off: they count as they are, and a sum other than 1 is reported."""
    t: Gradient = 0.5
    """slerp: how far from the first model (0) to the second (1)."""
    scale: float = 1.0
    """What the merged change is multiplied with before it is added to the base (the papers' lambda)."""
    density: Annotated[float, Field(ge=0, le=1)] = 0.2
    """ties: the share of each tensor's changes that is kept, the largest ones."""
    drop: Annotated[float, Field(ge=0, lt=1)] = 0.5
    """dare: the share of changes dropped at random; those left are multiplied by exactly 1 / (1 - drop)."""
    layers: list[Annotated[list[int], Field(min_length=2, max_length=2)]] | None = None
    """passthrough: [first, end) of the layers taken from each of `models`, stacked in this order."""
    rules: list[Rule] = Field(default_factory=list)
    """Other settings for some tensors; the last rule that matches and sets a key counts."""
    vocabulary: Literal["same", "first", "union"] = "same"
    """Where tokenizers hold different tokens. same: refuse. first: the first model's tokens. union: the added tokens
    of the others as well. Rows of tokens that a model lacks come from the first model that has them."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the result; None: as the first model stores each tensor. Merging itself is in float32."""
    seed: int = 0
    """dare: decides, with a tensor's name, what is dropped."""

    def whole_models(self) -> Iterator[tuple[str, str, str]]:
        """Merging counts with the numbers of every model."""
        named = [(f"models.{place}", model) for place, model in enumerate(self.models)]
        for key, model in [*named, *([("base", self.base)] if self.base is not None else [])]:
            yield key, model, "take the model it was made of"

    @model_validator(mode="after")
    def _keys_fit_the_method(self) -> MergeConfig:
        used = USED[self.method]
        given = {key for key in self.model_fields_set if getattr(self, key) is not None}
        for rule in self.rules:
            given |= {key for key in rule.model_fields_set if getattr(rule, key) is not None}
        if unused := sorted((given & METHOD_KEYS) - used):
            raise ValueError(f"{self.method} does not use {', '.join(unused)}; it uses {', '.join(sorted(used))}")
        if "base" in used and self.base is None:
            raise ValueError(f"{self.method} merges changes: say with `base` from which model the others were trained")
        return self

    @model_validator(mode="after")
    def _counts_fit(self) -> MergeConfig:
        count = len(self.models)
        for weights in (self.weights, *(rule.weights for rule in self.rules)):
            if weights is not None and len(weights) != count:
                raise ValueError(f"{len(weights)} weights for {count} models")
            if weights is not None and self.method in ("ties", "dare-ties") and _any_negative(weights):
                raise ValueError("a vote cannot be negative: weights of an election are 0 or more")
        if self.method == "slerp" and count != 2:
            raise ValueError(f"slerp goes from one model to another; {count} are given")
        if self.method == "model-stock" and count < 2:
            raise ValueError("model-stock needs two models or more besides the base")
        if self.method == "passthrough":
            if self.rules:
                raise ValueError("passthrough copies tensors; `rules` have nothing to change")
            if count > 1 and self.layers is None:
                raise ValueError("passthrough of several models needs `layers`, one [first, end) for each")
            if self.layers is not None and len(self.layers) != count:
                raise ValueError(f"{len(self.layers)} ranges of layers for {count} models")
        return self


def _any_negative(weights: list[Gradient]) -> bool:
    return any(value < 0 for weight in weights for value in (weight if isinstance(weight, list) else [weight]))
