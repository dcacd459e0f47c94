"""What `leveret prepare` can be told."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from leveret.config import Config, Positional, Rehearsal


class RequestsConfig(Config):
    """Generate requests for a tool set from phrase books."""

    tools: Path
    """The tool set: a JSON file of OpenAI tools or MCP tools."""
    phrases: Annotated[list[Path], Field(min_length=1)]
    """Phrase books (YAML), one a language; each language gets an equal share of the requests."""
    train: Annotated[int, Field(ge=1), Rehearsal(400)] = 40_000
    """Requests to train on."""
    as_text: Annotated[int, Field(ge=1)] = 40_000
    """So many of the requests to train on, the first ones, are written as plain text as well, for a tokenizer and for
    pretraining."""
    held_out: Annotated[int, Field(ge=1), Rehearsal(40)] = 500
    """Held-out single requests a language; a third as many combined ones and a quarter as many irrelevant ones."""
    combined_share: Annotated[float, Field(ge=0, le=1)] = 0.25
    """Share of the training requests that ask for two or three calls."""
    irrelevant_share: Annotated[float, Field(ge=0, le=1)] = 0.12
    """Share of the training requests that no tool serves."""

    @model_validator(mode="after")
    def _consistent(self) -> RequestsConfig:
        if self.combined_share + self.irrelevant_share > 1:
            raise ValueError("combined_share and irrelevant_share together are above 1")
        return self


class PrepareConfig(Config):
    """Gather text and generate requests."""

    output: Path
    """Gets text.train.jsonl, text.valid.jsonl; with `requests`, requests.train.jsonl, held_out.*.jsonl; report.json."""
    documents: Annotated[list[Path], Positional(0)] = Field(default_factory=list)
    """Text files, JSON files whose records have `text`, or folders of them."""
    standard_library: bool = False
    """Take the sources and the documentation of this Python's standard library as text."""
    max_bytes: Annotated[int, Field(gt=0), Rehearsal(200_000)] = 1_000_000_000
    """Text to keep at most, in bytes of UTF-8; when there is more, a seeded sample of the documents."""
    validation_share: Annotated[float, Field(ge=0, le=0.5)] = 0.02
    """Share of the documents that is held out, by a hash of each text."""
    requests: RequestsConfig | None = None
    """Generate requests as well."""
    seed: int = 0
    """Decides which documents are kept and which requests are generated."""

    @model_validator(mode="after")
    def _has_work(self) -> PrepareConfig:
        if not self.documents and not self.standard_library and self.requests is None:
            raise ValueError("name documents, set standard_library, or configure requests: there is nothing to prepare")
        return self
