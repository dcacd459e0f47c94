"""QuantizeConfig: what is quantized, to how many bits, and what is left alone."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from leveret.config import Config, Positional, Rehearsal


class QuantizeConfig(Config):
    """Store a model's weights in 4 or 8 bits, in a layout that other tools read: GPTQ's, or bitsandbytes' for nf4."""

    model: Annotated[str, Positional(0)]
    """Model directory, or a name on the Hugging Face hub."""
    output: Path
    """The model directory to write: weights, tokenizer, template, tools and quantization.json, the report."""
    bits: Literal[4, 8] = 4
    """Bits of a weight."""
    method: Literal["round-to-nearest", "nf4"] = "round-to-nearest"
    """How levels are chosen; neither needs calibration data. round-to-nearest: evenly, in groups. nf4: sixteen levels
    that lie as a normal distribution does, in blocks of 64 with scales in 8 bits; what QLoRA trains on."""
    group_size: Annotated[int | None, Field(ge=8), Rehearsal(32)] = 128
    """Input columns that share a scale; it must divide every layer's inputs. null: one scale an output. Not for nf4."""
    symmetric: bool = True
    """Zero in the middle of the levels. Off: a zero point a group, a little more accurate, read by fewer kernels."""
    search: bool = True
    """Try smaller scales for each group and keep the one that loses least. Off: the scale that reaches every weight."""
    skip: list[str] = Field(default_factory=list)
    """Regular expressions of layers to leave alone, found anywhere in the name (`layers\\.0\\.`, `down_proj`)."""
    quantize_lm_head: bool = False
    """Quantize the output matrix too. Not possible when it is tied to the embedding."""
    other_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the tensors that stay whole (embedding, norms); by default as stored."""
    text: list[Path] = Field(default_factory=list)
    """Text files to measure perplexity on before and after. None: it is not measured."""
    text_tokens: Annotated[int, Field(ge=2), Rehearsal(512)] = 8192
    """Tokens of text that are used, at most."""

    @model_validator(mode="after")
    def _nf4_has_one_form(self) -> QuantizeConfig:
        if self.method == "nf4" and (self.bits != 4 or self.quantize_lm_head):
            raise ValueError("method nf4 has 4 bits and leaves the output matrix whole")
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
