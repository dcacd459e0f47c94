"""ServeConfig: which model answers, where, and how much it takes on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from leveret.config import Config, Positional


class ServeConfig(Config):
    """Answer at an OpenAI-compatible endpoint."""

    model: Annotated[str, Positional(0)]
    """Model directory, or a name on the Hugging Face hub."""
    host: str = "127.0.0.1"
    """Address to listen at. The default is this machine only; 0.0.0.0 lets the whole network in."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """Port to listen at; 0 takes a free one."""
    served_model_name: str | None = None
    """The model's name in the API; by default the name of its directory."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the weights in memory; by default as stored."""
    device: str = "cpu"
    """Where the model runs."""
    api_key: str | None = Field(default=None, repr=False)
    """If set, requests must carry it as `Authorization: Bearer <key>`."""
    max_concurrent_requests: Annotated[int, Field(ge=1)] = 32
    """Answers generated at the same time; more wait in a queue."""
    max_waiting_requests: Annotated[int, Field(ge=0)] = 256
    """Length of that queue; beyond it a request is refused with status 429."""
    max_body_bytes: Annotated[int, Field(ge=1)] = 4_000_000
    """Largest request body; beyond it a request is refused with status 413."""
    ask: list[str] = Field(default_factory=list)
    """Answer these through the endpoint, on a free port, with streaming; print the answers and stop."""
    output: Path | None = None
    """Folder to write the answers to `ask` to, as answers.jsonl."""
