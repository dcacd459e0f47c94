"""What `adapter:` in a fine-tuning recipe can say: train a small change beside a frozen model instead of the model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from leveret.config import Config


class AdapterTraining(Config):
    """What is trained beside the frozen model, and what becomes of it."""

    method: Literal["lora", "prefix"] = "lora"
    """lora: a product of two thin matrices is added to each chosen matrix. prefix: trained keys and values that every
    token of every layer reads before the text; fewer numbers, and weaker."""
    base: Literal["nf4"] | None = None
    """nf4: round the frozen matrices to four bits in memory (QLoRA), a quarter of bfloat16's size. None: as stored."""
    prefix_tokens: Annotated[int, Field(ge=1)] = 16
    """Length of the prefix, with method: prefix. The keys below are those of lora."""
    rank: Annotated[int, Field(ge=1)] = 16
    """Width of the thin matrices. 8 suits a style or a format; new knowledge takes 64 and more."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """The change is multiplied by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the inputs of the change that is left out at each step."""
    rslora: bool = False
    """Multiply by alpha / sqrt(rank) instead, so that a large rank is not held back."""
    dora: bool = False
    """Train the length of each row of a matrix apart from its direction (DoRA); slower, and often better at small
    ranks."""
    targets: str | list[str] = "all-linear"
    """Which matrices are changed: `all-linear` (all but lm_head and routers), a list of names or endings of names
    (`[q_proj, v_proj]`), or one regular expression for whole names as the model's files have them."""
    modules_to_save: list[str] = Field(default_factory=list)
    """Modules that are trained whole and saved with the adapter, by name or ending: embed_tokens, lm_head, norm ..."""
    train_tokens: list[str] = Field(default_factory=list)
    """Tokens of the old vocabulary whose rows in the embedding and the head are trained, besides those of new tokens.
    All other rows stay as they are, to the bit."""
    merge: bool = False
    """Also write `model/`: the model with the adapter merged in, for programs that read no adapters."""

    @model_validator(mode="after")
    def _consistent(self) -> AdapterTraining:
        if not self.targets:
            raise ValueError("targets is empty: write all-linear, or names such as [q_proj, v_proj]")
        of_lora = type(self).model_fields.keys() - {"method", "base", "prefix_tokens"}
        unread = of_lora if self.method == "prefix" else {"prefix_tokens"}
        if wrong := sorted(unread & self.model_fields_set):
            raise ValueError(f"{', '.join(wrong)}: not read with method: {self.method}")
        return self

    def identity(self) -> dict[str, Any]:
        """What decides what is learnt."""
        return self.model_dump(mode="json", exclude={"merge"})
