"""EngineConfig: how much the engine takes on at a time and what it remembers; the same keys wherever a model runs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from leveret.config import Config

DEFAULT_CACHE_BYTES = 2 << 30
"""Memory of the KV cache when the config does not say, unless one request needs more."""


class EngineConfig(Config):
    """No key changes an answer, except by the rounding of the numbers it is computed with."""

    max_rows: Annotated[int, Field(ge=1)] = 64
    """Requests answered at the same time; more wait their turn."""
    prefill_chunk_tokens: Annotated[int, Field(ge=1)] = 512
    """Tokens of prompts read in one step, between two tokens of the answers that are under way."""
    cache_memory_mib: Annotated[int, Field(ge=1)] | None = None
    """Memory of the KV cache. By default 2048, or what one request of the whole context needs if that is more."""
    cache_block_tokens: Annotated[int, Field(ge=1)] = 32
    """Tokens of a block of the cache: requests share a prefix in whole blocks."""
    reuse_prefixes: bool = True
    """Requests that begin like one before reuse what was computed for it."""
    speculation: Literal["lookup"] | None = "lookup"
    """Guess tokens by what followed the last time in the text, and check several in one step; pauses while it does not
    pay."""
    batch_invariant: bool = False
    """The same request gives the same tokens, to the last bit of every number, alone and in company. It costs speed:
    prompts are read a block at a time, and nothing is guessed."""
    cuda_graphs: bool = True
    """On a GPU, record what a step launches and replay it, for plain models; compared once with the step itself."""
    draft_model: str | None = None
    """A small model with the same tokenizer that guesses tokens too: a directory, or a name on the hub."""

    @property
    def changed(self) -> list[str]:
        """The keys that are not as they are by default."""
        default = type(self)()
        return [name for name in type(self).model_fields if getattr(self, name) != getattr(default, name)]
