"""The figures of a certificate, against numbers worked out by hand and by numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from leveret.certify.compare import largest_difference
from leveret.certify.divergence import (
    SequenceDivergence,
    compare_logits,
    compare_logprobs,
    mean_kl,
    perplexities,
    worst_position,
)


def logits(seed: int, length: int = 9, vocabulary: int = 13) -> torch.Tensor:
    return torch.randn(length, vocabulary, generator=torch.Generator().manual_seed(seed)) * 3


def compared(seed: int, *, noise: float = 0.1, is_text: bool = True, length: int = 9) -> SequenceDivergence:
    first = logits(seed, length)
    ids = [seed % 13, *range(length - 1)]
    return compare_logits(f"s{seed}", ids, first, first + noise * logits(seed + 100, length), is_text=is_text)


def test_kl_and_losses_are_what_numpy_says() -> None:
    first, second = logits(0), logits(1)
    result = compare_logits("x", list(range(9)), first, second, is_text=True)
    p, q = (np.exp(side.double().numpy()) for side in (first, second))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    np.testing.assert_allclose(result.kl_T, (p * np.log(p / q)).sum(-1), rtol=1e-9)
    np.testing.assert_allclose(result.difference_T, np.abs(first.numpy() - second.numpy()).max(-1), rtol=1e-6)
    for side, probabilities in zip(result.losses, (p, q), strict=True):
        assert side == pytest.approx(-sum(math.log(probabilities[at, at + 1]) for at in range(8)))


def test_equal_logits_have_no_divergence_and_an_interval_of_nothing() -> None:
    result = compare_logits("x", list(range(9)), logits(0), logits(0), is_text=True)
    interval = mean_kl([result, result])
    assert (interval.mean, interval.low, interval.high) == (0, 0, 0) and result.same_choice_T.all()


def test_the_interval_holds_the_mean_and_is_the_same_each_time() -> None:
    sequences = [compared(seed, noise=0.02 * seed) for seed in range(1, 20)]
    interval = mean_kl(sequences)
    assert interval.low < interval.mean < interval.high and interval == mean_kl(sequences)
    weights = np.concatenate([sequence.kl_T for sequence in sequences])
    assert interval.mean == pytest.approx(weights.mean())


def test_one_bad_sequence_among_many_widens_the_interval() -> None:
    even = [compared(seed) for seed in range(20)]
    uneven = [*even[:-1], compared(3, noise=5.0)]
    widths = [interval.high - interval.low for interval in (mean_kl(even), mean_kl(uneven))]
    assert widths[1] > 5 * widths[0]


def test_perplexity_counts_texts_only_and_each_token_once() -> None:
    texts = [compared(1), compared(2, length=5)]
    other = compared(3, is_text=False)
    first, _ = perplexities([*texts, other])
    assert first == pytest.approx(math.exp(sum(text.losses[0] for text in texts) / (8 + 4)))
    assert perplexities([other]) is None


def test_the_parting_is_the_first_position_beyond_tolerance_or_the_worst() -> None:
    first = logits(0)
    second = first.clone()
    second[4, 2] += 0.01
    second[7] += torch.linspace(0, 5, 13)
    result = compare_logits("x", list(range(9)), first, second, is_text=False)
    quiet = compare_logits("y", list(range(9)), first, first, is_text=False)
    assert worst_position([quiet, result], 1e-3) == (result, 4)
    assert worst_position([quiet, result], None) == (result, 7)


def test_numbers_that_are_not_numbers_are_the_parting_and_never_within_a_bound() -> None:
    second = logits(0)
    second[3, 3] = float("nan")
    result = compare_logits("x", list(range(9)), logits(0), second, is_text=True)
    assert worst_position([result], 1e-3) == (result, 3) == worst_position([result], None)
    assert not mean_kl([result]).high <= 1e9


@pytest.mark.parametrize("place", [0, 1])
def test_a_server_s_number_that_is_none_is_never_within_a_bound(place: int) -> None:
    first = logits(0, length=3)
    rows = first.double().log_softmax(-1)
    told = [(float(rows[at, at + 1]), {index: float(rows[at, index]) for index in (4, 5)}) for at in (0, 1)]
    told[1][1][4 + place] = float("nan")
    result = compare_logprobs("x", [0, 1, 2], first, told, is_text=True)
    quiet = compare_logprobs("y", [0, 1, 2], first, told[:1], is_text=True)
    assert math.isnan(largest_difference([quiet, result])) and math.isnan(result.kl_T[1])
    assert worst_position([quiet, result], 1e-3) == (result, 1) and not mean_kl([quiet, result]).high <= 1e9
