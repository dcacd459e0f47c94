"""Sampler: one id out of one row of logits, in fp32.

The order is that of transformers' logits processors, so that the same parameters mean the same distribution:

    repetition penalty -> banned ids and constraint -> temperature -> top-k -> top-p -> min-p -> draw

* penalty r (arXiv 1909.05858): a logit of an id seen before is divided by r if positive, multiplied by r if negative;
* top-k keeps every id at least as likely as the k-th; top-p (arXiv 1904.09751) the fewest likeliest ids whose
  probability reaches p; min-p (arXiv 2407.01082) those with p_i >= min_p * max_j p_j.

The draw inverts the cumulative distribution at one uniform number from the request's own generator, in fp64 on the
CPU. A row is sampled alone: its result depends on its logits, its parameters and how many numbers it has drawn, and
never on its neighbours in the batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from leveret.engine.request import Constraint, SamplingParams


class RowSampler:
    """Chooses the ids of one request; holds its random generator and the ids it has seen."""

    def __init__(self, params: SamplingParams, prompt_ids: tuple[int, ...], constraint: Constraint | None) -> None:
        self._params = params
        self._constraint = constraint
        self._banned = torch.tensor(params.banned_ids, dtype=torch.long)
        self._seen = set(prompt_ids) if params.repetition_penalty != 1 else None
        self._generator = torch.Generator()
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(params.seed)

    @property
    def plain(self) -> bool:
        """True when choosing is nothing but argmax, which the engine does for all such rows at once."""
        return self._params.greedy and self._seen is None and self._constraint is None and not len(self._banned)

    def forced(self) -> int | None:
        """The next id when the constraint leaves no choice: no logits are needed for it."""
        if self._constraint is None:
            return None
        allowed = self._constraint.allowed_ids()
        return int(allowed[0]) if len(allowed) == 1 else None

    def choose(self, logits: Tensor) -> int:
        """The next id, from the logits (V,) of any float type."""
        scores = logits.float().cpu()
        if self._seen is not None:
            scores = penalize(scores, self._seen, self._params.repetition_penalty)
        if len(self._banned):
            scores = scores.index_fill(0, self._banned, float("-inf"))
        if self._constraint is None:
            return draw(scores, self._params, self._generator)
        allowed = torch.tensor(self._constraint.allowed_ids())
        return int(allowed[draw(scores[allowed], self._params, self._generator)])

    def accept(self, token_id: int) -> bool:
        """Note an id as generated; True when the constraint is finished by it."""
        if self._seen is not None:
            self._seen.add(token_id)
        if self._constraint is None:
            return False
        self._constraint.advance(token_id)
        return self._constraint.finished


def penalize(scores: Tensor, seen: set[int], penalty: float) -> Tensor:
    """Scores (V,) with those of the seen ids made less likely (more likely when penalty < 1)."""
    ids = torch.tensor(sorted(seen))
    old = scores[ids]
    return scores.index_put((ids,), torch.where(old < 0, old * penalty, old / penalty))


def draw(scores: Tensor, params: SamplingParams, generator: torch.Generator) -> int:
    """Index chosen from scores (n,) by temperature and filters; ids banned before are at -inf."""
    if params.greedy:
        return int(scores.argmax())
    kept = filter_scores(scores / params.temperature, params)
    cumulative = kept.double().softmax(dim=-1).cumsum(dim=-1)
    uniform = torch.rand((), dtype=torch.float64, generator=generator) * cumulative[-1]
    index = int(torch.searchsorted(cumulative, uniform, right=True))
    # At u = 1 - 2^-53 rounding can step past the end; the last index with any probability is then right.
    return index if index < len(kept) else int(kept.isfinite().nonzero()[-1])


def filter_scores(scores: Tensor, params: SamplingParams) -> Tensor:
    """Scores (n,) with those that top-k, top-p and min-p drop set to -inf; the likeliest always stays."""
    if params.top_k is not None and params.top_k < len(scores):
        smallest = scores.topk(params.top_k).values[-1]
        scores = scores.masked_fill(scores < smallest, float("-inf"))
    if params.top_p is not None and params.top_p < 1:
        ascending, order = scores.sort()
        dropped = ascending.softmax(dim=-1).cumsum(dim=-1) <= 1 - params.top_p
        dropped[-1] = False
        scores = scores.index_fill(0, order[dropped], float("-inf"))
    if params.min_p is not None and params.min_p > 0:
        probabilities = scores.softmax(dim=-1)
        scores = scores.masked_fill(probabilities < params.min_p * probabilities.max(), float("-inf"))
    return scores
