"""ConvertConfig: what `leveret convert` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from leveret.config import Config, Positional


class ConvertConfig(Config):
    """Make a clean model directory of .bin, .safetensors or .gguf files, checked tensor by tensor."""

    model: Annotated[str, Positional(0, places=True)]
    """Model directory, hub name, .gguf file, or one .bin, .pt, .pth or .safetensors file."""
    output: Path
    """The directory to write."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Of all tensors; None: as they are stored (float16 for a .gguf in blocks)."""
    model_config_file: Path | None = None
    """config.json of a lone tensor file; None: the one beside it."""
