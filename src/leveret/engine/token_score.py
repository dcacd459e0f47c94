"""TokenScore: one token and how likely the model found it; made by `logprobs.py`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TokenScore:
    """One token and what the model thought of it."""

    id: int
    """The token."""
    logprob: float | None
    """Natural logarithm of its probability; None for the first token of a prompt, which nothing predicts."""
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens with their log probabilities, likeliest first; the token itself need not be among them."""
