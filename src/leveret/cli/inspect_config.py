"""InspectConfig: what `leveret inspect` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from leveret.config import Config, Positional


class InspectConfig(Config):
    """Looks at headers and small files only, so that a large model is described at once."""

    path: Annotated[Path, Positional(0)]
    """A model folder, token shards, checkpoints, a run folder, an adapter, a tokenizer,
    or a .safetensors, .bin, .gguf or .jsonl file."""
    every_tensor: bool = False
    """List each tensor; otherwise those that differ only by a number in their name share a line."""
