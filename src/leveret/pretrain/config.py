"""What `leveret pretrain` can be told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from leveret.config import Config, Positional, Rehearsal
from leveret.errors import ConfigError
from leveret.model.config import ModelConfig, MoeConfig, RopeConfig
from leveret.model.families import family_for
from leveret.trainer.config import DataSource, TrainingConfig


class ModelShape(Config):
    """The model to make. The vocabulary size and the special ids come from the tokenizer."""

    family: Literal["mistral", "llama", "aquila", "mixtral", "lingowhale"] = "mistral"
    """Which published architecture the model is an instance of, so that other programs can load it."""
    hidden_size: Annotated[int, Field(ge=8), Rehearsal(64)] = 384
    """Width of the residual stream."""
    intermediate_size: Annotated[int, Field(ge=8), Rehearsal(128)] = 1024
    """Width inside the feed-forward block (of one expert, in a mixtral)."""
    num_hidden_layers: Annotated[int, Field(ge=1), Rehearsal(2)] = 8
    """Decoder layers."""
    num_attention_heads: Annotated[int, Field(ge=1), Rehearsal(4)] = 6
    """Query heads."""
    num_key_value_heads: Annotated[int | None, Field(ge=1), Rehearsal(1)] = 2
    """Key and value heads, shared by groups of query heads. None: as many as query heads."""
    head_dim: Annotated[int | None, Field(ge=2), Rehearsal(16)] = None
    """Width of a head. None: hidden_size / num_attention_heads."""
    max_position_embeddings: Annotated[int, Field(ge=8)] = 2048
    """The longest sequence the model is meant for, in tokens."""
    rope_theta: Annotated[float, Field(gt=0)] = 10000.0
    """Base of the rotary wavelengths; longer contexts want a larger one."""
    sliding_window: Annotated[int | None, Field(ge=1)] = None
    """Tokens a position can look back on (mistral, mixtral). None: all."""
    tie_word_embeddings: bool = True
    """Use the embedding matrix as the output head: fewer parameters, better for small models."""
    num_experts: Annotated[int | None, Field(ge=2)] = None
    """Experts in each layer of a mixtral; None for the other families."""
    experts_per_token: Annotated[int, Field(ge=1)] = 2
    """Experts a token visits in a mixtral."""
    attention_init: Literal["normal", "copying"] = "normal"
    """How attention starts: normal, or copying (a token finds tokens like itself and passes them on), which lets a
    small model learn to copy much sooner."""
    initializer_range: Annotated[float, Field(gt=0)] = 0.02
    """Standard deviation of the fresh weights."""

    def decoder_config(self, *, vocab_size: int, **special_ids: int | None) -> ModelConfig:
        """The whole description of a fresh model: this shape, and what the tokenizer says (bos_token_id ...)."""
        sizes = self.model_dump(
            exclude={
                "rope_theta",
                "num_experts",
                "experts_per_token",
                "num_key_value_heads",
                "head_dim",
                "attention_init",
            }
        )
        optional = {name: getattr(self, name) for name in ("num_key_value_heads", "head_dim")}
        experts = self.num_experts
        return ModelConfig(
            **sizes,
            **{name: value for name, value in optional.items() if value is not None},
            **special_ids,  # type: ignore[arg-type]  # ids, by name
            vocab_size=vocab_size,
            rope=RopeConfig(theta=self.rope_theta),
            moe=None if experts is None else MoeConfig(num_experts=experts, experts_per_token=self.experts_per_token),
            norm_scales_in_float32=self.family == "aquila",
        )

    @model_validator(mode="after")
    def _consistent(self) -> ModelShape:
        if (self.num_experts is not None) != (self.family == "mixtral"):
            raise ValueError(
                f"num_experts is {self.num_experts} and family is {self.family}: a mixtral has experts, "
                "the other families have none"
            )
        if self.num_experts is None and self.experts_per_token != type(self).model_fields["experts_per_token"].default:
            raise ValueError(f"experts_per_token ({self.experts_per_token}) is read by family: mixtral only")
        if self.num_experts is not None and self.experts_per_token > self.num_experts:
            raise ValueError(f"experts_per_token ({self.experts_per_token}) is above num_experts ({self.num_experts})")
        if self.num_attention_heads % (self.num_key_value_heads or self.num_attention_heads):
            raise ValueError(
                f"num_attention_heads ({self.num_attention_heads}) must be a multiple of num_key_value_heads "
                f"({self.num_key_value_heads})"
            )
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size ({self.hidden_size}) must be a multiple of num_attention_heads "
                f"({self.num_attention_heads}) when head_dim is not given"
            )
        try:  # a shape that the family's config.json could not say would be found when the trained model is saved
            family_for(self.family).check(self.decoder_config(vocab_size=1))
        except ConfigError as error:
            raise ValueError(error.message) from error
        return self


class PretrainConfig(Config):
    """Train a model on text."""

    output: Path
    """Gets model/ (a Hugging Face directory), metrics.html, metrics.jsonl, xray.html, and checkpoints/ meanwhile."""
    documents: Annotated[list[DataSource], Field(min_length=1), Positional(0)]
    """The text to learn: files or folders, each with a weight."""
    validation: list[Path] = Field(default_factory=list)
    """Held-out text; its loss and bits per byte are measured during training and at the end."""
    exclude_rows: list[str] | Path = Field(default_factory=list)
    """Training data to leave out, by the keys that forensics/ shows: documents (`corpus.jsonl:12`) or rows
    (`train-0, row 57`); a list, or a file with one key on each line."""
    tokenizer: Path | None = None
    """Folder of the tokenizer. None: that of `init_from`."""
    model: ModelShape = ModelShape()
    """The model to make from random weights (not with `init_from`)."""
    init_from: str | None = None
    """A model to go on from instead of random weights: a folder or a hub name."""
    training: TrainingConfig = TrainingConfig()
    """Steps, batch, learning rate, precision, checkpoints."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Decides the fresh weights and the order of the data."""

    def whole_models(self) -> Iterator[tuple[str, str, str]]:
        """All of a model is trained."""
        if self.init_from is not None:
            yield "init_from", self.init_from, "start from the model it was made of"

    def unread(self) -> frozenset[str]:
        """The sizes of fresh weights, where there are none."""
        return frozenset() if self.init_from is None else frozenset({"model"})

    @model_validator(mode="after")
    def _consistent(self) -> PretrainConfig:
        if self.init_from is None and self.tokenizer is None:
            raise ValueError("tokenizer must be given (or init_from, a model that brings its own)")
        if self.init_from is not None and "model" in self.model_fields_set:
            raise ValueError("give `model` (fresh weights) or `init_from` (an existing model), not both")
        if self.init_from is None and self.training.sequence_length > self.model.max_position_embeddings:
            raise ValueError(
                f"training.sequence_length ({self.training.sequence_length}) is above "
                f"model.max_position_embeddings ({self.model.max_position_embeddings})"
            )
        return self
