"""ChatConfig: what `leveret chat` takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from leveret.cli.sampling_config import SamplingConfig
from leveret.config import Config, Positional


class SandboxConfig(Config):
    """What the functions of a Python file may take when a model calls them."""

    seconds: Annotated[int, Field(ge=1, le=3600)] = 10
    """Longest time of a call."""
    memory_mib: Annotated[int, Field(ge=64)] = 1024
    """Most memory of a call, on Linux."""
    network: bool = False
    """Let calls use the network."""


class ChatConfig(SamplingConfig):
    """Type a message, read the answer as it comes; lines that begin with / are commands (/help lists them).

    Reads from a pipe as well, one message a line.
    """

    model: Annotated[str, Positional(0, places=True)]
    """Model directory, or a name on the Hugging Face hub."""
    mode: Literal["chat", "base"] | None = None
    """`chat` answers messages, `base` continues them as text; by default what the model was made for."""
    system: str | None = None
    """System message; by default that of the model's chat template."""
    tools: bool | Path | None = None
    """Let the model call its tools; by default when it has any. A Python file offers its functions, which then run in a
    sandbox; a JSON file of declarations (OpenAI's or MCP's) offers those, and calls are only shown."""
    max_rounds: Annotated[int, Field(ge=1, le=50)] | None = None
    """Most answers to one message, when the model is told what came of its calls and goes on; by default 5 with a
    Python file, and 1 (it is told nothing) where nothing is run."""
    allow: list[str] = Field(default_factory=list)
    """Functions marked as acts that may run without a yes."""
    sandbox: SandboxConfig = SandboxConfig()
    """Limits of functions that run."""
    history: bool | None = None
    """Show the model the whole conversation; by default when it answers in text: a tool call or a continuation stands
    alone."""

    @model_validator(mode="after")
    def _check_tools(self) -> ChatConfig:
        if isinstance(self.tools, Path) and self.tools.suffix not in (".py", ".json"):
            raise ValueError(f"tools: {self.tools} is neither a Python file nor a JSON file of declarations")
        return self
