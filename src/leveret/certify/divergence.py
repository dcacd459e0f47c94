"""How far two sets of logits are apart: largest difference, KL divergence with an interval, agreement, perplexity.

For logits a (the first form) and b (the second) over the same ids, at every position t

    KL_t = sum over v of  softmax(a_t)[v] * (log softmax(a_t)[v] - log softmax(b_t)[v])        in nats

The mean over positions gets a 95 % interval by the bootstrap: whole sequences are drawn anew with replacement,
since positions of one sequence are not independent (Efron 1979). The draws are seeded; the same logits give the
same interval.

Shape legend: T positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

RESAMPLES = 1000
"""Bootstrap draws for the interval."""

POSITIONS_AT_ONCE = 64
"""Positions whose probabilities are in memory in float64 at a time."""

LEAST_LOGPROB = -30.0
"""Servers round what is less likely than this, or call it minus infinity."""

LEAST_REST = 1e-6
"""What the ids that are not told of are taken to have together, at least: the others are known to float32."""


@dataclass(frozen=True, kw_only=True)
class SequenceDivergence:
    """Two forms compared on one sequence of T ids."""

    name: str
    """Which text or conversation it is from."""
    is_text: bool
    """Whether it counts for perplexity."""
    ids: tuple[int, ...]
    """The T ids."""
    kl_T: np.ndarray
    """KL at each position, nats, float64."""
    difference_T: np.ndarray
    """Largest |logit difference| at each position."""
    largest_logit: float
    """Largest |logit| of the first form."""
    same_choice_T: np.ndarray
    """Whether both would choose the same next token."""
    losses: tuple[float, float]
    """Summed negative log likelihood of the T - 1 next ids under the first and the second, nats."""
    start: int = 0
    """The token that the first of the positions is."""

    @property
    def num_predicted(self) -> int:
        """How many ids the losses are summed over."""
        return len(self.ids) - 1


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


def compare_logits(
    name: str, ids: Sequence[int], first_TV: torch.Tensor, second_TV: torch.Tensor, *, is_text: bool
) -> SequenceDivergence:
    """Compare the logits of two forms over the same ids; computed in float64, some positions at a time."""
    kls, differences, losses = [], [], [0.0, 0.0]
    for start in range(0, len(ids), POSITIONS_AT_ONCE):
        part = slice(start, start + POSITIONS_AT_ONCE)
        first, second = first_TV[part].double(), second_TV[part].double()
        log_first, log_second = F.log_softmax(first, dim=-1), F.log_softmax(second, dim=-1)
        kls.append((log_first.exp() * (log_first - log_second)).sum(-1).clamp(min=0))
        differences.append((first - second).abs().amax(-1))
        targets = torch.tensor(list(ids[start + 1 : start + 1 + POSITIONS_AT_ONCE]), dtype=torch.long)
        for side, log_side in enumerate((log_first, log_second)):
            losses[side] += float(F.nll_loss(log_side[: len(targets)], targets, reduction="sum"))
    return SequenceDivergence(
        name=name,
        is_text=is_text,
        ids=tuple(ids),
        kl_T=torch.cat(kls).numpy(),
        difference_T=torch.cat(differences).numpy(),
        largest_logit=float(first_TV.abs().max()),
        same_choice_T=(first_TV.argmax(-1) == second_TV.argmax(-1)).numpy(),
        losses=(losses[0], losses[1]),
    )


def compare_logprobs(
    name: str,
    ids: Sequence[int],
    first_TV: torch.Tensor,
    second: Sequence[tuple[float | None, Mapping[int, float]]],
    *,
    start: int = 0,
    is_text: bool,
) -> SequenceDivergence:
    """Compare logits with what a server tells: at each position from `start` on, the log probability of the id that
    comes next (None if it does not tell) and those of the likeliest ids.

    Differences are of log probabilities. KL is that of the distribution over these ids and all others together, which
    is never more than the true one.
    """
    log_first = F.log_softmax(first_TV.double(), dim=-1)
    kls, differences, same, losses = [], [], [], [0.0, 0.0]
    for at, (following, top) in enumerate(second, start=start):
        row = log_first[at]
        told = dict(top) if following is None else dict(top) | {ids[at + 1]: following}
        ours = {index: float(row[index]) for index in told}
        differences.append(np.max([_apart(ours[index], told[index]) for index in told], initial=0.0))
        kls.append(_coarse_kl([(ours[index], told[index]) for index in told]))
        same.append(not top or int(row.argmax()) == max(top, key=lambda index: top[index]))
        if following is not None:
            losses = [losses[0] - ours[ids[at + 1]], losses[1] - following]
    return SequenceDivergence(
        name=name,
        is_text=is_text,
        ids=tuple(ids),
        kl_T=np.array(kls),
        difference_T=np.array(differences),
        largest_logit=float(first_TV.abs().max()),
        same_choice_T=np.array(same),
        losses=(losses[0], losses[1]),
        start=start,
    )


def _apart(first: float, second: float) -> float:
    """|first - second|; of two that are as good as impossible, nothing."""
    if first < LEAST_LOGPROB and second < LEAST_LOGPROB:
        return 0.0
    return abs(max(first, LEAST_LOGPROB) - max(second, LEAST_LOGPROB))


def _coarse_kl(pairs: Sequence[tuple[float, float]]) -> float:
    """KL of two distributions over some ids (log probabilities given) and over the rest, taken as one.

    Of numbers that are none it is none either: of two, max() keeps the first, and that is where they stand here.
    """
    rest = [max(1.0 - sum(math.exp(pair[side]) for pair in pairs), LEAST_REST) for side in (0, 1)]
    pairs = [*pairs, (math.log(rest[0]), math.log(rest[1]))]
    return max(sum(math.exp(first) * (first - max(second, LEAST_LOGPROB)) for first, second in pairs), 0.0)


def mean_kl(sequences: Sequence[SequenceDivergence], *, seed: int = 0) -> Interval:
    """Mean KL a position over all sequences, with its bootstrap interval."""
    sums = np.array([sequence.kl_T.sum() for sequence in sequences])
    lengths = np.array([len(sequence.kl_T) for sequence in sequences])
    drawn = np.random.default_rng(seed).integers(0, len(sequences), size=(RESAMPLES, len(sequences)))
    means = sums[drawn].sum(-1) / lengths[drawn].sum(-1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(mean=float(sums.sum() / lengths.sum()), low=float(low), high=float(high))


def perplexities(sequences: Sequence[SequenceDivergence]) -> tuple[float, float] | None:
    """Perplexity of the first and of the second form on the given texts; None when there is no text."""
    texts = [sequence for sequence in sequences if sequence.is_text and sequence.num_predicted > 0]
    predicted = sum(sequence.num_predicted for sequence in texts)
    if not predicted:
        return None
    first, second = (sum(sequence.losses[side] for sequence in texts) / predicted for side in (0, 1))
    return _exp(first), _exp(second)


def worst_position(sequences: Sequence[SequenceDivergence], tolerance: float | None) -> tuple[SequenceDivergence, int]:
    """Where two forms part: the first position with a logit beyond `tolerance`, or else that of the largest KL."""
    if tolerance is not None:
        for sequence in sequences:
            beyond = ~(sequence.difference_T <= tolerance)  # also true of NaN
            if beyond.any():
                return sequence, int(np.flatnonzero(beyond)[0])
    worst = max(sequences, key=lambda sequence: float(np.nan_to_num(sequence.kl_T, nan=np.inf).max()))
    return worst, int(np.nan_to_num(worst.kl_T, nan=np.inf).argmax())


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf
