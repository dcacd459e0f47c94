"""QuantizeConfig: what is quantized, to how many bits, and what is left alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from leveret.config import Config, Positional, Rehearsal

CALIBRATED = ("gptq", "awq")
"""Methods that watch the model while text runs through it."""

_OF_CALIBRATED = frozenset(
    {"calibration", "calibration_tokens", "calibration_row_tokens", "fewest_tokens", "damp", "desc_act"}
)
UNUSED: dict[str, frozenset[str]] = {
    "round-to-nearest": _OF_CALIBRATED,
    "gptq": frozenset(),
    "awq": frozenset({"symmetric", "damp", "desc_act"}),
    "nf4": _OF_CALIBRATED | {"group_size", "symmetric", "search"},
}
"""Which of the keys below a method does not read; setting one is told, for it is in vain."""


class QuantizeConfig(Config):
    """Store a model's weights in 4 or 8 bits, in a layout that other tools read: GPTQ's, AWQ's or bitsandbytes'."""

    makes_quantized: ClassVar[bool] = True

    model: Annotated[str, Positional(0, places=True)]
    """Model directory, or a name on the Hugging Face hub."""
    output: Path
    """The model directory to write: weights, tokenizer, template, tools and quantization.json, the report."""
    bits: Literal[4, 8] = 4
    """Bits of a weight."""
    method: Literal["round-to-nearest", "gptq", "awq", "nf4"] = "round-to-nearest"
    """How levels are chosen. round-to-nearest: each weight by itself. gptq: column by column, later ones making up for
    earlier ones, on calibration text. awq: after moving factors to the inputs that matter most, on calibration text; 4
    bits. nf4: sixteen levels that lie as a normal distribution does, in blocks of 64; what QLoRA trains on."""
    group_size: Annotated[int | None, Field(ge=8), Rehearsal(32, if_set=True)] = 128
    """Input columns that share a scale; it must divide every layer's inputs. null: one scale an output. Not for nf4."""
    symmetric: bool = True
    """Zero in the middle of the levels. Off: a zero point a group, a little more accurate, read by fewer kernels. awq
    always has zero points."""
    search: bool = True
    """Try smaller scales for each group and keep the one that loses least. Off: the scale that reaches every weight."""
    skip: list[str] = Field(default_factory=list)
    """Regular expressions of layers to leave alone, found anywhere in the name (`layers\\.0\\.`, `down_proj`)."""
    quantize_lm_head: bool = False
    """Quantize the output matrix too. Not possible when it is tied to the embedding."""
    quantize_embedding: bool = False
    """Store the embedding in 8 bits, for a small file. Only leveret reads it then; not with awq or nf4."""
    other_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the tensors that stay whole (embedding, norms); by default as stored."""
    calibration: list[Path] = Field(default_factory=list)
    """Text for gptq and awq: text files, or JSON Lines with a `text`. A tenth is held out, to measure perplexity on."""
    calibration_tokens: Annotated[int, Field(ge=16), Rehearsal(2048)] = 65536
    """Tokens of it that are used, at most: an equal share of each path."""
    calibration_row_tokens: Annotated[int, Field(ge=16), Rehearsal(128)] = 2048
    """Tokens that run through the model at once; the model's context, if that is shorter."""
    damp: float = Field(default=0.01, gt=0, le=1)
    """gptq: share of the mean square of the inputs that is added to each, against inputs that are too much alike."""
    desc_act: bool = False
    """gptq: groups are of columns in order of their inputs' size, largest first: a little more accurate, and slower in
    kernels that must look up each column's group (ours do not)."""
    fewest_tokens: int = Field(default=128, ge=1)
    """A layer (an expert) that saw fewer calibration tokens is rounded to nearest, and the report says so."""
    text: list[Path] = Field(default_factory=list)
    """Text files to measure perplexity on before and after. None: on what is held out of `calibration`, if anything."""
    text_tokens: Annotated[int, Field(ge=2), Rehearsal(512)] = 8192
    """Tokens of text that are used, at most."""

    def whole_models(self) -> Iterator[tuple[str, str, str]]:
        """What is quantized must not be so already."""
        yield "model", self.model, "start from the model it was made of"

    def unread(self) -> frozenset[str]:
        """What the method does not read."""
        return UNUSED[self.method]

    @model_validator(mode="after")
    def _some_methods_have_one_form(self) -> QuantizeConfig:
        if self.method in ("nf4", "awq") and (self.bits != 4 or self.quantize_lm_head):
            raise ValueError(f"method {self.method} has 4 bits and leaves the output matrix whole")
        if self.method in ("nf4", "awq") and self.quantize_embedding:
            raise ValueError(f"method {self.method} leaves the embedding whole")
        return self

    @model_validator(mode="after")
    def _calibration_is_there_when_it_is_needed(self) -> QuantizeConfig:
        if self.method in CALIBRATED and not self.calibration:
            raise ValueError(f"method {self.method} needs text: calibration=FILE (text, or JSON Lines with a `text`)")
        return self

    @field_validator("skip")
    @classmethod
    def _patterns_are_regular_expressions(cls, patterns: list[str]) -> list[str]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
        return patterns
