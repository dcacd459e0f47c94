"""EvaluateConfig: which model is scored, on which requests and texts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from leveret.config import Config, Positional, Rehearsal
from leveret.engine.backends.names import OWN, BackendName, is_url


class EvaluateConfig(Config):
    """Score a model: tool calls on request files, bits per byte on held-out text."""

    model: Annotated[str, Positional(0, places=True)]
    """Model directory, or a name on the Hugging Face hub."""
    output: Path | None = None
    """Folder for evaluation.json and failures.jsonl; by default results are only printed."""
    tools: list[Path] = Field(default_factory=list)
    """Request files, JSON lines of {"query": ..., "calls": [{"name": ..., "arguments": {...}}]}; each is one group."""
    text: list[Path] = Field(default_factory=list)
    """Held-out text files: .txt, or .jsonl with a "text" in each line."""
    constrained: bool = True
    """Let the model write valid calls only. Off: it writes what it likes, and what does not parse is counted."""
    any_order: bool = False
    """Take the calls of a combined request in any order."""
    backend: BackendName = OWN
    """Who runs it: leveret, transformers, llama.cpp (the model is a GGUF file then), or the URL of a server with it."""
    max_requests: Annotated[int | None, Field(ge=1), Rehearsal(16)] = None
    """Requests that are used of each file, the first ones. null: all."""
    max_text_bytes: Annotated[int | None, Field(ge=1), Rehearsal(4096)] = None
    """Bytes of text that are used of each file, whole documents from its beginning. null: all."""
    window_tokens: Annotated[int, Field(ge=2)] = 1024
    """Longest piece of a document that the model sees at once; less where its context is shorter."""
    shown_failures: Annotated[int, Field(ge=0)] = 10
    """Failures that are printed; failures.jsonl has them all."""

    @model_validator(mode="after")
    def _something_to_measure(self) -> EvaluateConfig:
        if not self.tools and not self.text:
            raise ValueError("nothing to measure: give --tools requests.jsonl or --text held_out.jsonl")
        if self.text and self.backend != OWN:
            raise ValueError(f"text is measured by backend=leveret only, not by {self.backend}: leave one of them out")
        if self.tools and self.constrained and is_url(self.backend):
            raise ValueError("a server chooses its tokens itself: with the URL of one, say constrained=false")
        for name, files in (("tools", self.tools), ("text", self.text)):
            if len(set(files)) < len(files):
                raise ValueError(f"{name}: the same file is named twice")
        return self
