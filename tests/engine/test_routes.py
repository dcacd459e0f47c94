"""Two routes that must be equal: cached and not, alone and in a crowd, with and without reuse, preempted and not."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leveret.engine.config import EngineConfig
from leveret.engine.engine import Engine
from leveret.engine.request import Request, SamplingParams
from leveret.model.config import ModelConfig, MoeConfig, RopeConfig
from leveret.model.decoder import Decoder

from .conftest import random_decoder, tiny_config

FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 12},
    "mixtral": {"moe": MoeConfig(num_experts=4, experts_per_token=2)},
    "dynamic": {"rope": RopeConfig(kind="dynamic", factor=4.0), "max_position_embeddings": 40},
}
SMALL = EngineConfig(cache_block_tokens=4, prefill_chunk_tokens=16)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Decoder:
    config = tiny_config(97, **({"max_position_embeddings": 128} | FAMILIES[request.param]))
    if config.rope.kind == "dynamic":  # trained at 40, used up to 128
        rope = dataclasses.replace(config.rope, original_max_position_embeddings=40)
        config = dataclasses.replace(config, max_position_embeddings=128, rope=rope)
    return random_decoder(config)


def request(prompt: tuple[int, ...], **params: Any) -> Request:
    return Request(prompt_ids=prompt, params=SamplingParams(**({"max_tokens": 12} | params)))


def prompts_that_share(count: int, *, shared: int = 22) -> list[tuple[int, ...]]:
    prefix = tuple((7 * place + 3) % 97 for place in range(shared))
    return [(*prefix, *((5 * place + number) % 97 for place in range(3 + 2 * number))) for number in range(count)]


@torch.inference_mode()
def uncached(model: Decoder, prompt: tuple[int, ...], steps: int) -> tuple[int, ...]:
    ids = list(prompt)
    if model.config.rope.kind == "dynamic":  # its base depends on how long the whole is to become
        padding = [0] * steps
        for step in range(steps):
            logits = model(torch.tensor([ids + padding[step:]]))
            ids.append(int(logits[0, len(ids) - 1].argmax()))
        return tuple(ids[len(prompt) :])
    for _ in range(steps):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return tuple(ids[len(prompt) :])


def test_cached_is_uncached_and_a_crowd_is_each_alone(family: Decoder) -> None:
    prompts = prompts_that_share(6)
    alone = [Engine(family, SMALL).generate([request(prompt)])[0].ids for prompt in prompts]
    assert alone == [uncached(family, prompt, 12) for prompt in prompts]
    engine = Engine(family, SMALL)
    assert [each.ids for each in engine.generate([request(prompt) for prompt in prompts])] == alone
    again = [each.ids for each in engine.generate([request(prompt) for prompt in prompts])]
    assert again == alone and (engine.stats.reused_tokens > 6 * 20 or family.config.rope.kind == "dynamic")


def test_a_shared_prefix_is_the_naive_way_greedy_and_sampled(family: Decoder) -> None:
    prompts = prompts_that_share(6)
    requests = [request(prompt) for prompt in prompts]
    requests += [request(prompt, temperature=1.0, top_p=0.9, seed=place) for place, prompt in enumerate(prompts)]
    naive = Engine(family, SMALL.model_copy(update={"reuse_prefixes": False}))
    shared = Engine(family, SMALL)
    assert shared.generate(requests) == naive.generate(requests)
    assert naive.stats.reused_tokens == 0 < shared.stats.reused_tokens
    assert shared.stats.prefill_tokens + shared.stats.reused_tokens == naive.stats.prefill_tokens


def test_requests_that_lose_their_place_give_the_same_ids(family: Decoder) -> None:
    requests = [request(prompt, max_tokens=20) for prompt in prompts_that_share(5, shared=6)]
    requests += [request(prompt, max_tokens=20, temperature=0.8, seed=3) for prompt in prompts_that_share(3, shared=9)]
    roomy, tight = Engine(family, SMALL), Engine(family, SMALL)
    _shrink(tight, num_blocks=14)
    assert tight.generate(requests) == roomy.generate(requests)
    assert tight.stats.preemptions > 2 and roomy.stats.preemptions == 0
    assert tight.stats.used_tokens == 0


def _shrink(engine: Engine, *, num_blocks: int) -> None:
    """A cache so small that a mebibyte is many times too much."""
    engine._num_blocks = num_blocks
    engine._scheduler = engine._new_scheduler()


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_mixture_of_requests_in_any_order_gives_what_each_gives_alone(data: st.DataObject) -> None:
    model = random_decoder(tiny_config(97, max_position_embeddings=128, sliding_window=16))
    pool = [*prompts_that_share(4, shared=10), (5,), (6, 7, 8), tuple(range(30))]
    jobs = data.draw(
        st.lists(st.tuples(st.sampled_from(pool), st.integers(1, 14), st.integers(0, 8)), min_size=1, max_size=8)
    )
    chunk = data.draw(st.sampled_from([4, 8, 32]))
    engine = Engine(model, SMALL.model_copy(update={"prefill_chunk_tokens": chunk, "max_rows": 4}))
    _shrink(engine, num_blocks=data.draw(st.sampled_from([12, 16, 60])))
    rows, alone = {}, Engine(model)
    for count in range(400):
        for place, (prompt, most, when) in enumerate(jobs):
            if when == count:
                rows[place] = engine.submit(request(prompt, max_tokens=most))
        engine.step()
        if len(rows) == len(jobs) and all(row.finish_reason for row in rows.values()):
            break
    for place, (prompt, most, _) in enumerate(jobs):
        assert tuple(rows[place].generated) == alone.generate([request(prompt, max_tokens=most)])[0].ids
    assert engine.stats.used_tokens == 0


def test_a_system_prompt_of_400_tokens_is_read_once_for_32_requests() -> None:
    model = random_decoder(tiny_config(97, max_position_embeddings=512))
    system = tuple((11 * place + place // 7) % 97 for place in range(400))
    requests = [
        request((*system, *((13 * number + place) % 97 for place in range(30))), max_tokens=2) for number in range(32)
    ]
    fed = {}
    for reuse in (True, False):
        engine = Engine(model, EngineConfig(reuse_prefixes=reuse))
        answers = engine.generate(requests)
        fed[reuse] = engine.stats.prefill_tokens, [each.ids for each in answers]
    assert fed[True][1] == fed[False][1]
    assert fed[False][0] == 32 * 430 and fed[True][0] * 4 <= fed[False][0]


def test_an_answer_is_reused_when_the_conversation_goes_on(decoder: Decoder) -> None:
    engine = Engine(decoder, SMALL)
    prompt = tuple(range(9))
    [first] = engine.generate([request(prompt, max_tokens=20)])
    before = engine.stats
    engine.generate([request((*prompt, *first.ids, 50, 51), max_tokens=3)])
    assert engine.stats.reused_tokens - before.reused_tokens == (9 + 19) // 4 * 4


def test_weights_that_changed_are_noticed_and_nothing_old_is_reused() -> None:
    model = random_decoder(tiny_config(97, max_position_embeddings=128))
    engine = Engine(model, SMALL)
    prompt = tuple(range(40))
    old = engine.generate([request(prompt)])[0].ids
    with torch.no_grad():
        model.layers[0].self_attn.k_proj.weight.neg_()
    new = engine.generate([request(prompt)])[0].ids
    assert new == uncached(model, prompt, 12) != old and engine.stats.reused_tokens == 0


def test_what_the_user_says_was_changed_is_not_reused(decoder: Decoder) -> None:
    engine = Engine(decoder, SMALL)
    engine.generate([request(tuple(range(20)))])
    engine.forget()
    engine.generate([request(tuple(range(20)))])
    assert engine.stats.reused_tokens == 0


def test_a_cache_that_is_limited_refuses_what_can_never_fit() -> None:
    config = ModelConfig(
        vocab_size=97, hidden_size=32, intermediate_size=48, num_hidden_layers=8, num_attention_heads=4,
        num_key_value_heads=4, head_dim=64, max_position_embeddings=512,
    )  # fmt: skip
    engine = Engine(random_decoder(config), EngineConfig(cache_memory_mib=1))
    assert engine.context_tokens == engine.stats.capacity_tokens == 64
    assert engine.stats.cache_bytes <= 1 << 20
    with pytest.raises(Exception, match=r"the KV cache holds 64.*\n?.*cache_memory_mib"):
        engine.check(request(tuple(range(90))))
    assert len(engine.generate([request(tuple(range(50)))])[0].ids) == 12


def test_a_request_among_others_that_is_abandoned_gives_its_blocks_back(decoder: Decoder) -> None:
    engine = Engine(decoder, SMALL)
    stream = engine.stream(request(tuple(range(30)), max_tokens=40))
    next(stream)
    assert engine.stats.used_tokens == 32 and engine.stats.running_requests == 1
    other = engine.generate([request((1, 2, 3))])  # goes on while another is under way
    stream.close()
    stats = engine.stats
    assert (stats.used_tokens, stats.running_requests, stats.cancelled_requests) == (0, 0, 1)
    assert other[0].ids == Engine(decoder).generate([request((1, 2, 3))])[0].ids


def test_the_counters_add_up(decoder: Decoder) -> None:
    engine = Engine(decoder, SMALL)
    answers = engine.generate([request(prompt) for prompt in prompts_that_share(4)])
    stats = engine.stats
    assert stats.submitted_requests == stats.finished_requests == 4
    assert stats.generated_tokens == sum(len(each.ids) for each in answers)
    assert stats.prompt_tokens == sum(each.num_prompt_tokens for each in answers)
    assert stats.prefill_tokens + stats.reused_tokens == stats.prompt_tokens
    assert stats.kept_tokens > 0 and stats.waiting_requests == stats.running_requests == 0


def test_what_another_caller_s_step_brought_is_not_lost(decoder: Decoder) -> None:
    engine = Engine(decoder, SMALL)
    stream = engine.stream(request((1, 2, 3), max_tokens=9))
    ids = [next(stream)]
    engine.generate([request((4, 5), max_tokens=30)])  # its steps end the stream's row too
    assert (*ids, *stream) == Engine(decoder).generate([request((1, 2, 3), max_tokens=9)])[0].ids


def test_threads_that_share_an_engine_each_get_their_own_answers(decoder: Decoder) -> None:
    engine = Engine(decoder, SMALL)
    prompts = prompts_that_share(4)
    found: dict[int, list[tuple[int, ...]]] = {}

    def ask(number: int) -> None:
        found[number] = [tuple(engine.stream(request(prompts[number], max_tokens=9))) for _ in range(5)]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, prompt in enumerate(prompts):
        assert found[number] == [Engine(decoder).generate([request(prompt, max_tokens=9)])[0].ids] * 5
    assert engine.stats.used_tokens == 0 and engine.stats.finished_requests == 20
