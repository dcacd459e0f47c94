"""GenerateConfig: what `leveret generate` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from leveret.cli.sampling_config import SamplingConfig
from leveret.config import Positional


class GenerateConfig(SamplingConfig):
    """The text is continued as it is, without a chat template; only the continuation is printed."""

    model: Annotated[str, Positional(0)]
    """Model directory, or a name on the Hugging Face hub."""
    prompt: Annotated[str, Positional(1)]
    """The text to continue."""
    output: Path | None = None
    """Folder to write the continuation to, as generated.txt."""
