"""Log probabilities: how likely the model found a token, and which others it found as likely.

They are those of the model itself, log softmax of its logits in fp32, before any penalty, bias, temperature or filter:
what was asked of the sampler does not change what the model believed. A token that a constraint forced was not chosen
from logits; its log probability is 0 (nothing else was possible) and it has no alternatives.

The prompt's own tokens are scored by forward passes of their own (`score_prompt`), which a request pays for only when
it asks: a piece of the prompt at a time, so that others need not wait for the whole of it. Logits are made for a few
positions at a time, since a vocabulary is large: at 150,000 ids one position is 0.6 MB in fp32.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from leveret.engine.token_score import TokenScore
from leveret.model.cache import KVCache
from leveret.model.decoder import Decoder

POSITIONS_AT_ONCE = 64
"""Logits of the prompt are made for so many positions at a time."""

PIECE_TOKENS = 256
"""So many tokens of a prompt are read at a time."""


def score_token(logits: Tensor, token_id: int, num_top: int) -> TokenScore:
    """The score of one id under logits (V,), with the `num_top` likeliest ids."""
    logprobs = logits.float().log_softmax(dim=-1)
    top = logprobs.topk(min(num_top, len(logprobs)))
    alternatives = tuple(zip(top.indices.tolist(), top.values.tolist(), strict=True))
    return TokenScore(id=token_id, logprob=float(logprobs[token_id]), top=alternatives)


def score_prompt(model: Decoder, ids: Sequence[int], num_top: int) -> Iterator[list[TokenScore]]:
    """The scores of a prompt's tokens, each given those before it, piece by piece; the first token has none."""
    weight = model.embed_tokens.weight
    cache = KVCache(model.config, 1, len(ids), weight.dtype, weight.device)
    scores = [TokenScore(id=ids[0], logprob=None)]
    for first in range(0, len(ids) - 1, PIECE_TOKENS):
        scores += _scores(model, cache, ids[first : first + PIECE_TOKENS + 1], num_top)
        yield scores
        scores = []
    if scores:
        yield scores


@torch.inference_mode()
def _scores(model: Decoder, cache: KVCache, ids: Sequence[int], num_top: int) -> list[TokenScore]:
    """Of all of the ids but the first; the last one is not read."""
    scores: list[TokenScore] = []
    device = model.embed_tokens.weight.device
    hidden = model.hidden(torch.tensor([list(ids[:-1])], device=device), cache=cache)[0]  # (T, H)
    for first in range(0, len(hidden), POSITIONS_AT_ONCE):
        following = ids[first + 1 : first + 1 + POSITIONS_AT_ONCE]
        logits = model.lm_head(hidden[first : first + len(following)])  # (t, V)
        scores += [score_token(row, token_id, num_top) for row, token_id in zip(logits, following, strict=True)]
    return scores
