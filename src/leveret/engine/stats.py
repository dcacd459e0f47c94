"""EngineStats: what an engine has done since it was made, and what it holds now, for metrics and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EngineStats:
    """One look at an engine (`Engine.stats`). The first six say how it is now; the rest only ever grow."""

    waiting_requests: int
    """Requests that have no place yet, those that lost theirs to a preemption included."""
    running_requests: int
    """Requests that are being read or answered."""
    capacity_tokens: int
    """Tokens that the KV cache can hold."""
    used_tokens: int
    """Room of the blocks that running requests hold, shared blocks counted once."""
    kept_tokens: int
    """Tokens of finished requests that are still there for others to reuse, and give way when room is needed."""
    cache_bytes: int
    """Memory of the whole KV cache; pages that were never written are not taken from the machine."""
    submitted_requests: int
    """Requests taken on."""
    finished_requests: int
    """Requests that ended by themselves."""
    cancelled_requests: int
    """Requests ended by the caller."""
    prompt_tokens: int
    """Tokens of the prompts of all requests that have begun."""
    prefill_tokens: int
    """Tokens that the model read of prompts, or read again after a preemption."""
    reused_tokens: int
    """Tokens that it need not read, as a request before had begun in the same way."""
    generated_tokens: int
    """Tokens chosen or forced, without the stop tokens."""
    preemptions: int
    """How often a request lost its place in the cache to an older one, and was read again later."""
    drafted_tokens: int
    """Tokens that speculation guessed and the model checked."""
    accepted_tokens: int
    """Guessed tokens that were right."""
    steps: int
    """Steps of the engine that fed the model."""
