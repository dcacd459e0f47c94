"""SamplingConfig: the sampling keys of `leveret chat` and `leveret generate`."""

from __future__ import annotations

from typing import Literal

from leveret.config import Config
from leveret.engine.backends.names import OWN, BackendName
from leveret.engine.config import EngineConfig
from leveret.engine.defaults import SamplingOptions
from leveret.precision.names import InMemory


class SamplingConfig(Config):
    """Keys that are left out take the value in the model's generation_config.json, or else are off."""

    max_tokens: int | None = None
    """Most tokens to generate."""
    temperature: float | None = None
    """0 always takes the likeliest token; 1 samples from the model's own distribution."""
    top_k: int | None = None
    """Sample from the k likeliest tokens only."""
    top_p: float | None = None
    """Sample from the fewest likeliest tokens whose probabilities reach p."""
    min_p: float | None = None
    """Drop tokens less likely than this share of the likeliest one."""
    repetition_penalty: float | None = None
    """Above 1: tokens seen before become less likely."""
    presence_penalty: float | None = None
    """Taken from the logit of every token that was generated before, -2 to 2."""
    frequency_penalty: float | None = None
    """Taken from the logit of a token once for each time it was generated before, -2 to 2."""
    seed: int | None = None
    """Same seed, same answer."""
    stop: list[str] | None = None
    """Strings that end the answer."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the weights in memory; by default as stored."""
    device: str = "cpu"
    """Where the model runs."""
    adapter: str | None = None
    """Folder with an adapter to put on the model; a model path that is such a folder needs none."""
    quantize: InMemory | None = None
    """Round the matrices to so few bits as they are loaded; by default as stored. Storing them so starts sooner."""
    backend: BackendName = OWN
    """Who runs it: leveret, transformers, llama.cpp (the model is a GGUF file then), or the URL of a server with it."""
    engine: EngineConfig = EngineConfig()
    """How our own engine works."""

    def options(self) -> SamplingOptions:
        """The sampling options that were given."""
        options: SamplingOptions = {}
        for name in type(self).model_fields:
            value = getattr(self, name)
            if value is not None and name in SamplingOptions.__optional_keys__:
                options[name] = value  # type: ignore[literal-required]
        return options
