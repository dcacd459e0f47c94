"""Speculation changes how many steps an answer takes, and nothing else."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from leveret.engine.compiled_step import CompiledStep
from leveret.engine.config import EngineConfig
from leveret.engine.engine import Engine
from leveret.engine.request import Request, SamplingParams
from leveret.engine.row import Row
from leveret.engine.scheduler import Turn
from leveret.engine.speculative import MOST_GUESSES, Lookup, Pace, Speculation
from leveret.engine.token_score import TokenScore
from leveret.engine.turns import choose
from leveret.errors import ConfigError
from leveret.kernels.native.library import missing
from leveret.model.config import MoeConfig
from leveret.model.decoder import Decoder
from leveret.weights.save import save_model

from .conftest import random_decoder, tiny_config
from .test_engine import Sequence

PLAIN = EngineConfig(speculation=None, cache_block_tokens=4)
LOOKUP = EngineConfig(cache_block_tokens=4)
REPEATING = (3, 1, 4, 1, 5, 9, 2, 6) * 4


def request(prompt: tuple[int, ...], **params: Any) -> Request:
    return Request(prompt_ids=prompt, params=SamplingParams(**({"max_tokens": 30} | params)))


def noisy(model: Decoder, scale: float) -> Decoder:
    """A model that mostly says the same."""
    twin = random_decoder(model.config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * scale)
    return twin


@pytest.fixture(
    scope="module", params=[{}, {"sliding_window": 12}, {"moe": MoeConfig(num_experts=4, experts_per_token=2)}], ids=str
)
def model(request: pytest.FixtureRequest) -> Decoder:
    return random_decoder(tiny_config(97, max_position_embeddings=256, **request.param))


REQUESTS = [
    request(REPEATING),
    request(tuple(range(20))),
    request(REPEATING, logit_bias=((3, 100.0), (1, 100.0), (4, 100.0))),
    request(REPEATING, temperature=1.0, seed=1),
    request(REPEATING, temperature=1.0, logit_bias=((3, 100.0), (1, 100.0)), seed=1),
    request(REPEATING[:9], temperature=0.7, top_k=5, repetition_penalty=1.1, presence_penalty=0.5, seed=2),
]


def test_answers_by_lookup_are_those_without_greedy_and_sampled(model: Decoder) -> None:
    plain, lookup = Engine(model, PLAIN), Engine(model, LOOKUP)
    expected = [plain.generate([each])[0] for each in REQUESTS]
    assert [lookup.generate([each])[0] for each in REQUESTS] == expected
    assert lookup.generate(REQUESTS) == expected
    assert lookup.stats.drafted_tokens > 0


@pytest.mark.parametrize("scale", [0.0, 0.01, 1.0])
def test_answers_with_a_draft_model_are_those_without(model: Decoder, scale: float) -> None:
    expected = [Engine(model, PLAIN).generate([each])[0] for each in REQUESTS]
    engine = Engine(model, PLAIN, draft=noisy(model, scale))
    assert [engine.generate([each])[0] for each in REQUESTS] == expected
    assert engine.generate(REQUESTS) == expected
    drafted, accepted = engine.stats.drafted_tokens, engine.stats.accepted_tokens
    if scale == 0.0:  # the same model with the same random numbers is always right
        assert accepted == drafted > 100
    elif scale == 1.0:
        assert accepted < 0.3 * drafted


@pytest.mark.skipif(missing() is not None, reason="no compiled kernels here")
@pytest.mark.parametrize("scale", [0.0, 0.003])
def test_in_bfloat16_one_stream_gets_the_same_bits_with_guesses_and_without(scale: float) -> None:
    config = tiny_config(97, hidden_size=128, intermediate_size=256, head_dim=64, max_position_embeddings=256)
    model, draft = random_decoder(config), noisy(random_decoder(config), scale)
    for each in (model, draft):
        each.to(torch.bfloat16)
    told: list[list[TokenScore]] = []
    for engine in (Engine(model, PLAIN), Engine(model, PLAIN, draft=draft)):
        assert CompiledStep.of(model) is not None
        told.append([])
        engine.generate([dataclasses.replace(request(REPEATING, max_tokens=60, logprobs=3), record=told[-1].append)])
    assert engine.stats.accepted_tokens > 20
    assert told[0] == told[1]


def test_right_guesses_save_steps(model: Decoder) -> None:
    plain, helped = Engine(model, PLAIN), Engine(model, PLAIN, draft=random_decoder(model.config))
    for engine in (plain, helped):
        engine.generate([request(REPEATING, max_tokens=60)])
    assert plain.stats.steps == 60 and helped.stats.steps < 12


def test_lookup_saves_steps_where_the_text_repeats_itself() -> None:
    model = random_decoder(tiny_config(97, max_position_embeddings=512))
    with torch.no_grad():  # layers that add nothing, and a head that turns the embedding: each id has one successor
        for layer in model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
        model.lm_head.weight.copy_(model.embed_tokens.weight.roll(1, 0))
    plain, lookup = Engine(model, PLAIN), Engine(model, LOOKUP)
    answers = [engine.generate([request((5,), max_tokens=400)])[0].ids for engine in (plain, lookup)]
    assert answers[0] == answers[1] and len(set(answers[0])) == 97
    assert lookup.stats.steps < 0.5 * plain.stats.steps


def test_the_distribution_of_samples_is_that_of_the_model() -> None:
    """Chi-square over pairs of ids of a vocabulary of 4, with guesses from another distribution that is often wrong."""
    generator = torch.Generator().manual_seed(0)
    first, other = torch.randn(2, 4, generator=generator)
    after = torch.randn(4, 4, generator=generator)  # the logits after each first id
    found: Counter[tuple[int, int]] = Counter()
    right, count = 0, 4000
    for seed in range(count):
        row = Row(request((0,), temperature=1.3, seed=seed))
        guess = row.sampler.fork().choose(other)
        ids, accepted = choose(Turn(row, 1, (guess,)), torch.stack([first, after[guess]]), [])
        right += accepted
        if not accepted:  # the next step
            ids += choose(Turn(row, 1), after[ids[0]].unsqueeze(0), [])[0]
        found[ids[0], ids[1]] += 1
    expected = (first / 1.3).softmax(-1)[:, None] * (after / 1.3).softmax(-1) * count
    square = sum((found[a, b] - float(expected[a, b])) ** 2 / float(expected[a, b]) for a in range(4) for b in range(4))
    assert 0.2 < right / count < 0.95 and float(expected.min()) > 5
    assert square < 37.7  # chi-square with 15 degrees of freedom: 1 in 1,000 lies beyond


def test_a_constraint_and_a_watch_see_every_id_once_in_order() -> None:
    model = random_decoder(tiny_config(97, max_position_embeddings=128))
    steps = [(4, 9), (50,), (51,), *[(3, 1, 4)] * 6, (7,), (8, 9)]
    seen: list[list[int]] = []
    for config in (PLAIN, LOOKUP):
        own: list[int] = []
        bound = dataclasses.replace(
            request(REPEATING), constraint=Sequence(*steps), watch=lambda token_id, own=own: own.append(token_id)
        )
        answer = Engine(model, config).generate([bound])[0]
        assert answer.finish_reason == "stop" and tuple(own) == answer.ids
        seen.append(own)
    assert seen[0] == seen[1]


def test_stop_ids_and_max_tokens_end_an_answer_in_the_middle_of_right_guesses(model: Decoder) -> None:
    free = Engine(model, PLAIN).generate([request(REPEATING)])[0].ids
    engine = Engine(model, PLAIN, draft=random_decoder(model.config))
    for most in range(1, 12):
        assert engine.generate([request(REPEATING, max_tokens=most)])[0].ids == free[:most]
    stop = free[5]
    assert engine.generate([request(REPEATING, stop_ids=(stop,))])[0].ids == free[: free.index(stop)]
    assert engine.stats.used_tokens == 0


def test_a_draft_model_of_another_vocabulary_is_refused(model: Decoder) -> None:
    with pytest.raises(ConfigError, match=r"draft_model has a vocabulary of 50 tokens and the model one of 97"):
        Engine(model, PLAIN, draft=random_decoder(tiny_config(50)))


def test_a_draft_model_is_read_from_the_folder_that_the_config_names(tmp_path: Path) -> None:
    model = random_decoder(tiny_config(97, max_position_embeddings=128))
    save_model(model, tmp_path / "draft")
    engine = Engine(model, PLAIN.model_copy(update={"draft_model": str(tmp_path / "draft")}))
    answer = engine.generate([request(REPEATING)])[0]
    assert engine.stats.accepted_tokens > 20 and answer == Engine(model, PLAIN).generate([request(REPEATING)])[0]


def test_lookup_takes_the_latest_place_and_goes_on_in_circles() -> None:
    lookup = Lookup()
    row = Row(request((1, 2, 3, 7, 1, 2, 3, 8, 9, 1, 2, 3)))
    assert lookup.guess({row: 4}) == {row: [8, 9, 1, 2]}
    row.ids += [5]
    assert lookup.guess({row: 4}) == {row: []}
    row.ids += [6, 5, 6, 5, 6]
    assert lookup.guess({row: 5}) == {row: [5, 6, 5, 6, 5]}


def test_guessing_pauses_while_it_is_wrong_and_comes_back() -> None:
    pace, lengths = Pace(), []
    for _ in range(60):
        lengths.append(pace.length)
        pace.learn(pace.length, 0)
    assert lengths.count(0) > 40 and max(lengths[10:]) > 0
    for _ in range(40):
        pace.learn(pace.length, pace.length)
    assert pace.length == MOST_GUESSES


def test_nothing_is_guessed_for_a_crowd() -> None:
    speculation = Speculation([Lookup()])
    rows = [Row(request(REPEATING)) for _ in range(20)]
    assert [len(speculation.guess(rows[:count])) for count in (1, 3, 8, 9, 20)] == [1, 3, 8, 0, 0]
    assert len(speculation.guess(rows[:8])[rows[0]]) == 1 < len(speculation.guess(rows[:1])[rows[0]])
    assert Speculation([]).guess(rows) == {}
