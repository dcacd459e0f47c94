"""CertifyConfig: which forms are compared, on what, and what the model card says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from leveret.certify.references import is_server
from leveret.config import Config, Positional, Rehearsal


class CertifyConfig(Config):
    """Prove that two forms of a model give the same answers, and write its card."""

    forms: Annotated[list[str], Positional(0, places=True)] = Field(min_length=1)
    """Every form is compared with the first: model directories (quantized ones and adapters too), training checkpoints,
    GGUF files, `transformers:DIRECTORY`, `peft:ADAPTER` and `llama.cpp:FILE.gguf` for what others make of them,
    `MODEL+ADAPTER`, and http://HOST/v1 for a running server."""
    output: Path | None = None
    """Folder to write certificate.json to; by default it is only printed."""
    transformers: Literal["auto", "require", "off"] = "auto"
    """Whether the first plain directory is also compared as transformers reads it. auto: if transformers is installed
    and reads it; require: an error if not."""
    server_numbers: Literal["exact", "16-bit", "int8", "int4"] = "16-bit"
    """How a server computes, which it does not tell itself; it decides the bounds. exact: in float32."""
    text: list[Path] = Field(default_factory=list)
    """Held-out text files for perplexity. None: it is not compared."""
    text_tokens: Annotated[int, Field(ge=2), Rehearsal(512)] = 4096
    """Tokens of text that are used, at most."""
    greedy_tokens: Annotated[int, Field(ge=1), Rehearsal(4)] = 24
    """Tokens that each conversation of the zoo is continued by."""
    card: Path | None = None
    """Model directory whose README.md is written. A README.md not written by this command keeps its text and only gets
    the certificate."""
    sources: list[Path] = Field(default_factory=list)
    """Folders of earlier stages whose facts go into the card: settings, training curves, evaluation results."""
    title: str | None = None
    """Name of the model in its card; by default the directory's."""
    description: str | None = None
    """What the model is for, one paragraph for the card."""
    license: str = "other"
    """License identifier for the card's metadata, such as apache-2.0."""
    languages: list[str] = Field(default_factory=lambda: ["en", "zh"])
    """Languages of the model, for the card's metadata."""

    @model_validator(mode="after")
    def _something_to_compare(self) -> CertifyConfig:
        if len(self.forms) < 2 and self.transformers == "off":
            raise ValueError("forms: one form and transformers off leave nothing to compare; name a second form")
        if is_server(self.forms[0]):
            raise ValueError("forms: a server gives no logits to compare with; name a form before it")
        if len(set(self.forms)) < len(self.forms):
            raise ValueError("forms: the same form is named twice")
        if self.sources and self.card is None:
            raise ValueError("sources: they go into a card, and no card is asked for")
        return self
