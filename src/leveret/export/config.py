"""ExportConfig: for which program a model is written, and how its weights are stored there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from leveret.config import Config, Positional

GgufType = Literal[
    "f32", "f16", "bf16", "q8_0", "q4_0",
    "q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_1", "q4_k_s", "q4_k_m", "q5_0", "q5_1", "q5_k_s", "q5_k_m", "q6_k",
]  # fmt: skip
MlcType = Literal["q4f16_1", "q4f16_0", "q4f32_1", "q3f16_1", "q0f16", "q0f32"]
WHOLE_TYPES = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
"""The types of a directory, and what PyTorch calls them."""


class ExportConfig(Config):
    """Write a model for llama.cpp and Ollama, for transformers, vLLM and text-generation-webui, or for MLC-LLM."""

    model: Annotated[str, Positional(0, places=True)]
    """Model directory or adapter, or a name on the Hugging Face hub."""
    output: Path
    """The folder to write."""
    to: Literal["gguf", "directory", "mlc"] = "gguf"
    """gguf: llama.cpp, Ollama, LM Studio. directory: transformers, vLLM, text-generation-webui. mlc: MLC-LLM."""
    type: GgufType | None = None
    """How matrices are stored. None: bf16 in a GGUF file, as they are in a directory (f32, f16 and bf16 are for both).

    f32, f16, bf16, q8_0 and q4_0 are written here, the others by llama.cpp's quantizer.
    """
    adapter: Literal["apart", "merged"] | None = None
    """What becomes of an adapter. apart: a GGUF LoRA for llama.cpp beside any file of the model under it.

    merged: into the model. None: apart for `to=gguf` where the format can say it, else merged; which is told.
    """
    mlc_type: MlcType = "q4f16_1"
    """How MLC-LLM is told to store matrices: q4f16_1 is 4 bits in groups of 32 with float16 scales."""
    mlc_context: int = Field(default=2048, gt=0)
    """Tokens that a phone keeps; memory for keys and values grows with it."""
    name: str | None = None
    """The model's name in the file and of the file; by default that of the model directory."""
    card: Path | None = None
    """A README.md that is to mention this export as well; the folder written has a card of its own."""
    repository: str = "OWNER/NAME"
    """Where the printed upload commands go to. Nothing is uploaded."""

    @field_validator("type", mode="before")
    @classmethod
    def _may_be_written_large(cls, value: object) -> object:
        """llama.cpp and the names of files write Q4_K_M."""
        return value.lower() if isinstance(value, str) else value

    @field_validator("name")
    @classmethod
    def _names_a_file(cls, name: str | None) -> str | None:
        if name is not None and (not name.strip() or "/" in name or "\0" in name or name.startswith(".")):
            raise ValueError(f"{name!r} cannot be the beginning of a file's name; where it lies is `output`")
        return name

    def keeps_form_of(self) -> str | None:
        """A directory has the matrices as they are."""
        return self.model if self.to == "directory" else None

    def whole_models(self) -> Iterator[tuple[str, str, str]]:
        """GGUF has quantized formats of its own."""
        if self.to == "gguf":
            yield "model", self.model, "GGUF has formats of its own: export the model it was made of"

    @model_validator(mode="after")
    def _fits(self) -> ExportConfig:
        if self.to == "directory" and self.type is not None and self.type not in WHOLE_TYPES:
            raise ValueError(f"type={self.type} is for to=gguf; a directory has {', '.join(WHOLE_TYPES)}, or none")
        if self.to == "mlc" and self.type is not None:
            raise ValueError("type is for to=gguf and to=directory; for to=mlc say mlc_type")
        if self.to != "gguf" and self.adapter == "apart":
            raise ValueError("adapter=apart is for to=gguf; transformers and vLLM load the adapter's folder as it is")
        return self
