"""Sampler: one id out of one row of logits, in fp32.

The order is that of transformers' logits processors, so that the same parameters mean the same distribution:

    repetition penalty -> OpenAI's penalties, bias -> banned ids, constraint -> temperature -> top-k -> top-p -> min-p

* penalty r (arXiv 1909.05858): a logit of an id seen before is divided by r if positive, multiplied by r if negative;
* OpenAI's: of an id generated c times before, c * frequency + (c > 0) * presence is subtracted, and its bias added;
* top-k keeps every id at least as likely as the k-th; top-p (arXiv 1904.09751) the fewest likeliest ids whose
  probability reaches p; min-p (arXiv 2407.01082) those with p_i >= min_p * max_j p_j.

The draw inverts the cumulative distribution at one uniform number from the request's own generator, in fp64 on the
CPU. A row is sampled alone: its result depends on its logits, its parameters and how many numbers it has drawn, and
never on its neighbours in the batch.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from leveret.engine.logprobs import score_token
from leveret.engine.request import Constraint, SamplingParams
from leveret.engine.token_score import TokenScore
from leveret.errors import RequestError, WeightsError


class RowSampler:
    """Chooses the ids of one request; holds its random generator and the ids it has seen."""

    def __init__(
        self,
        params: SamplingParams,
        prompt_ids: tuple[int, ...],
        constraint: Constraint | None,
        record: Callable[[TokenScore], None] | None = None,
    ) -> None:
        """`record` gets the score of every id that is chosen or forced, if `params.logprobs` is set."""
        self._params = params
        self._record = None if params.logprobs is None else record
        self._constraint = constraint
        self._banned_ids = frozenset(params.banned_ids)
        self._banned = torch.tensor(params.banned_ids, dtype=torch.long)
        self._seen = set(prompt_ids) if params.repetition_penalty != 1 else None
        penalized = params.presence_penalty != 0 or params.frequency_penalty != 0
        self._counts: Counter[int] | None = Counter() if penalized else None
        changed = self._seen is not None or penalized or params.logit_bias or params.banned_ids
        self.plain = params.greedy and not changed and constraint is None and self._record is None
        """True when choosing is nothing but argmax, which the engine does for all such rows at once."""
        self._generator = torch.Generator()
        if params.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(int(params.seed))

    def fork(self) -> RowSampler:
        """A sampler for guesses: it chooses as this one would from here on, without the constraint and the record."""
        twin = copy.copy(self)
        twin._constraint = twin._record = None
        twin._seen, twin._counts = copy.copy(self._seen), copy.copy(self._counts)
        twin._generator = self._generator.clone_state()
        return twin

    def forced(self) -> int | None:
        """The next id when the constraint leaves no choice: no logits are needed for it.

        RequestError when it is banned.
        """
        if self._constraint is None:
            return None
        allowed = self._constraint.allowed_ids()
        if len(allowed) != 1:
            return None
        if int(allowed[0]) in self._banned_ids:
            raise _nothing_left()
        if self._record is not None:
            self._record(TokenScore(id=int(allowed[0]), logprob=0.0))
        return int(allowed[0])

    def choose(self, logits: Tensor) -> int:
        """The next id, from the logits (V,) of any float type.

        RequestError when each that may come is banned, WeightsError when the logits are no numbers.
        """
        scores = logits.float().cpu()
        if not scores.max() < math.inf:  # what is no number is the largest to PyTorch, and not below anything
            raise no_numbers()
        chosen = self._chosen(self._adjusted(scores))
        if self._record is not None:
            self._record(score_token(scores, chosen, self._params.logprobs or 0))
        return chosen

    def accept(self, token_id: int) -> bool:
        """Note an id as generated; True when the constraint is finished by it."""
        if self._seen is not None:
            self._seen.add(token_id)
        if self._counts is not None:
            self._counts[token_id] += 1
        if self._constraint is None:
            return False
        self._constraint.advance(token_id)
        return self._constraint.finished

    def _adjusted(self, scores: Tensor) -> Tensor:
        if self._seen is not None:
            scores = penalize(scores, self._seen, self._params.repetition_penalty)
        if self._counts or self._params.logit_bias:
            scores = shift(scores, self._counts or {}, self._params)
        if len(self._banned):
            scores = scores.index_fill(0, self._banned, float("-inf"))
        return scores

    def _chosen(self, scores: Tensor) -> int:
        if self._constraint is None:
            return draw(scores, self._params, self._generator)
        ids = self._constraint.allowed_ids()
        if self._banned_ids and len(ids) <= len(self._banned_ids) and self._banned_ids.issuperset(ids.tolist()):
            raise _nothing_left()
        allowed = torch.tensor(ids)
        return int(allowed[draw(scores[allowed], self._params, self._generator)])


def no_numbers() -> WeightsError:
    """A model's answer is infinite or NaN: whatever was chosen from it would be made up."""
    return WeightsError(
        "the model computes values that are infinite or no numbers, so there is no answer",
        hint="a file of weights is damaged, or the training that wrote it had failed: `leveret convert MODEL "
        "output=...` names the tensor",
    )


def _nothing_left() -> RequestError:
    return RequestError(
        "banned_ids leaves none of the tokens that the form of the answer allows here",
        param="banned_ids",
        code="invalid_value",
    )


def penalize(scores: Tensor, seen: set[int], penalty: float) -> Tensor:
    """Scores (V,) with those of the seen ids made less likely (more likely when penalty < 1)."""
    ids = torch.tensor(sorted(seen))
    old = scores[ids]
    return scores.index_put((ids,), torch.where(old < 0, old * penalty, old / penalty))


def shift(scores: Tensor, counts: Mapping[int, int], params: SamplingParams) -> Tensor:
    """Scores (V,) after OpenAI's presence and frequency penalties for ids generated `counts` times, and the bias."""
    changes = dict(params.logit_bias)
    for token_id, count in counts.items():
        penalty = params.presence_penalty + count * params.frequency_penalty
        changes[token_id] = changes.get(token_id, 0.0) - penalty
    ids = torch.tensor(list(changes), dtype=torch.long)
    return scores.index_add(0, ids, torch.tensor(list(changes.values()), dtype=scores.dtype))


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
