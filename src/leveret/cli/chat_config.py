"""ChatConfig: what `leveret chat` takes."""

from __future__ import annotations

from typing import Annotated, Literal

from leveret.cli.sampling_config import SamplingConfig
from leveret.config import Positional


class ChatConfig(SamplingConfig):
    """Type a message, read the answer as it comes; lines that begin with / are commands (/help lists them).

    Reads from a pipe as well, one message a line.
    """

    model: Annotated[str, Positional(0)]
    """Model directory, or a name on the Hugging Face hub."""
    mode: Literal["chat", "base"] | None = None
    """`chat` answers messages, `base` continues them as text; by default what the model was made for."""
    system: str | None = None
    """System message; by default that of the model's chat template."""
    tools: bool | None = None
    """Let the model call its tools; by default when it has any."""
    history: bool | None = None
    """Show the model the whole conversation; by default when it answers in text: a tool call or a continuation stands
    alone."""
