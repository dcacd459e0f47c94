"""The sampler against transformers' logits processors, and against the distribution it claims to draw from."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leveret.engine.request import SamplingParams
from leveret.engine.sampler import RowSampler, draw, filter_scores, penalize, shift
from leveret.engine.token_score import TokenScore
from leveret.errors import RequestError

processors = pytest.importorskip("transformers.generation.logits_process")


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    temperature=st.floats(0.1, 3),
    top_k=st.none() | st.integers(1, 60),
    top_p=st.none() | st.floats(0.05, 1),
    min_p=st.none() | st.floats(0, 0.9),
    penalty=st.floats(0.5, 2),
)
def test_filters_leave_the_distribution_that_transformers_leaves(
    seed: int, temperature: float, top_k: int | None, top_p: float | None, min_p: float | None, penalty: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(50, generator=generator) * 3
    seen = torch.randint(0, 50, (1, 12), generator=generator)
    expected = processors.RepetitionPenaltyLogitsProcessor(penalty)(seen, logits[None].clone())
    expected = processors.TemperatureLogitsWarper(temperature)(seen, expected)
    if top_k is not None:
        expected = processors.TopKLogitsWarper(top_k)(seen, expected)
    if top_p is not None and top_p < 1:
        expected = processors.TopPLogitsWarper(top_p)(seen, expected)
    if min_p is not None:
        expected = processors.MinPLogitsWarper(min_p)(seen, expected)
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    ours = filter_scores(penalize(logits, set(seen[0].tolist()), penalty) / temperature, params)
    torch.testing.assert_close(ours.softmax(-1), expected[0].softmax(-1))


def test_draws_follow_the_probabilities() -> None:
    probabilities = torch.tensor([0.5, 0.0, 0.3, 0.2])
    generator = torch.Generator().manual_seed(0)
    params = SamplingParams(temperature=1)
    drawn = torch.tensor([draw(probabilities.log(), params, generator) for _ in range(4000)])
    shares = torch.bincount(drawn, minlength=4) / 4000
    assert shares[1] == 0
    torch.testing.assert_close(shares, probabilities, atol=0.03, rtol=0)


def test_low_temperatures_do_not_overflow() -> None:
    logits = torch.tensor([5.0, 100.0, -100.0])
    assert draw(logits, SamplingParams(temperature=1e-3), torch.Generator().manual_seed(0)) == 1


def test_the_likeliest_id_survives_every_filter() -> None:
    scores = torch.tensor([1.0, 1.1, 0.9])
    params = SamplingParams(temperature=1, top_k=3, top_p=1e-6, min_p=1.0)
    assert filter_scores(scores, params).isfinite().tolist() == [False, True, False]


def test_greedy_takes_the_lowest_of_equals_and_skips_banned_ids() -> None:
    logits = torch.tensor([0.0, 2.0, 2.0, 1.0])
    assert RowSampler(SamplingParams(), (0,), None).choose(logits) == 1
    assert RowSampler(SamplingParams(banned_ids=(1, 2)), (0,), None).choose(logits) == 3


@pytest.mark.parametrize("temperature", [1e-45, 1e-40, 9e-6])
def test_a_temperature_near_0_is_0(temperature: float) -> None:
    params = SamplingParams(temperature=temperature, seed=1)
    assert params.greedy and draw(torch.tensor([3.0, 900.0, 900.0]), params, torch.Generator()) == 1
    assert not SamplingParams(temperature=1e-5).greedy


def test_the_repetition_penalty_counts_the_prompt_and_the_answer() -> None:
    logits = torch.tensor([0.0, 2.0, 1.9, 1.8])
    sampler = RowSampler(SamplingParams(repetition_penalty=2.0), (1,), None)
    assert sampler.choose(logits) == 2
    sampler.accept(2)
    assert sampler.choose(logits) == 3


def test_half_precision_logits_are_sampled_in_fp32() -> None:
    logits = torch.randn(64, generator=torch.Generator().manual_seed(1)).bfloat16()
    params = SamplingParams(temperature=0.7, top_p=0.9, seed=3)
    first, second = RowSampler(params, (0,), None), RowSampler(params, (0,), None)
    assert [first.choose(logits) for _ in range(20)] == [second.choose(logits.float()) for _ in range(20)]


def test_presence_and_frequency_penalties_count_the_answer_but_not_the_prompt() -> None:
    logits = torch.tensor([0.0, 3.0, 2.5, 1.0])
    sampler = RowSampler(SamplingParams(presence_penalty=0.4, frequency_penalty=0.3), (1, 1, 1), None)
    chosen = []
    for _ in range(6):
        chosen.append(sampler.choose(logits))
        sampler.accept(chosen[-1])
    # Id 1 scores 3.0, then 2.3, 2.0, 1.7 after being chosen; id 2 scores 2.5, then 1.8, 1.5.
    assert chosen == [1, 2, 1, 1, 2, 1]


def test_the_bias_is_what_transformers_adds() -> None:
    logits = torch.randn(30, generator=torch.Generator().manual_seed(2))
    bias = {3: 1.5, 7: -100.0, 29: 0.25}
    theirs = processors.SequenceBiasLogitsProcessor([[[key], value] for key, value in bias.items()])
    expected = theirs(torch.zeros(1, 4, dtype=torch.long), logits[None].clone())[0]
    ours = shift(logits, {}, SamplingParams(logit_bias=tuple(bias.items())))
    torch.testing.assert_close(ours, expected)


def test_a_bias_bans_and_forces() -> None:
    logits = torch.tensor([0.0, 2.0, 2.0, 1.0])
    assert RowSampler(SamplingParams(logit_bias=((1, -100.0),)), (0,), None).choose(logits) == 2
    assert RowSampler(SamplingParams(logit_bias=((3, 100.0),)), (0,), None).choose(logits) == 3


def test_recorded_scores_are_the_models_own_whatever_the_sampler_was_asked() -> None:
    logits = torch.randn(40, generator=torch.Generator().manual_seed(4)).half()
    records: list[TokenScore] = []
    params = SamplingParams(temperature=1.7, top_k=5, seed=1, logit_bias=((2, 50.0),), banned_ids=(0,), logprobs=3)
    sampler = RowSampler(params, (0,), None, records.append)
    assert not sampler.plain and sampler.choose(logits) == 2
    expected = logits.float().log_softmax(-1)
    [score] = records
    assert (score.id, score.logprob) == (2, pytest.approx(expected[2].item()))
    assert [token_id for token_id, _ in score.top] == expected.topk(3).indices.tolist()
    assert RowSampler(SamplingParams(), (0,), None, records.append).plain


@pytest.mark.parametrize(
    "wrong",
    [
        {"presence_penalty": 2.1},
        {"frequency_penalty": float("nan")},
        {"logit_bias": ((1, 101.0),)},
        {"logprobs": 21},
        {"logprobs": -1},
    ],
)
def test_values_out_of_range_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**wrong)
    assert caught.value.param == next(iter(wrong))
