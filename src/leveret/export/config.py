"""ExportConfig: for which program a model is written, and how its weights are stored there."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from leveret.config import Config, Positional

GgufType = Literal[
    "f32", "f16", "bf16", "q8_0", "q4_0",
    "q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_1", "q4_k_s", "q4_k_m", "q5_0", "q5_1", "q5_k_s", "q5_k_m", "q6_k",
]  # fmt: skip


class ExportConfig(Config):
    """Write a model for llama.cpp and Ollama."""

    model: Annotated[str, Positional(0)]
    """Model directory, or a name on the Hugging Face hub."""
    output: Path
    """The folder to write: the .gguf, an Ollama Modelfile and run.sh."""
    type: GgufType = "bf16"
    """How matrices are stored. f32, f16, bf16, q8_0 and q4_0 are written here, the others by llama.cpp's quantizer."""
    name: str | None = None
    """The model's name in the file and of the file; by default that of the model directory."""
